use std::os::fd::{AsFd, OwnedFd};

use super::*;
use crate::memory::{OwnMemory, PeerMemory};
use crate::{Segment, SegmentError};

const RING: u32 = 64 * 1024;
const MIB: usize = 1024 * 1024;

/// A segment as its owner and as its peer see it.
fn seen_by_both() -> (OwnMemory, PeerMemory) {
    let (own, file) = Segment::create(RING).unwrap().export();
    (own, PeerMemory::import(file, RING).unwrap())
}

/// A sender and its peer, without a connection between.
struct Pair {
    pool: BlockPool,
    returns: Returns,
    segments: Vec<(u32, PeerSegment)>,
}

impl Pair {
    fn new(bytes_max: usize) -> Pair {
        let (own, peer) = seen_by_both();
        let pool = BlockPool::new(peer, bytes_max);
        Pair { pool, returns: Returns::new(own), segments: Vec::new() }
    }

    fn take(&mut self, bytes: usize) -> Result<OwnBlock, TakeError> {
        match self.pool.take(bytes) {
            Err(TakeError::NoSegment) => {}
            other => return other,
        }
        let fresh = self.pool.make(bytes).unwrap();
        let file = fresh.file.try_clone().unwrap();
        self.forget_retired();
        self.segments.push((fresh.number, PeerSegment::import(file, fresh.shape).unwrap()));
        self.pool.adopt(fresh);
        self.pool.take(bytes)
    }

    fn forget_retired(&mut self) -> usize {
        let retired = self.pool.take_retired();
        self.segments.retain(|(number, _)| !retired.contains(number));
        retired.len()
    }

    fn send(&mut self, payload: &[u8]) -> Result<(u32, u32), TakeError> {
        let mut block = self.take(payload.len())?;
        block.bytes_mut().copy_from_slice(payload);
        Ok(self.pool.lend(&mut block).unwrap())
    }

    fn read(&self, (segment, block): (u32, u32), bytes: usize) -> Vec<u8> {
        let (_, found) = self.segments.iter().find(|(number, _)| *number == segment).unwrap();
        found.copy_out(block, bytes).unwrap().bytes().to_vec()
    }
}

#[test]
fn payloads_of_every_class_arrive_and_blocks_come_back_in_any_order() {
    let mut pair = Pair::new(256 * MIB);
    let lengths = [1, 65_536, 65_537, MIB, MIB + 1, 10 * MIB, 33 * MIB];
    let mut held = Vec::new();
    for (n, length) in lengths.into_iter().enumerate() {
        let payload = vec![n as u8 + 1; length];
        let place = pair.send(&payload).unwrap();
        assert_eq!(pair.read(place, length), payload);
        held.push(place);
    }
    assert_eq!(pair.pool.lent(), lengths.len());
    for at in [3, 0, 4, 0, 1, 0, 0] {
        let (segment, block) = held.remove(at);
        pair.returns.give_back(segment, block);
    }
    assert!(pair.pool.has_room(1).unwrap());
    assert_eq!(pair.pool.lent(), 0);
}

#[test]
fn pool_at_its_bound_is_full_until_a_block_comes_back_and_serves_other_lengths_then() {
    let mut pair = Pair::new(4 * MIB);
    let places: Vec<_> = (0..4).map(|_| pair.send(&[1; MIB]).unwrap()).collect();
    assert!(matches!(pair.take(MIB), Err(TakeError::Full)));
    assert!(matches!(pair.take(1), Err(TakeError::Full)), "all bytes are in use");
    assert!(!pair.pool.has_room(1).unwrap());
    assert!(matches!(pair.take(5 * MIB), Err(TakeError::TooLong { max, .. }) if max == 4 * MIB));
    pair.returns.give_back(places[2].0, places[2].1);
    let again = pair.send(&[2; MIB]).unwrap();
    assert_eq!(again, places[2]);
    for place in [places[0], places[1], again, places[3]] {
        pair.returns.give_back(place.0, place.1);
    }
    // The segment of 1 MiB blocks has to go for this one.
    let long = pair.send(&[3; 3 * MIB]).unwrap();
    assert_eq!(pair.read(long, 3 * MIB), [3; 3 * MIB]);
    assert_eq!(pair.segments.len(), 1);
}

#[test]
fn block_that_is_dropped_unsent_is_free_again_and_a_lent_one_is_not() {
    let mut pair = Pair::new(MIB);
    for n in 0..100 {
        let mut block = pair.take(MIB).unwrap();
        block.bytes_mut()[0] = n;
        assert_eq!(block.bytes().len(), MIB);
    }
    let mut block = pair.take(MIB).unwrap();
    assert!(pair.pool.lend(&mut block).is_some());
    assert!(pair.pool.lend(&mut block).is_none(), "lent once");
    assert!(block.is_lent() && block.bytes().is_empty() && block.bytes_mut().is_empty());
    drop(block);
    assert!(matches!(pair.take(1), Err(TakeError::Full)));
}

