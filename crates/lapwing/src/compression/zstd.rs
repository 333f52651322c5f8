//! The zstd library, one frame at a time.
//!
//! Its contexts belong to no connection: there are no more of them than threads that compress or expand at
//! the same moment, and those that are not used go back to the system.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use zstd_safe::{CCtx, DCtx};

use crate::client::lock;

/// Measured (`cost_of_levels_and_lengths` below) with 16 KiB of source code: level 1 takes 43 us and leaves 30 %, 2
/// takes 46 us for the same, 3 takes 51 us and leaves 28 %, -1 takes 39 us and leaves 36 %.
const LEVEL: i32 = 1;

/// Contexts kept for the next payload, at most. A compressor takes up to 570 KiB, an expander 94 KiB.
const CONTEXTS_KEPT: usize = 4;

/// Contexts of one sort that are not in use, each with whether it was used since the last sweep.
struct Pool<T> {
    idle: Mutex<Vec<(T, bool)>>,
    /// How many there are.
    count: AtomicUsize,
}

static COMPRESSORS: Pool<CCtx<'static>> = Pool::new();
static EXPANDERS: Pool<DCtx<'static>> = Pool::new();

impl<T> Pool<T> {
    const fn new() -> Pool<T> {
        Pool { idle: Mutex::new(Vec::new()), count: AtomicUsize::new(0) }
    }

    /// Runs `work` with a context; `None` if there is no memory for one.
    fn with<R>(&self, make: fn() -> Option<T>, work: impl FnOnce(&mut T) -> R) -> Option<R> {
        let kept = lock(&self.idle).pop();
        let mut context = match kept {
            Some((context, _)) => context,
            None => make()?,
        };
        let done = work(&mut context);
        let mut idle = lock(&self.idle);
        if idle.len() < CONTEXTS_KEPT {
            idle.push((context, true));
        }
        self.count_now(&idle);
        Some(done)
    }

    fn sweep(&self) {
        let mut idle = lock(&self.idle);
        idle.retain_mut(|(_, used)| std::mem::replace(used, false));
        self.count_now(&idle);
    }

    fn clear(&self) {
        let mut idle = lock(&self.idle);
        idle.clear();
        self.count_now(&idle);
    }

    fn count_now(&self, idle: &MutexGuard<'_, Vec<(T, bool)>>) {
        self.count.store(idle.len(), Ordering::Relaxed);
    }
}

/// Whether there are contexts to be swept.
pub(super) fn has_contexts() -> bool {
    COMPRESSORS.count.load(Ordering::Relaxed) + EXPANDERS.count.load(Ordering::Relaxed) > 0
}

/// Gives contexts back to the system that were not used since the last time.
pub(super) fn sweep_contexts() {
    COMPRESSORS.sweep();
    EXPANDERS.sweep();
}

/// Gives all contexts that are not in use back to the system.
pub(super) fn clear_contexts() {
    COMPRESSORS.clear();
    EXPANDERS.clear();
}

/// The payload as one zstd frame that says its length; `None` if it has more than about `most` bytes or
/// the system has no memory left.
pub(super) fn compress(payload: &[u8], most: usize) -> Option<Vec<u8>> {
    let mut compressed = Vec::with_capacity(most);
    let work = |context: &mut CCtx<'_>| context.compress(&mut compressed, payload, LEVEL).is_ok();
    COMPRESSORS.with(CCtx::try_create, work)?.then_some(compressed)
}

/// Expands one zstd frame, which has to be all of `compressed` and to fill `expanded`. The library writes
/// nothing outside `expanded`, whatever the frame says.
///
/// # Errors
///
/// What the peer did.
pub(super) fn expand(expanded: &mut [u8], compressed: &[u8]) -> Result<(), &'static str> {
    let whole = zstd_safe::find_frame_compressed_size(compressed);
    if whole != Ok(compressed.len()) {
        return Err("a compressed payload ends early, or something follows it");
    }
    let length = expanded.len();
    let work = |context: &mut DCtx<'_>| context.decompress(expanded, compressed).ok();
    match EXPANDERS.with(DCtx::try_create, work) {
        Some(Some(written)) if written == length => Ok(()),
        _ => Err("a compressed payload does not expand to the length that it says"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// `cargo test --release -p lapwing --lib cost_of_levels -- --ignored --nocapture` prints, for this crate's own
    /// source code and for bytes that do not shrink, what is left and the least time that each side takes.
    #[test]
    #[ignore = "a measurement"]
    fn cost_of_levels_and_lengths() {
        let source = include_bytes!("../client/core.rs");
        let mut state = 1_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        let noise: Vec<u8> = (0..source.len()).map(|_| next()).collect();
        let (mut compressor, mut expander) = (CCtx::create(), DCtx::create());
        for level in [-1, 1, 2, 3] {
            for (name, bytes) in [("source", &source[..]), ("noise", &noise)] {
                for length in [256, 512, 1024, 4096, 16_384] {
                    let (mut left, mut out, mut back) = (0, u128::MAX, u128::MAX);
                    for round in 0..200 {
                        let at = round * 997 % (bytes.len() - length);
                        let payload = &bytes[at..at + length];
                        let mut compressed = Vec::with_capacity(length + 64);
                        let begun = Instant::now();
                        compressor.compress(&mut compressed, payload, level).unwrap();
                        out = out.min(begun.elapsed().as_nanos());
                        left += 100 * compressed.len();
                        let mut expanded = vec![0; length];
                        let begun = Instant::now();
                        expander.decompress(&mut expanded[..], &compressed).unwrap();
                        back = back.min(begun.elapsed().as_nanos());
                        assert_eq!(expanded, payload);
                    }
                    let left = left / 200 / length;
                    println!("level {level}, {name}, {length} B: {left} %, {out} + {back} ns");
                }
            }
            let held = (compressor.sizeof(), expander.sizeof());
            println!("level {level}: contexts of {} and {} bytes", held.0, held.1);
        }
    }

    #[test]
    fn contexts_are_kept_up_to_a_number_and_swept_when_unused() {
        static POOL: Pool<u8> = Pool::new();
        fn nested(depth: usize) {
            if depth > 0 {
                POOL.with(|| Some(0), |_| nested(depth - 1)).unwrap();
            }
        }
        nested(CONTEXTS_KEPT + 3);
        assert_eq!(POOL.count.load(Ordering::Relaxed), CONTEXTS_KEPT);
        POOL.sweep();
        assert_eq!(POOL.count.load(Ordering::Relaxed), CONTEXTS_KEPT, "used since");
        nested(1);
        POOL.sweep();
        assert_eq!(POOL.count.load(Ordering::Relaxed), 1);
        POOL.clear();
        assert_eq!(POOL.count.load(Ordering::Relaxed), 0);
        assert_eq!(POOL.with(|| None, |_| ()), None);
    }
}
