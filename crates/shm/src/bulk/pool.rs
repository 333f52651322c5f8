//! The blocks that this side lends.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use super::{BadFreed, BulkShape, ReturnedBlocks};
use crate::layout;
use crate::memory::{OwnBulk, PeerMemory};
use crate::segment::{SegmentError, seal_error};
use crate::sys;

/// A segment of small blocks is about so long, in bytes. Blocks are used in turn, so this is also what a
/// steady flow of messages cycles through: few enough bytes to stay in a cache, enough of them not to write
/// to what the peer has just read (`docs/memory.md`, section 11).
const SEGMENT_BYTES: usize = 4 * 1024 * 1024;

/// Powers of two that a block may be long.
const CLASSES: usize =
    (layout::BLOCK_BYTES_MAX.ilog2() - layout::BLOCK_BYTES_MIN.ilog2() + 1) as usize;

/// Which block: number of its segment, and its own in there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct BlockId {
    segment: u32,
    block: u32,
}

/// Where a block is (invariant B1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Free,
    /// It has an [`OwnBlock`].
    Taken,
    Lent,
}

/// Blocks whose [`OwnBlock`] was dropped unsent.
type Bin = Arc<Mutex<Vec<BlockId>>>;

/// The bulk memory of one side of a connection.
///
/// It makes segments up to a bound, and knows no clock: [`BlockPool::sweep`] is called now and then, and
/// retires what was not used since the last time.
#[derive(Debug)]
pub struct BlockPool {
    returned: ReturnedBlocks,
    segments: Vec<OwnSegment>,
    free: [VecDeque<BlockId>; CLASSES],
    next_number: u32,
    bytes: usize,
    bytes_max: usize,
    /// Blocks that are not free.
    out: usize,
    lent: usize,
    bin: Bin,
    retired: Vec<u32>,
}

#[derive(Debug)]
struct OwnSegment {
    number: u32,
    memory: Arc<OwnBulk>,
    shape: BulkShape,
    places: Vec<Place>,
    /// Blocks that are not free.
    out: u32,
    /// Used since the last sweep.
    used: bool,
}

/// A segment that was made and is to be announced, then given to [`BlockPool::adopt`].
#[derive(Debug)]
pub struct FreshSegment {
    /// This side's number for it: one more than the last one's.
    pub number: u32,
    /// How it is divided.
    pub shape: BulkShape,
    /// To be sent to the peer, then closed.
    pub file: OwnedFd,
    memory: OwnBulk,
}

/// Why there is no block.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// All that may be are lent: wait until the peer gives one back.
    #[error("the connection's bulk memory is used up until the peer gives some back")]
    Full,
    /// There is none, and there may be more: see [`BlockPool::make`].
    #[error("another bulk segment is needed")]
    NoSegment,
    /// No block can ever be so long.
    #[error("a payload of {bytes} bytes does not fit bulk memory of {max} bytes")]
    TooLong {
        /// The length asked for, in bytes.
        bytes: usize,
        /// The most this side may have, in bytes.
        max: usize,
    },
    /// The peer gave back what was not lent to it, or more than that.
    #[error("the peer gave back a block that was not lent to it")]
    BadReturn,
}

impl From<BadFreed> for TakeError {
    fn from(_: BadFreed) -> TakeError {
        TakeError::BadReturn
    }
}

impl BlockPool {
    /// A pool of nothing, which may make segments of `bytes_max` bytes in all and reads which blocks came back
    /// from `peer`.
    #[must_use]
    pub fn new(peer: PeerMemory, bytes_max: usize) -> BlockPool {
        BlockPool {
            returned: ReturnedBlocks::new(peer),
            segments: Vec::new(),
            free: std::array::from_fn(|_| VecDeque::new()),
            next_number: 0,
            bytes: 0,
            bytes_max,
            out: 0,
            lent: 0,
            bin: Bin::default(),
            retired: Vec::new(),
        }
    }

    /// Takes a block for a payload of `bytes` bytes, to be written and lent. Dropped unsent it is free again.
    ///
    /// # Errors
    ///
    /// See [`TakeError`].
    pub fn take(&mut self, bytes: usize) -> Result<OwnBlock, TakeError> {
        let block_bytes = self.fitting(bytes)?;
        let class = class(block_bytes);
        if self.free[class].is_empty() {
            self.collect()?;
        }
        if self.out >= layout::RETURNED_SLOTS {
            return Err(TakeError::Full);
        }
        let Some(id) = self.free[class].pop_front() else {
            let room = self.bytes + block_bytes <= self.bytes_max;
            let may_make = room || self.bytes - self.unused_bytes() + block_bytes <= self.bytes_max;
            return Err(if may_make { TakeError::NoSegment } else { TakeError::Full });
        };
        let segment = self.segment(id.segment).expect("free blocks are of segments that are there");
        segment.places[id.block as usize] = Place::Taken;
        segment.out += 1;
        segment.used = true;
        let (memory, at) = (Arc::clone(&segment.memory), id.block as usize * block_bytes);
        self.out += 1;
        Ok(OwnBlock {
            id,
            memory,
            at,
            bytes,
            bin: Arc::clone(&self.bin),
            lent: false,
            whole: Whole,
        })
    }