#[test]
fn block_of_another_pool_cannot_be_lent() {
    let mut one = Pair::new(MIB);
    let mut other = Pair::new(MIB);
    let mut block = one.take(1).unwrap();
    other.take(1).unwrap();
    assert!(!other.pool.owns(&block));
    assert!(other.pool.lend(&mut block).is_none());
}

#[test]
fn sweep_retires_what_was_not_used_for_a_whole_period_and_nothing_that_is_out() {
    let mut pair = Pair::new(64 * MIB);
    let kept = pair.send(&[1; 70_000]).unwrap();
    let gone = pair.send(&[1; 5 * MIB]).unwrap();
    pair.returns.give_back(gone.0, gone.1);
    pair.pool.sweep().unwrap();
    assert_eq!(pair.forget_retired(), 0, "both were used since the last one");
    pair.pool.sweep().unwrap();
    assert_eq!(pair.forget_retired(), 1);
    assert_eq!(pair.pool.bytes(), 4 * MIB);
    pair.returns.give_back(kept.0, kept.1);
    for _ in 0..2 {
        pair.pool.sweep().unwrap();
    }
    pair.forget_retired();
    assert_eq!((pair.pool.bytes(), pair.segments.len()), (0, 0));
    assert_eq!(pair.send(&[1; 70_000]).unwrap().0, 2, "numbers are not used twice");
}

#[test]
fn returns_of_what_was_never_lent_are_misbehaviour() {
    type Fault = fn(&mut Pair, (u32, u32));
    let faults: [Fault; 5] = [
        |pair, (segment, _)| pair.returns.give_back(segment, 9_999),
        |pair, (_, block)| pair.returns.give_back(77, block),
        |pair, (segment, block)| {
            pair.returns.give_back(segment, block);
            pair.returns.give_back(segment, block);
        },
        |pair, (segment, block)| {
            // Another block that is free.
            pair.returns.give_back(segment, block + 1);
        },
        |pair, (segment, block)| (0..2000).for_each(|_| pair.returns.give_back(segment, block)),
    ];
    for fault in faults {
        let mut pair = Pair::new(64 * MIB);
        let place = pair.send(&[1; 100_000]).unwrap();
        fault(&mut pair, place);
        assert!(matches!(pair.pool.has_room(1), Err(TakeError::BadReturn)));
    }
}

#[test]
fn return_of_a_block_that_is_being_written_is_misbehaviour() {
    let mut pair = Pair::new(64 * MIB);
    let (segment, block) = pair.send(&[1; 100_000]).unwrap();
    let taken = pair.take(100_000).unwrap();
    pair.returns.give_back(segment, block + 1);
    assert!(matches!(pair.pool.has_room(1), Err(TakeError::BadReturn)));
    drop(taken);
}

#[test]
fn many_rounds_reuse_blocks_in_turn_and_the_list_wraps() {
    let mut pair = Pair::new(64 * MIB);
    for n in 0..5_000_u32 {
        let payload = n.to_le_bytes().repeat(20_000);
        let place = pair.send(&payload).unwrap();
        assert_eq!(pair.read(place, 4), payload[..4]);
        pair.returns.give_back(place.0, place.1);
    }
    assert_eq!(pair.segments.len(), 1);
}

#[test]
fn peer_segment_refuses_wrong_shapes_lengths_blocks_and_unsealed_files() {
    let mut pair = Pair::new(64 * MIB);
    drop(pair.take(MIB).unwrap());
    let fresh = pair.pool.make(MIB).unwrap();
    let file = || fresh.file.as_fd().try_clone_to_owned().unwrap();
    let import = |file: OwnedFd, block_bytes, blocks| {
        PeerSegment::import(file, BulkShape { block_bytes, blocks })
    };
    for (block_bytes, blocks) in [(0, 4), (MIB, 0), (MIB + 1, 4), (MIB / 32, 128), (MIB, 1025)] {
        assert!(matches!(import(file(), block_bytes, blocks), Err(SegmentError::Shape)));
    }
    assert!(matches!(import(file(), MIB, 3), Err(SegmentError::Length { .. })));
    let segment = import(file(), MIB, 4).unwrap();
    assert_eq!(segment.copy_out(3, MIB).unwrap().bytes().len(), MIB);
    assert!(segment.copy_out(4, 1).is_none() && segment.copy_out(0, MIB + 1).is_none());
    let unsealed = crate::sys::memory_file(4 * MIB).unwrap();
    assert!(matches!(import(unsealed, MIB, 4), Err(SegmentError::Unsealed(_))));
}
