//! Who is at the other end, as the kernel attests it, and who is let in.

use std::fmt;

use crate::platform;

/// Identity of a peer process, read from the kernel when its connection was made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PeerCredentials {
    /// The user it acts as.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its process number. It may be reused after the process ends: identify by connection instead.
    pub pid: i32,
}

/// Decides who is let in, from what the kernel says of a peer.
pub trait Policy: Send + Sync + 'static {
    /// Lets the peer in, or refuses it with a sentence that is sent to it.
    ///
    /// # Errors
    ///
    /// The sentence of the refusal.
    fn admit(&self, peer: &PeerCredentials) -> Result<(), String>;
}

/// The default policy: only the user the server acts as.
#[derive(Clone, Copy, Default, Debug)]
pub struct SameUser;

impl Policy for SameUser {
    fn admit(&self, peer: &PeerCredentials) -> Result<(), String> {
        if peer.uid == platform::own_uid() {
            return Ok(());
        }
        Err(format!("user {} is not the user this server works for", peer.uid))
    }
}

impl<F> Policy for F
where
    F: Fn(&PeerCredentials) -> Result<(), String> + Send + Sync + 'static,
{
    fn admit(&self, peer: &PeerCredentials) -> Result<(), String> {
        self(peer)
    }
}

impl fmt::Display for PeerCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid {} gid {} pid {}", self.uid, self.gid, self.pid)
    }
}