    /// Whether [`BlockPool::take`] would not answer [`TakeError::Full`] now.
    ///
    /// # Errors
    ///
    /// [`TakeError::BadReturn`] only.
    pub fn has_room(&mut self, bytes: usize) -> Result<bool, TakeError> {
        let Ok(block_bytes) = self.fitting(bytes) else { return Ok(true) };
        self.collect()?;
        let free = !self.free[class(block_bytes)].is_empty();
        let may_make = self.bytes - self.unused_bytes() + block_bytes <= self.bytes_max;
        Ok(self.out < layout::RETURNED_SLOTS && (free || may_make))
    }

    fn fitting(&self, bytes: usize) -> Result<usize, TakeError> {
        let too_long = TakeError::TooLong { bytes, max: self.bytes_max };
        if bytes > layout::BLOCK_BYTES_MAX {
            return Err(too_long);
        }
        let block_bytes = layout::block_bytes(bytes);
        if block_bytes > self.bytes_max { Err(too_long) } else { Ok(block_bytes) }
    }

    /// Makes a segment with blocks for `bytes` bytes, after retiring unused ones where the bound asks for it.
    /// Announce it to the peer, retired ones first, then [`BlockPool::adopt`] it.
    ///
    /// # Errors
    ///
    /// As [`crate::Segment::create`].
    pub fn make(&mut self, bytes: usize) -> Result<FreshSegment, SegmentError> {
        let block_bytes = layout::block_bytes(bytes);
        let wanted = (SEGMENT_BYTES / block_bytes).max(1);
        if self.bytes + wanted * block_bytes > self.bytes_max {
            self.retire(|segment| segment.shape.block_bytes != block_bytes);
        }
        let left = (self.bytes_max - self.bytes) / block_bytes;
        let shape = BulkShape { block_bytes, blocks: wanted.min(left) as u32 };
        let segment_bytes = shape.bytes().ok_or(SegmentError::Shape)?;
        let file = sys::memory_file(segment_bytes)?;
        let memory = OwnBulk::map(file.as_fd(), segment_bytes)?;
        sys::seal(file.as_fd()).map_err(|fault| seal_error(fault, segment_bytes))?;
        Ok(FreshSegment { number: self.next_number, shape, file, memory })
    }

    /// Takes a segment that was announced into use. Its descriptor is closed.
    pub fn adopt(&mut self, fresh: FreshSegment) {
        let FreshSegment { number, shape, memory, file: _ } = fresh;
        debug_assert_eq!(number, self.next_number, "made by this pool, and adopted once");
        self.next_number += 1;
        self.bytes += shape.bytes().unwrap_or(0);
        let blocks = (0..shape.blocks).map(|block| BlockId { segment: number, block });
        self.free[class(shape.block_bytes)].extend(blocks);
        let places = vec![Place::Free; shape.blocks as usize];
        let memory = Arc::new(memory);
        self.segments.push(OwnSegment { number, memory, shape, places, out: 0, used: true });
    }

    /// Lends a block to the peer: say so in a message. `None` when it is of another pool, or was lent.
    #[must_use]
    pub fn lend(&mut self, block: &mut OwnBlock) -> Option<(u32, u32)> {
        if !self.owns(block) || std::mem::replace(&mut block.lent, true) {
            return None;
        }
        let BlockId { segment, block } = block.id;
        self.segment(segment)?.places[block as usize] = Place::Lent;
        self.lent += 1;
        Some((segment, block))
    }

    /// Takes back what [`BlockPool::lend`] gave and no message has told of.
    pub fn unlend(&mut self, block: &mut OwnBlock) {
        debug_assert!(self.owns(block));
        if std::mem::replace(&mut block.lent, false) {
            self.lent -= 1;
            let id = block.id;
            if let Some(segment) = self.segment(id.segment) {
                segment.places[id.block as usize] = Place::Taken;
            }
        }
    }

    /// Whether the block is of this pool.
    #[must_use]
    pub fn owns(&self, block: &OwnBlock) -> bool {
        Arc::ptr_eq(&self.bin, &block.bin)
    }

    /// Retires segments of which no block was used since the last sweep, nor is now.
    ///
    /// # Errors
    ///
    /// [`TakeError::BadReturn`] only.
    pub fn sweep(&mut self) -> Result<(), TakeError> {
        self.collect()?;
        self.retire(|segment| !segment.used);
        self.segments.iter_mut().for_each(|segment| segment.used = segment.out > 0);
        Ok(())
    }

