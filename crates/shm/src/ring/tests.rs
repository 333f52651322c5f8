use super::*;
use crate::layout::{self, LINE_BYTES};
use crate::memory::{OwnMemory, PeerMemory};
use crate::segment::Segment;
use crate::sync::Ordering;

const RING: u32 = 64 * 1024;

/// Both ends of one ring, and the memory behind the producer for scribbling.
fn ring() -> (Producer, Consumer, OwnMemory, OwnMemory) {
    let (near, near_file) = Segment::create(RING).unwrap().export();
    let (far, far_file) = Segment::create(RING).unwrap().export();
    let near_seen = PeerMemory::import(near_file, RING).unwrap();
    let far_seen = PeerMemory::import(far_file, RING).unwrap();
    let producer = Producer::new(near.clone(), far_seen);
    (producer, Consumer::new(far.clone(), near_seen), near, far)
}

fn take(consumer: &mut Consumer, bytes: usize) -> Option<Vec<u8>> {
    let record = consumer.peek().unwrap()?;
    assert_eq!(record.span(), layout::record_span(bytes));
    let mut body = Vec::new();
    record.append(0, bytes, &mut body);
    record.release();
    Some(body)
}

/// A body whose bytes depend on its length and number.
fn body(n: usize, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i.wrapping_mul(31) ^ n.wrapping_mul(17)) as u8).collect()
}

#[test]
fn records_of_every_small_length_come_out_as_they_went_in_over_many_laps() {
    let (mut producer, mut consumer, ..) = ring();
    for n in 0..20_000 {
        let bytes = n % 301;
        let sent = body(n, bytes);
        match n % 4 {
            0 => producer.push(&sent).unwrap(),
            3 if bytes >= 48 => {
                let (head, tail) = sent.split_at(48);
                let (words, _) = head.as_chunks();
                let words: [u64; 6] = std::array::from_fn(|n| u64::from_ne_bytes(words[n]));
                producer.push_words(words, tail).unwrap();
                let record = consumer.peek().unwrap().unwrap();
                assert_eq!(record.read_words(24), [words[3], words[4], words[5]]);
            }
            1 if bytes >= 24 => {
                let (head, tail) = sent.split_first_chunk::<24>().unwrap();
                let word = |n: usize| u64::from_ne_bytes(head[8 * n..][..8].try_into().unwrap());
                producer.push_words([word(0), word(1), word(2)], tail).unwrap();
                let record = consumer.peek().unwrap().unwrap();
                assert_eq!(record.read_words(0), [word(0), word(1), word(2)]);
            }
            _ => {
                let mut reservation = producer.reserve(bytes).unwrap();
                reservation.write(0, &sent[..bytes / 2]);
                reservation.write(bytes / 2, &sent[bytes / 2..]);
                reservation.commit();
            }
        }
        assert_eq!(take(&mut consumer, bytes).unwrap(), sent, "record {n}");
        assert!(consumer.peek().unwrap().is_none());
    }
}

#[test]
fn longest_record_fits_and_one_byte_more_is_refused() {
    let (mut producer, mut consumer, ..) = ring();
    let max = layout::body_bytes_max(RING);
    for n in 0..10 {
        let sent = body(n, max);
        producer.push(&sent).unwrap();
        assert_eq!(take(&mut consumer, max).unwrap(), sent);
    }
    let refused = producer.push(&vec![0; max + 1]);
    assert_eq!(refused, Err(ReserveError::TooLong { body_bytes: max + 1, max }));
}

#[test]
fn full_ring_refuses_and_takes_again_after_the_reader_published() {
    let (mut producer, mut consumer, ..) = ring();
    let mut sent = 0;
    while producer.push(&body(sent, 56)).is_ok() {
        sent += 1;
    }
    // All but one line: the next record's commit word needs one.
    assert_eq!(sent, RING as usize / LINE_BYTES - 1);
    assert_eq!(producer.push(&[]), Err(ReserveError::Full));
    assert!(!producer.has_room(0).unwrap());
    assert_eq!(take(&mut consumer, 56).unwrap(), body(0, 56));
    assert_eq!(producer.push(&[]), Err(ReserveError::Full), "not published yet");
    assert!(consumer.publish());
    assert!(!consumer.publish(), "nothing new");
    producer.push(&body(sent, 56)).unwrap();
    for n in 1..=sent {
        assert_eq!(take(&mut consumer, 56).unwrap(), body(n, 56));
    }
    assert!(consumer.peek().unwrap().is_none());
}

#[test]
fn release_publishes_every_quarter_of_the_ring() {
    let (mut producer, mut consumer, ..) = ring();
    let mut published = 0;
    for n in 0..4 * RING as usize / LINE_BYTES {
        producer.push(&body(n, 8)).unwrap();
        published += usize::from(consumer.peek().unwrap().unwrap().release());
    }
    assert_eq!(published, 16);
}

