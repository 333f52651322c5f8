//! Round trips of long messages: copied out and in again at every step, as processes must that do not trust
//! each other.

use anyhow::ensure;
use lapwing::floor::{is_numbered, number};

use super::client::{Async, Blocking, Measured, Timer, payload};
use super::peer::RETURN;

/// Whether this is the message that was sent: its length, its number at both ends, and a byte between.
fn is_message(reply: &[u8], sent: &[u8], n: u64) -> bool {
    let middle = reply.len() / 2;
    reply.len() == sent.len() && is_numbered(reply, n) && reply.get(middle) == sent.get(middle)
}

impl Blocking<'_> {
    pub(super) fn echo(&self) -> anyhow::Result<Measured> {
        let mut sent = payload(self.options);
        let mut timer = Timer::start(self.clock_ns);
        for n in 0..self.options.samples {
            number(&mut sent, n);
            let reply = self.client.call_raw(RETURN, &sent)?;
            ensure!(is_message(&reply, &sent, n), "a reply is wrong");
            drop(reply);
            timer.lap();
        }
        Ok(timer.finish())
    }
}

impl Async<'_> {
    pub(super) async fn echo(&self) -> anyhow::Result<Measured> {
        let mut sent = payload(self.options);
        let mut timer = Timer::start(self.clock_ns);
        for n in 0..self.options.samples {
            number(&mut sent, n);
            let reply = self.client.call_raw(RETURN, &sent).await?;
            ensure!(is_message(&reply, &sent, n), "a reply is wrong");
            drop(reply);
            timer.lap();
        }
        Ok(timer.finish())
    }
}