    /// Numbers of segments that were retired since the last time: tell the peer.
    pub fn take_retired(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.retired)
    }

    /// Bytes of all segments.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Blocks that are lent to the peer.
    #[must_use]
    pub fn lent(&self) -> usize {
        self.lent
    }

    fn unused_bytes(&self) -> usize {
        let unused = self.segments.iter().filter(|segment| segment.out == 0);
        unused.filter_map(|segment| segment.shape.bytes()).sum()
    }

    /// Retires the segments that have no block out and that `which` names.
    fn retire(&mut self, which: impl Fn(&OwnSegment) -> bool) {
        let BlockPool { segments, free, bytes, retired, .. } = self;
        segments.retain(|segment| {
            if segment.out > 0 || !which(segment) {
                return true;
            }
            free[class(segment.shape.block_bytes)].retain(|id| id.segment != segment.number);
            *bytes -= segment.shape.bytes().unwrap_or(0);
            retired.push(segment.number);
            false
        });
    }

    /// Takes in what came back, from the peer and from blocks that were dropped unsent.
    fn collect(&mut self) -> Result<(), TakeError> {
        let dropped = std::mem::take(&mut *self.bin.lock().unwrap_or_else(PoisonError::into_inner));
        for id in dropped {
            self.release(id, Place::Taken)?;
        }
        let BlockPool { returned, segments, free, out, lent, .. } = self;
        returned.look(*lent as u64, |segment, block| {
            *lent -= 1;
            release(segments, free, out, BlockId { segment, block }, Place::Lent)
        })
    }

    fn release(&mut self, id: BlockId, from: Place) -> Result<(), TakeError> {
        release(&mut self.segments, &mut self.free, &mut self.out, id, from)
    }

    fn segment(&mut self, number: u32) -> Option<&mut OwnSegment> {
        find(&mut self.segments, number)
    }
}

/// Segments stand in the order of their numbers.
fn find(segments: &mut [OwnSegment], number: u32) -> Option<&mut OwnSegment> {
    let at = segments.binary_search_by_key(&number, |segment| segment.number).ok()?;
    Some(&mut segments[at])
}

/// Makes a block free that is `from`; anything else is refused (B3).
fn release(
    segments: &mut [OwnSegment],
    free: &mut [VecDeque<BlockId>; CLASSES],
    out: &mut usize,
    id: BlockId,
    from: Place,
) -> Result<(), TakeError> {
    let segment = find(segments, id.segment).ok_or(TakeError::BadReturn)?;
    match segment.places.get_mut(id.block as usize) {
        Some(place) if *place == from => *place = Place::Free,
        _ => return Err(TakeError::BadReturn),
    }
    segment.out -= 1;
    *out -= 1;
    free[class(segment.shape.block_bytes)].push_back(id);
    Ok(())
}

fn class(block_bytes: usize) -> usize {
    (block_bytes.ilog2() - layout::BLOCK_BYTES_MIN.ilog2()) as usize
}

/// A block of this side's, to be written and then lent. The only handle to its bytes (invariant B1).
#[derive(Debug)]
pub struct OwnBlock {
    id: BlockId,
    memory: Arc<OwnBulk>,
    at: usize,
    /// Bytes of payload.
    bytes: usize,
    bin: Bin,
    /// The block is the peer's until it comes back.
    lent: bool,
    /// Borrowed with the block's bytes: whoever lends the block has no such borrow left.
    whole: Whole,
}

/// Stands for the right to a block's bytes.
#[derive(Debug)]
struct Whole;

impl OwnBlock {
    /// Bytes of the payload.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether the payload is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether it was lent to the peer.
    #[must_use]
    pub fn is_lent(&self) -> bool {
        self.lent
    }

    /// Bytes that may be read and written here: none once the block is lent.
    fn accessible(&self) -> usize {
        if self.is_lent() { 0 } else { self.bytes }
    }

    /// The payload so far: what an earlier one left there, or zeros. Empty once the block is lent.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.memory.slice(&self.whole, self.at, self.accessible())
    }

    /// The payload, to be written. Empty once the block is lent.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let bytes = self.accessible();
        let OwnBlock { memory, whole, at, .. } = self;
        memory.slice_mut(whole, *at, bytes)
    }

    /// Makes the payload shorter.
    pub fn truncate(&mut self, bytes: usize) {
        self.bytes = self.bytes.min(bytes);
    }
}

impl Drop for OwnBlock {
    fn drop(&mut self) {
        if !self.is_lent() {
            self.bin.lock().unwrap_or_else(PoisonError::into_inner).push(self.id);
        }
    }
}
