//! The time that a call may take: all of it, from connecting on.

use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use std::{panic, thread};

use lapwing::blocking::IpcClient;
use lapwing::{ClientOptions, ConnectError};

use super::Args;
use crate::exit::Late;

/// When the call is given up, if ever.
#[derive(Clone)]
pub(super) struct Limit {
    method: String,
    pub(super) deadline: Option<Instant>,
}

impl Limit {
    /// What the command line gives the call from now on. A time too long for the clock is none.
    pub(super) fn of(args: &Args) -> Limit {
        let given = args.timeout_ms.map(Duration::from_millis);
        let deadline = given.and_then(|given| Instant::now().checked_add(given));
        Limit { method: args.method.clone(), deadline }
    }

    fn left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// The error of a call whose time was over before `missing`, the rest of a sentence.
    pub(super) fn over(&self, missing: &'static str) -> anyhow::Error {
        Late { method: self.method.clone(), missing }.into()
    }

    /// Fails once the time is over.
    pub(super) fn check(&self, missing: &'static str) -> anyhow::Result<()> {
        match self.left() {
            Some(Duration::ZERO) => Err(self.over(missing)),
            _ => Ok(()),
        }
    }

    /// Connects, within the time of a handshake at most.
    pub(super) fn connect(&self, socket: &Path) -> anyhow::Result<IpcClient> {
        let mut options = ClientOptions::default();
        let left = self.left().filter(|left| *left < options.handshake);
        options.handshake = left.unwrap_or(options.handshake);
        IpcClient::connect_with(socket, &options).map_err(|error| match error {
            ConnectError::HandshakeTimeout { .. } if left.is_some() => {
                self.over("the server answered the handshake")
            }
            error => error.into(),
        })
    }

    /// Does work that cannot be told when to end, and leaves it to itself when the time is over.
    pub(super) fn hold<T: Send + 'static>(
        &self,
        missing: &'static str,
        work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let Some(left) = self.left() else { return work() };
        let (told, done) = mpsc::channel();
        let worker = thread::spawn(move || {
            // Nobody may be waiting any more.
            let _ = told.send(work());
        });
        match done.recv_timeout(left) {
            Ok(done) => done,
            Err(RecvTimeoutError::Timeout) => Err(self.over(missing)),
            Err(RecvTimeoutError::Disconnected) => {
                panic::resume_unwind(worker.join().expect_err("who panics tells nothing"))
            }
        }
    }
}
