//! Bytes as a hostile peer sends them, through every decoder that runs before anything is agreed.

#![no_main]

use lapwing_testkit::fuzz_bodies;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzz_bodies::frames(data));
