//! The clock that both sides of a connection read, where they agreed that they do: how much of a call's time is over
//! when its turn comes, wherever it has waited.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use lapwing_proto::TimeLeft;

use crate::platform::{self, TICK};

/// One moment on both clocks. Of a few pairs of looks the closest counts, for something may come between; and of its two
/// instants the later, so that none that is told of a time is too early.
static ORIGIN: LazyLock<(Instant, u64)> = LazyLock::new(|| {
    let look = |_| {
        let (before, at_ns) = (Instant::now(), platform::monotonic_ns());
        let after = Instant::now();
        (after - before, (after, at_ns))
    };
    let pairs = (0..8).map(look).min_by_key(|(apart, _)| *apart);
    pairs.expect("there are eight").1
});

/// The time that a call has which is sent now and given up at `deadline`.
#[inline]
pub(crate) fn until(deadline: Instant) -> TimeLeft {
    let now = Instant::now();
    let (origin, origin_ns) = *ORIGIN;
    // The origin may have been made only now.
    let since = now.saturating_duration_since(origin);
    TimeLeft {
        remaining_us: micros(deadline.saturating_duration_since(now)),
        sent_at_ns: origin_ns.saturating_add(nanos(since)),
    }
}

/// The time that a call has which is sent now and given up when `left` is over. By the tick before: that look costs a
/// quarter of the other one.
#[inline]
pub(crate) fn from_now(left: Duration) -> TimeLeft {
    TimeLeft { remaining_us: micros(left), sent_at_ns: platform::monotonic_tick_ns() }
}

/// As [`from_now`], where what is left is in nanoseconds.
#[inline]
pub(crate) fn from_now_ns(left_ns: u64) -> TimeLeft {
    TimeLeft { remaining_us: left_ns / 1_000, sent_at_ns: platform::monotonic_tick_ns() }
}

/// When a call ends that had so much time when it was sent, in nanoseconds of the clock.
#[inline]
pub(crate) fn end(time: TimeLeft) -> u64 {
    time.sent_at_ns.saturating_add(time.remaining_us.saturating_mul(1_000))
}

/// Where more than this is left the last tick is good enough: it comes late where the machine that counts the ticks is
/// itself kept waiting.
const PLENTY: Duration = Duration::from_secs(1);

/// What is left of a call's time, in nanoseconds: exact where it is little, else within a tick.
#[inline]
pub(crate) fn left_ns(ends_at_ns: u64) -> u64 {
    match ends_at_ns.checked_sub(platform::monotonic_tick_ns()) {
        Some(left) if left > nanos(PLENTY) => left,
        _ => ends_at_ns.saturating_sub(platform::monotonic_ns()),
    }
}

/// What a frame tells of its call's time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    /// What was left when it was sent, in microseconds.
    pub(crate) remaining_us: u64,
    /// When that is over, in nanoseconds of the clock.
    pub(crate) ends_at_ns: u64,
}

impl Told {
    /// Of a call that was sent with this, by a sender that reads the same clock.
    #[inline]
    pub(crate) fn sent(time: TimeLeft) -> Told {
        Told { remaining_us: time.remaining_us, ends_at_ns: end(time) }
    }

    /// Of a call that has this much time from now on, where its sender reads another clock.
    #[cold]
    pub(crate) fn now(left: Duration) -> Told {
        Told::sent(TimeLeft { remaining_us: micros(left), sent_at_ns: platform::monotonic_ns() })
    }
}

/// When a call without a deadline ends, in nanoseconds of the clock.
pub(crate) const NEVER: u64 = u64::MAX;

/// The deadline, in nanoseconds of the clock, that the handler of a call sees which begins now and by [`left_ns`] has this
/// much time yet: never more than it was given. Where there is plenty it may be a tick early, and no look at the clock is
/// taken; when the call is ended is [`enforced`]'s to say.
#[inline]
pub(crate) fn deadline_ns(told: Told, left_ns: u64) -> u64 {
    at_latest(told, told.ends_at_ns.saturating_sub(left_ns))
}

/// When a call is ended here that goes on now: not before its sender ends it, who may have said a tick too early when it
/// was sent, and not later than if it had been sent now. `None` is too far for the clock.
pub(crate) fn enforced(told: Told) -> Option<Instant> {
    instant(at_latest(told, platform::monotonic_ns()))
}

#[inline]
fn at_latest(told: Told, now_ns: u64) -> u64 {
    let from_now = end(TimeLeft { remaining_us: told.remaining_us, sent_at_ns: now_ns });
    from_now.min(told.ends_at_ns.saturating_add(nanos(TICK)))
}

/// The same time on the clock of this process; `None` is never, or too far for it.
#[inline]
pub(crate) fn instant(at_ns: u64) -> Option<Instant> {
    if at_ns == NEVER {
        return None;
    }
    let (origin, origin_ns) = *ORIGIN;
    match at_ns.checked_sub(origin_ns) {
        Some(after) => origin.checked_add(Duration::from_nanos(after)),
        None => origin.checked_sub(Duration::from_nanos(origin_ns - at_ns)),
    }
}

