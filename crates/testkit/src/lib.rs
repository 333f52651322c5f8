//! Two-process and hostile-peer helpers for the tests of Lapwing, and what its fuzz targets run.

#![forbid(unsafe_code)]

pub mod fuzz_bodies;
