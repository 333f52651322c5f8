//! Two-process and hostile-peer helpers for the tests of Lapwing, and what its fuzz targets run.
//!
//! - [`Victim`]: a real server in a process of its own, watched from outside while a peer misbehaves.
//! - [`RawPeer`]: one end of a connection driven by hand, with any bytes, descriptors and words.
//! - [`RawServer`]: the same in a server's place, against the clients.
//! - [`process`]: runs a test's other roles in processes of their own, without extra binaries.
//! - [`Resources`]: descriptors, mappings, threads and memory of any process.
//!
//! Everything here panics where a test would: what fails is then named by the panic.

#![forbid(unsafe_code)]

pub mod frame;
pub mod fuzz_bodies;
mod memory;
mod peer;
pub mod process;
mod resources;
mod ring;
mod server;
mod victim;

pub use memory::{
    SEALS, SealFlags, doorbell, memory_file, pipe, regular_file, sealed_segment, segment_bytes,
};
pub use peer::{Heard, RawPeer, hello};
pub use resources::{Resources, cpu_ticks};
pub use ring::RawRing;
pub use server::{Greeted, RawServer};
pub use stats_alloc;
pub use victim::{Victim, methods};

/// How long a test waits for something that must happen: generous, for busy machines.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// Calls `done` until it gives something, for at most [`PATIENCE`].
///
/// # Panics
///
/// When it never does.
pub fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        if let Some(got) = done() {
            return got;
        }
        assert!(std::time::Instant::now() < deadline, "within {PATIENCE:?}: {what}");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// The full name of the test function it stands in, as `--exact` wants it.
#[macro_export]
macro_rules! test_name {
    () => {{
        fn here() {}
        let path = std::any::type_name_of_val(&here);
        let path = path.trim_end_matches("::here").trim_end_matches("::{{closure}}");
        path.split_once("::").map_or(path, |(_crate, name)| name)
    }};
}