/// Whole nanoseconds, or the most there are.
#[inline]
pub(crate) fn nanos(time: Duration) -> u64 {
    time.as_secs().saturating_mul(1_000_000_000).saturating_add(time.subsec_nanos().into())
}

/// Whole microseconds, as a deadline is told.
#[inline]
fn micros(time: Duration) -> u64 {
    time.as_secs().saturating_mul(1_000_000).saturating_add(time.subsec_micros().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn sent_before(time: Duration) -> u64 {
        platform::monotonic_ns() - nanos(time)
    }

    fn left_of(remaining: Duration, sent_at_ns: u64) -> Duration {
        let time = TimeLeft { remaining_us: micros(remaining), sent_at_ns };
        Duration::from_nanos(left_ns(end(time)))
    }

    #[test]
    fn time_that_a_call_has_waited_is_taken_off() {
        let half = left_of(SECOND, sent_before(SECOND / 2));
        assert!(half <= SECOND / 2 && half > SECOND / 4, "{half:?}");
        let most = left_of(8 * SECOND, sent_before(SECOND));
        assert!(most <= 7 * SECOND + TICK && most > 6 * SECOND, "{most:?}");
        assert_eq!(left_of(SECOND, sent_before(SECOND)), Duration::ZERO);
        assert_eq!(left_of(SECOND, 0), Duration::ZERO);
        assert_eq!(left_of(Duration::ZERO, sent_before(Duration::ZERO)), Duration::ZERO);
        assert!(left_of(Duration::MAX, u64::MAX) > SECOND);
    }

    #[test]
    fn little_time_is_exact_to_less_than_a_tick() {
        let short = TICK / 4;
        assert!(left_of(short, sent_before(Duration::ZERO)) <= short);
        assert_eq!(left_of(short, sent_before(short + Duration::from_micros(1))), Duration::ZERO);
    }

    #[test]
    fn sending_says_what_is_left_and_when() {
        let before = platform::monotonic_ns();
        let exact = until(Instant::now() + SECOND);
        let rough = from_now(SECOND);
        let after = platform::monotonic_ns();
        assert!((900_000..=1_000_000).contains(&exact.remaining_us), "{exact:?}");
        // The origin's two looks are not at one time.
        let slack = 1_000_000;
        assert!((before - slack..=after + slack).contains(&exact.sent_at_ns), "{before} {exact:?}");
        assert_eq!(rough.remaining_us, 1_000_000);
        assert!((before - nanos(TICK)..=after).contains(&rough.sent_at_ns), "{before} {rough:?}");
        assert_eq!(until(Instant::now() - SECOND).remaining_us, 0);
    }

    #[test]
    fn instants_and_the_clock_go_together() {
        for ahead in [true, false] {
            let (before, at_ns) = (Instant::now(), platform::monotonic_ns());
            let after = Instant::now();
            // The origin's two looks are not at one time.
            let slack = Duration::from_millis(1);
            let (at_ns, from, to) = match ahead {
                true => (at_ns + nanos(SECOND), before + SECOND, after + SECOND),
                false => (at_ns - nanos(SECOND), before - SECOND, after - SECOND),
            };
            let at = instant(at_ns).unwrap();
            assert!(at >= from - slack && at <= to + slack, "{ahead}");
        }
    }

    #[test]
    fn running_call_is_ended_when_its_sender_ends_it_and_not_a_tick_before() {
        let ends_at = |waited: Duration| {
            let time = TimeLeft { remaining_us: micros(SECOND), sent_at_ns: sent_before(waited) };
            enforced(Told::sent(time)).unwrap()
        };
        let now = Instant::now();
        assert!(ends_at(Duration::ZERO) >= now + SECOND);
        assert!(ends_at(TICK) >= now + SECOND, "a tick may be the clock's");
        let waited = SECOND / 2;
        assert!(ends_at(waited) >= now + SECOND - waited);
        let latest = Instant::now() + SECOND - waited + 2 * TICK;
        assert!(ends_at(waited) <= latest);
        let for_ever = Told { remaining_us: micros(SECOND), ends_at_ns: u64::MAX };
        assert!(enforced(for_ever).unwrap() <= Instant::now() + SECOND);
    }

    #[test]
    fn handler_with_plenty_of_time_has_no_more_than_it_was_given() {
        for _ in 0..100 {
            let given = 3 * PLENTY;
            let time = from_now(given);
            let at = instant(deadline_ns(Told::sent(time), left_ns(end(time)))).unwrap();
            assert!(at <= Instant::now() + given);
            std::thread::sleep(TICK / 100);
        }
        let for_ever = Told { remaining_us: micros(SECOND), ends_at_ns: u64::MAX };
        let most = instant(deadline_ns(for_ever, left_ns(u64::MAX))).unwrap();
        assert!(most <= Instant::now() + SECOND);
    }

    #[test]
    fn process_shares_its_clock_with_itself_and_with_no_process_that_is_not_there() {
        assert!(platform::shares_clock(std::process::id().cast_signed()));
        assert!(!platform::shares_clock(i32::MAX));
    }
}
