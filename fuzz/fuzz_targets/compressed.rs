//! A compressed payload as a hostile peer sends it: its header, then what expands it.

#![no_main]

use lapwing_testkit::fuzz_bodies;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzz_bodies::compressed(data));
