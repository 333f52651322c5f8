//! Private memory for long payloads, which goes back to the system when it is not used.
//!
//! Long payloads come in bursts. The system's allocator keeps what was freed near the end of its heap, megabytes
//! of it, for as long as the process lives; so these buffers are mappings of their own. While somebody has
//! [`KeepBuffers`], a few stay mapped for the next payload, because their first touch costs more than copying
//! does, until [`sweep_buffers`] finds them unused or somebody is done.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::memory::PrivateBytes;

/// Shortest buffer, in bytes; lengths are powers of two from here on.
const BYTES_MIN: usize = 64 * 1024;

/// The most that is kept for reuse, in bytes.
const KEPT_BYTES: usize = 16 * 1024 * 1024;

/// Buffers of this process that are mapped and not in use.
static KEPT: Mutex<Kept> = Mutex::new(Kept { keepers: 0, buffers: Vec::new(), bytes: 0 });

struct Kept {
    /// How many [`KeepBuffers`] there are.
    keepers: usize,
    /// With whether each was used since the last sweep; the one used last stands last.
    buffers: Vec<(PrivateBytes, bool)>,
    bytes: usize,
}

fn kept() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives buffers back to the system that were not used since the last time this was called.
pub fn sweep_buffers() {
    let mut kept = kept();
    let Kept { buffers, bytes, .. } = &mut *kept;
    buffers.retain_mut(|(memory, used)| {
        let stays = std::mem::replace(used, false);
        if !stays {
            *bytes -= memory.bytes();
        }
        stays
    });
}

/// Whether there are buffers to be swept.
#[must_use]
pub fn has_kept_buffers() -> bool {
    kept().bytes > 0
}

/// While one of these exists, as for each connection, unused buffers are kept for the next payload. When one is
/// dropped, all unused ones go back to the system: what a burst left behind does not outlive its connection.
#[derive(Debug)]
pub struct KeepBuffers(());

impl KeepBuffers {
    /// Keeps buffers from here on.
    #[must_use]
    pub fn new() -> KeepBuffers {
        kept().keepers += 1;
        KeepBuffers(())
    }
}

impl Default for KeepBuffers {
    fn default() -> KeepBuffers {
        KeepBuffers::new()
    }
}

impl Drop for KeepBuffers {
    fn drop(&mut self) {
        let mut kept = kept();
        kept.keepers -= 1;
        kept.bytes = 0;
        let gone = std::mem::take(&mut kept.buffers);
        drop(kept);
        drop(gone);
    }
}

/// A growable buffer for a long payload.
#[derive(Debug, Default)]
pub struct Buffer {
    /// `None` while the buffer is empty.
    memory: Option<PrivateBytes>,
    bytes: usize,
}

impl Buffer {
    /// An empty buffer, which has no memory yet.
    #[must_use]
    pub const fn new() -> Buffer {
        Buffer { memory: None, bytes: 0 }
    }

    /// A buffer of this length. It holds zeros, or what an earlier buffer of this process held.
    ///
    /// # Panics
    ///
    /// When the system has no memory left, as any allocation.
    #[must_use]
    pub fn zeroed(bytes: usize) -> Buffer {
        Buffer { memory: Some(memory(bytes)), bytes }
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.memory.as_ref().map_or(&[], |memory| &memory.slice()[..self.bytes])
    }

    /// The bytes, to be written.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let bytes = self.bytes;
        self.memory.as_mut().map_or(&mut [], |memory| &mut memory.slice_mut()[..bytes])
    }

    /// Appends bytes.
    ///
    /// # Panics
    ///
    /// As [`Buffer::zeroed`].
    pub fn extend(&mut self, more: &[u8]) {
        let (old, needed) = (self.bytes, self.bytes + more.len());
        if self.memory.as_ref().is_none_or(|memory| memory.bytes() < needed) {
            let mut grown = Buffer::zeroed(needed);
            grown.bytes_mut()[..old].copy_from_slice(self.bytes());
            *self = grown;
        }
        self.bytes = needed;
        self.bytes_mut()[old..].copy_from_slice(more);
    }

    /// Makes the buffer shorter.
    pub fn truncate(&mut self, bytes: usize) {
        self.bytes = self.bytes.min(bytes);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        let mut kept = kept();
        if kept.keepers > 0 && kept.bytes + memory.bytes() <= KEPT_BYTES {
            kept.bytes += memory.bytes();
            kept.buffers.push((memory, true));
        }
    }
}

fn memory(bytes: usize) -> PrivateBytes {
    let wanted = bytes.next_power_of_two().max(BYTES_MIN);
    let mut kept = kept();
    if let Some(at) = kept.buffers.iter().rposition(|(memory, _)| memory.bytes() == wanted) {
        kept.bytes -= wanted;
        return kept.buffers.remove(at).0;
    }
    drop(kept);
    PrivateBytes::map(wanted).expect("the system has memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded() {
        let keeper = KeepBuffers::new();
        drop(Buffer::zeroed(KEPT_BYTES + 1));
        assert!(kept().bytes <= KEPT_BYTES);
        drop(keeper);
    }
}
