//! What a port to another system must supply, and nothing else of the crate may ask the system for:
//!
//! - `memory_file(bytes)`: an anonymous, close-on-exec memory file of that length, all zero;
//! - `seal(file)`: from now on nobody, this process included, can shrink, grow or newly map it for writing,
//!   while mappings that exist go on working; `check_sealed(file, bytes)`: whether a file from a peer is
//!   of that kind, sealed so, and of exactly that length;
//! - [`Doorbell`]: an object that crosses processes as a file descriptor, wakes a sleeper when rung, does
//!   not block the ringer, and needs no reading;
//! - [`Poller`]: sleeping on one doorbell and one socket at once, with a time limit;
//! - [`online_cores`], [`pin_to_core`]: how many cores there are, and staying on one.
//!
//! `processor.rs` holds what depends on the processor alone: a hint, `prefetch`.
//!
//! Mapping itself (`mapping.rs`) is POSIX, with the double mapping by fixed addresses.

mod processor;
pub(crate) use processor::{prefetch, prefetch_to_write};

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use linux::{Doorbell, DoorbellError, Poller, Wake, online_cores, pin_to_core};
#[cfg(target_os = "linux")]
pub(crate) use linux::{SealFault, check_sealed, memory_file, seal};

#[cfg(not(target_os = "linux"))]
compile_error!("lapwing-shm has no port to this system yet: see crates/shm/src/sys/mod.rs");