#[test]
fn aborted_reservation_publishes_nothing_and_the_next_takes_its_place() {
    let (mut producer, mut consumer, ..) = ring();
    let mut reservation = producer.reserve(40).unwrap();
    reservation.write(0, b"never seen");
    reservation.abort();
    let mut dropped = producer.reserve(400).unwrap();
    dropped.write(100, &[7; 300]);
    drop(dropped);
    assert!(consumer.peek().unwrap().is_none());
    producer.push(b"seen").unwrap();
    assert_eq!(take(&mut consumer, 4).unwrap(), b"seen");
    assert!(consumer.peek().unwrap().is_none(), "what the aborted one wrote is no commit word");
}

#[test]
fn peek_without_release_keeps_the_record() {
    let (mut producer, mut consumer, ..) = ring();
    producer.push(b"once").unwrap();
    assert!(consumer.peek().unwrap().is_some());
    assert_eq!(take(&mut consumer, 4).unwrap(), b"once");
}

#[test]
fn records_that_wait_are_looked_at_as_far_as_asked_and_as_they_are_whole() {
    let (mut producer, mut consumer, near, _) = ring();
    let is = |word: u64| move |first: u64| first == word;
    assert!(!consumer.any_ahead(64, |_| true), "an empty ring");
    // Over many laps, in records of one line and of several.
    for lap in 0..2000 {
        for n in 0..5 {
            producer.push_words([n, 0, 0], &body(0, 70 * (n as usize))).unwrap();
        }
        for n in 0..5 {
            assert!(consumer.any_ahead(n as usize + 1, is(n)), "{lap} {n}");
            assert!(!consumer.any_ahead(n as usize, is(n)), "{lap} {n}");
        }
        assert!(!consumer.any_ahead(64, is(5)));
        for n in 0..5 {
            take(&mut consumer, 24 + 70 * n).unwrap();
        }
    }
    // What an honest producer never writes ends the look.
    producer.push_words([1, 0, 0], &[]).unwrap();
    let position = consumer.position();
    let next = layout::RING + ((position + 64) & u64::from(RING - 1)) as usize;
    let lap = u64::from(RING);
    for commit in [1, position, position + 64, position + 65, position + lap + 64, u64::MAX] {
        near.store(next, commit, Ordering::Relaxed);
        near.store(next + 8, 2, Ordering::Relaxed);
        assert!(!consumer.any_ahead(64, is(2)), "{commit}");
    }
}

#[test]
fn impossible_commit_words_are_refused_each_by_name() {
    let lap = u64::from(RING);
    let cases = |position: u64| {
        [
            (position + 1, "unaligned"),
            (position + 65, "unaligned"),
            (u64::MAX, "unaligned"),
            (position + lap + 64, "lap"),
            (u64::MAX - 63, "lap"),
            (1 << 63, "lap"),
        ]
    };
    for (commit, kind) in
        cases(0).into_iter().chain(cases(128)).chain([(128, "behind"), (64, "behind")])
    {
        let (mut producer, mut consumer, memory, _) = ring();
        let behind_or_far = commit < 192 && kind == "behind";
        let position = if behind_or_far || commit > 128 && commit < 1000 { 128 } else { 0 };
        for _ in 0..position / 64 {
            producer.push(b"x").unwrap();
            consumer.peek().unwrap().unwrap().release();
        }
        memory.store(layout::RING + position as usize, commit, Ordering::Release);
        let error = consumer.peek().unwrap_err();
        let found = match error {
            BadCommit::Unaligned { .. } => "unaligned",
            BadCommit::Behind { .. } => "behind",
            BadCommit::LapAhead { .. } => "lap",
        };
        assert_eq!(found, kind, "commit {commit} at {position}: {error}");
        assert_eq!(consumer.position(), position, "nothing is skipped or repaired");
    }
}

#[test]
fn impossible_consumed_words_are_refused() {
    // Ahead of what was written, unaligned, and (after some progress) back.
    for (first, second) in [(1 << 20, None), (65, None), (64, Some(0)), (u64::MAX, None)] {
        let (mut producer, _consumer, _, far) = ring();
        while producer.push(&[0; 56]).is_ok() {}
        far.store(layout::CONSUMED, first, Ordering::Release);
        let mut result = producer.push(&[0; 56]);
        if let Some(second) = second {
            result.unwrap();
            far.store(layout::CONSUMED, second, Ordering::Release);
            result = producer.push(&[0; 56]);
        }
        assert!(matches!(result, Err(ReserveError::BadConsumed { .. })), "{first} {second:?}");
    }
}

#[test]
fn producer_and_consumer_threads_agree_on_a_hundred_thousand_records() {
    let (mut producer, mut consumer, ..) = ring();
    let writer = std::thread::spawn(move || {
        for n in 0..100_000_usize {
            let sent = body(n, n % 500);
            while producer.push(&sent) == Err(ReserveError::Full) {
                std::thread::yield_now();
            }
        }
    });
    for n in 0..100_000_usize {
        loop {
            if let Some(found) = take(&mut consumer, n % 500) {
                assert_eq!(found, body(n, n % 500), "record {n}");
                break;
            }
            consumer.publish();
            std::thread::yield_now();
        }
    }
    writer.join().unwrap();
}
