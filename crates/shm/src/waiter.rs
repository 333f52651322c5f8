//! How long to look before sleeping.

use std::hint;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::sys;

/// The longest that an adaptive waiter spins for one message: about what going to sleep and being
/// woken on another core costs (measured at 43 to 52 us a round trip; `docs/memory.md`).
pub const SPIN_BOUND: Duration = Duration::from_micros(50);

/// Polls before the first `pause` and the first look at the clock (about 25 ns each): about a
/// microsecond, which a busy conversation's next message does not exceed.
const EAGER_POLLS: u32 = 1024;

/// Polls with `pause` between two looks at the clock.
const POLLS_PER_CLOCK: u32 = 16;

/// Who waits by looking, and who by sleeping.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Spin {
    /// Sleep at once.
    Never,
    /// Look for up to [`SPIN_BOUND`] while recent messages came faster than that; never with one
    /// core, never by more waiters of this process at once than cores minus one.
    #[default]
    Adaptive,
    /// Look until it comes, at the price of a core. Idle connections burn one, too.
    Always,
}

/// Waiters of this process that spin with `pause` right now.
static SPINNING: AtomicUsize = AtomicUsize::new(0);

/// Cores, as counted once: adaptive waiters of this process are fewer.
#[must_use]
pub fn spin_cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(sys::online_cores)
}

/// A place among the spinning waiters of this process.
struct Place;

impl Place {
    fn take() -> Option<Place> {
        let limit = spin_cores() - 1;
        // Relaxed: the count guards nothing but itself.
        if SPINNING.fetch_add(1, Ordering::Relaxed) < limit {
            return Some(Place);
        }
        SPINNING.fetch_sub(1, Ordering::Relaxed);
        None
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        SPINNING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One waiter's memory of how fast messages came lately.
#[derive(Debug)]
pub struct Spinner {
    spin: Spin,
    /// Moving average of recent gaps, in nanoseconds, clipped at four bounds.
    gap_ns: u64,
}

impl Spinner {
    /// A waiter that has seen nothing yet. It is ready to spin: a conversation begins with the
    /// first message.
    #[must_use]
    pub fn new(spin: Spin) -> Spinner {
        Spinner { spin, gap_ns: 0 }
    }

    /// The policy.
    #[must_use]
    pub fn policy(&self) -> Spin {
        self.spin
    }

    /// Whether the next wait begins with looking.
    #[must_use]
    #[inline]
    pub fn is_warm(&self) -> bool {
        match self.spin {
            Spin::Never => false,
            Spin::Always => true,
            Spin::Adaptive => self.gap_ns < bound_ns() && spin_cores() > 1,
        }
    }

    /// Looks with `ready` until it says yes, `limit` has passed, or the policy says to sleep.
    /// Returns whether `ready` said yes. `Always` spins for all of `limit`.
    #[inline]
    pub fn spin(&mut self, limit: Duration, mut ready: impl FnMut() -> bool) -> bool {
        if !self.is_warm() {
            return false;
        }
        for _ in 0..EAGER_POLLS {
            if ready() {
                self.gap_ns -= self.gap_ns / 4;
                return true;
            }
        }
        self.spin_slowly(limit, ready)
    }

    fn spin_slowly(&mut self, limit: Duration, mut ready: impl FnMut() -> bool) -> bool {
        let always = self.spin == Spin::Always;
        let place = if always { None } else { Place::take() };
        if !always && place.is_none() {
            return false;
        }
        let limit = if always { limit } else { limit.min(SPIN_BOUND) };
        let begun = Instant::now();
        loop {
            for _ in 0..POLLS_PER_CLOCK {
                hint::spin_loop();
                if ready() {
                    self.saw_gap(begun.elapsed());
                    return true;
                }
            }
            if begun.elapsed() >= limit {
                return false;
            }
        }
    }

    /// Tells how long this side slept for a message. What being woken costs is not the peer's
    /// slowness and is taken off.
    pub fn slept(&mut self, gap: Duration) {
        self.saw_gap(gap.saturating_sub(SPIN_BOUND / 2));
    }

    /// Tells how long a wait took that [`Spinner::spin`] did not see the end of.
    pub fn saw_gap(&mut self, gap: Duration) {
        let most = 4 * bound_ns();
        let gap_ns = u64::try_from(gap.as_nanos()).unwrap_or(most).min(most);
        self.gap_ns = (3 * self.gap_ns + gap_ns) / 4;
    }
}

fn bound_ns() -> u64 {
    SPIN_BOUND.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adaptive_goes_cold_after_long_gaps_and_warm_after_short_ones() {
        let mut spinner = Spinner::new(Spin::Adaptive);
        if spin_cores() < 2 {
            assert!(!spinner.is_warm(), "never with one core");
            return;
        }
        assert!(spinner.is_warm());
        spinner.saw_gap(Duration::from_secs(1));
        spinner.saw_gap(Duration::from_secs(1));
        assert!(!spinner.is_warm());
        for _ in 0..8 {
            spinner.saw_gap(Duration::from_micros(20));
        }
        assert!(spinner.is_warm());
    }

    #[test]
    fn never_does_not_look_and_always_looks_for_the_whole_limit() {
        let mut looked = 0;
        assert!(!Spinner::new(Spin::Never).spin(SPIN_BOUND, || {
            looked += 1;
            true
        }));
        assert_eq!(looked, 0);
        let begun = Instant::now();
        assert!(!Spinner::new(Spin::Always).spin(Duration::from_millis(3), || false));
        assert!(begun.elapsed() >= Duration::from_millis(3));
    }

    #[test]
    fn places_are_fewer_than_cores_and_given_back() {
        let places: Vec<_> = std::iter::from_fn(Place::take).collect();
        assert!(places.len() < spin_cores());
        drop(places);
        assert_eq!(Place::take().is_some(), spin_cores() > 1);
    }
}
