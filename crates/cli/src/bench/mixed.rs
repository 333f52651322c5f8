//! One-way messages of five lengths in turn, handled in order; and the same over a bare Unix socket.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, ensure};
use lapwing::Builder;
use lapwing::floor::{is_numbered, number};

use super::client::{Async, Blocking, Measured};

/// Takes the next message.
const TAKE: u16 = 0x0416;

/// Answers with the tally, and begins anew.
const TALLY: u16 = 0x0417;

/// Bytes of the messages, in turn.
const LENGTHS: [usize; 5] = [100, 1024, 10 * 1024, 50 * 1024, 100 * 1024];

/// What has come, at the receiving side.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Tally {
    messages: u64,
    bytes: u64,
    /// Messages that were not the next one.
    wrong: u64,
}

impl Tally {
    /// Takes a message in: it must be the next in turn, of the right length, with its number at both ends and
    /// the right bytes at a quarter, the half, and three quarters.
    fn take(&mut self, message: &[u8]) {
        let n = self.messages;
        let length = LENGTHS[n as usize % LENGTHS.len()];
        let is_right = message.len() == length
            && is_numbered(message, n)
            && [1, 2, 3].iter().all(|quarter| {
                let at = length / 4 * quarter;
                message[at] == at as u8
            });
        self.messages += 1;
        self.bytes += message.len() as u64;
        self.wrong += u64::from(!is_right);
    }

    fn encode(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        for (place, n) in bytes.chunks_exact_mut(8).zip([self.messages, self.bytes, self.wrong]) {
            place.copy_from_slice(&n.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> anyhow::Result<Tally> {
        let bytes: &[u8; 24] = bytes.try_into().context("a tally has 24 bytes")?;
        let [messages, bytes, wrong] = std::array::from_fn(|n| {
            u64::from_le_bytes(std::array::from_fn(|byte| bytes[8 * n + byte]))
        });
        Ok(Tally { messages, bytes, wrong })
    }

    /// Of all messages, in `seconds`.
    fn measured(self, samples: u64, seconds: f64) -> anyhow::Result<Measured> {
        ensure!(self.messages == samples, "{} of {samples} messages came", self.messages);
        ensure!(self.wrong == 0, "{} messages were wrong", self.wrong);
        let Tally { messages, bytes, .. } = self;
        Ok(Measured { messages, seconds, bytes: Some(bytes), ..Measured::default() })
    }
}

/// One message of each length.
fn messages() -> [Vec<u8>; LENGTHS.len()] {
    LENGTHS.map(|length| (0..length).map(|i| i as u8).collect())
}

/// Which of them is the `n`th.
fn turn(n: u64) -> usize {
    n as usize % LENGTHS.len()
}

pub(super) fn with_mixed(builder: Builder) -> Builder {
    let taking = Arc::new(Mutex::new(Tally::default()));
    let telling = Arc::clone(&taking);
    builder
        .route_inline(TAKE, "bench.take", move |_, message, _| {
            taking.lock().expect("no handler panics").take(message);
            Ok(())
        })
        .route_inline(TALLY, "bench.tally", move |_, _, reply| {
            let tally = std::mem::take(&mut *telling.lock().expect("no handler panics"));
            reply.extend(&tally.encode());
            Ok(())
        })
}

impl Blocking<'_> {
    pub(super) fn mixed(&self) -> anyhow::Result<Measured> {
        let mut messages = messages();
        let begun = Instant::now();
        for n in 0..self.options.samples {
            let message = &mut messages[turn(n)];
            number(message, n);
            self.client.send_oneway(TAKE, message)?;
        }
        // Answered after all of them were handled.
        let tally = Tally::decode(&self.client.call_raw(TALLY, &[])?)?;
        tally.measured(self.options.samples, begun.elapsed().as_secs_f64())
    }
}

impl Async<'_> {
    pub(super) async fn mixed(&self) -> anyhow::Result<Measured> {
        let mut messages = messages();
        let begun = Instant::now();
        for n in 0..self.options.samples {
            let message = &mut messages[turn(n)];
            number(message, n);
            self.client.send_oneway(TAKE, message).await?;
        }
        let tally = Tally::decode(&self.client.call_raw(TALLY, &[]).await?)?;
        tally.measured(self.options.samples, begun.elapsed().as_secs_f64())
    }
}

/// Where the rival listens, beside Lapwing's socket.
fn rival_path(socket: &Path) -> PathBuf {
    socket.with_extension("bare")
}

/// The same messages over a bare Unix socket, each behind its length in four bytes; a length of 0 asks for
/// the tally.
pub(super) struct Rival(UnixListener);

impl Rival {
    pub(super) fn bind(socket: &Path) -> io::Result<Rival> {
        UnixListener::bind(rival_path(socket)).map(Rival)
    }

    /// Takes one connection after the other.
    pub(super) fn serve(self) -> io::Result<()> {
        loop {
            let (stream, _) = self.0.accept()?;
            match take_all(&stream) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                other => other?,
            }
        }
    }
}

fn take_all(mut stream: &UnixStream) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(64 * 1024, stream);
    let mut message = Vec::new();
    let mut tally = Tally::default();
    loop {
        let mut length = [0; 4];
        reader.read_exact(&mut length)?;
        match u32::from_le_bytes(length) as usize {
            0 => stream.write_all(&std::mem::take(&mut tally).encode())?,
            length => {
                message.resize(length, 0);
                reader.read_exact(&mut message)?;
                tally.take(&message);
            }
        }
    }
}

/// Measures the rival.
pub(super) fn run_rival(socket: &Path, samples: u64) -> anyhow::Result<Measured> {
    const LENGTH_BYTES: usize = 4;
    let mut stream = UnixStream::connect(rival_path(socket))?;
    let mut framed = messages().map(|message| {
        let length = message.len() as u32;
        [&length.to_le_bytes()[..], &message].concat()
    });
    let begun = Instant::now();
    for n in 0..samples {
        let message = &mut framed[turn(n)];
        number(&mut message[LENGTH_BYTES..], n);
        stream.write_all(message)?;
    }
    stream.write_all(&[0; LENGTH_BYTES])?;
    let mut tally = [0; 24];
    stream.read_exact(&mut tally)?;
    Tally::decode(&tally)?.measured(samples, begun.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tally_counts_messages_that_are_lost_swapped_short_or_changed() {
        let message = |n: u64| {
            let mut message = messages()[turn(n)].clone();
            number(&mut message, n);
            message
        };
        let mut tally = Tally::default();
        (0..12).for_each(|n| tally.take(&message(n)));
        assert_eq!((tally.messages, tally.wrong), (12, 0));
        assert_eq!(Tally::decode(&tally.encode()).unwrap(), tally);
        let mut changed = message(12);
        changed[LENGTHS[2] / 2] ^= 1;
        tally.take(&changed);
        tally.take(&message(14));
        tally.take(&message(14)[1..]);
        assert_eq!((tally.messages, tally.wrong), (15, 3));
        assert!(tally.measured(15, 1.0).is_err());
    }
}
