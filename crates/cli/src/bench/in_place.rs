//! Long messages handed over in place, both ways: nobody copies them, and nobody touches more of them than
//! the first eight bytes, which carry their number.

use anyhow::ensure;
use lapwing::{Builder, CooperativePeers, Request, Status};

use super::client::number;
use super::client::{Async, Blocking, Measured, Timer};

/// Answers with as many bytes in place, which carry the number of the request.
const HAND_BACK: u16 = 0x0418;

/// Bytes of the number that each message begins with.
pub(super) const NUMBER_BYTES: u32 = 8;

/// Both processes are this program.
#[expect(unsafe_code)]
pub(super) fn token() -> CooperativePeers {
    // SAFETY: the other process runs this same program, which this one has started, over a socket in a
    // private folder; and neither writes to a block between lending it and having it back: the library
    // takes a block's bytes from whoever lends it, and this program has no other way to them.
    unsafe { CooperativePeers::assume() }
}

pub(super) fn with_in_place(builder: Builder) -> Builder {
    builder.in_place(token()).route_raw(
        HAND_BACK,
        "bench.hand-back",
        |request: Request| async move {
            let Some(n) = number_of(&request.payload) else {
                return Err(Status::invalid_argument(
                    "eight bytes or more, of which they are a number",
                ));
            };
            let mut reply = request.reserve(request.payload.len()).await?;
            number(&mut reply, n);
            Ok(reply)
        },
    )
}

fn number_of(message: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*message.first_chunk()?))
}

impl Blocking<'_> {
    pub(super) fn in_place(&self) -> anyhow::Result<Measured> {
        let bytes = self.options.payload as usize;
        let mut timer = Timer::start(self.clock_ns);
        for n in 0..self.options.samples {
            let mut request = self.client.reserve(bytes)?;
            number(&mut request, n);
            let reply = self.client.call_reserved(HAND_BACK, request)?;
            ensure!(reply.len() == bytes && number_of(&reply) == Some(n), "a reply is wrong");
            drop(reply);
            timer.lap();
        }
        Ok(timer.finish())
    }
}

impl Async<'_> {
    pub(super) async fn in_place(&self) -> anyhow::Result<Measured> {
        let bytes = self.options.payload as usize;
        let mut timer = Timer::start(self.clock_ns);
        for n in 0..self.options.samples {
            let mut request = self.client.reserve(bytes).await?;
            number(&mut request, n);
            let reply = self.client.call_reserved(HAND_BACK, request).await?;
            ensure!(reply.len() == bytes && number_of(&reply) == Some(n), "a reply is wrong");
            drop(reply);
            timer.lap();
        }
        Ok(timer.finish())
    }
}
