//! What a server counts.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Counters of a whole server. Connections count for themselves and add up now and then, so
        /// that busy ones do not hand one cache line to and fro.
        #[derive(Default, Debug)]
        pub(crate) struct Totals { $($name: AtomicU64,)+ }

        /// Counts since the last time they were added to the totals.
        #[derive(Default, Debug)]
        pub(crate) struct Tally { $(pub(crate) $name: u64,)+ }

        /// What a server has done so far. A busy connection's latest messages may be missing for as
        /// long as it does not pause.
        #[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
        #[non_exhaustive]
        pub struct ServerStats { $($(#[doc = $doc])+ pub $name: u64,)+ }

        impl Totals {
            pub(crate) fn add(&self, tally: &mut Tally) {
                $(if tally.$name != 0 {
                    self.$name.fetch_add(std::mem::take(&mut tally.$name), Ordering::Relaxed);
                })+
            }

            pub(crate) fn snapshot(&self) -> ServerStats {
                ServerStats { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters! {
    /// Connections whose handshake was completed.
    accepted,
    /// Connections refused in the handshake: by policy, quota, or for a broken Hello.
    refused,
    /// Connections that ended after both sides had said what they had to.
    closed,
    /// Connections whose peer vanished.
    vanished,
    /// Connections cut because the peer broke the protocol.
    misbehaved,
    /// Frames received.
    received,
    /// Payload bytes received.
    received_bytes,
    /// Frames sent.
    sent,
    /// Payload bytes sent.
    sent_bytes,
    /// Calls answered with an error status.
    errors,
    /// Handlers that panicked.
    panics,
    /// Running calls that their callers gave up.
    cancelled,
    /// Frames of calls that had ended: items, credit and cancellations that crossed the reply.
    late,
    /// One-way messages of a kind that has no route, or whose handler failed.
    dropped,
}
