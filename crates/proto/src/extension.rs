//! The extension block: how a frame says more than its header can.
//!
//! ```text
//! block   u16 length of what follows | entry | entry ...
//! entry   u8 type (0x80 set: critical) | u16 length of the value | value
//! ```
//!
//! All numbers are little-endian. An entry of unknown type is skipped, unless it is critical: then
//! the frame is refused.

use alloc::vec::Vec;
use core::error::Error;
use core::fmt;

use crate::limits::METADATA_BYTES;

/// Set in the type of an entry without which the frame cannot be understood.
const CRITICAL: u8 = 0x80;

const DEADLINE: u8 = 0x01;
const TRACE: u8 = 0x02;
const METADATA: u8 = 0x04;
const SENT: u8 = 0x06;
const BULK: u8 = 0x83;
const CODEC: u8 = 0x85;

/// The value of a codec entry that says JSON.
const CODEC_JSON: u8 = 1;

/// W3C trace context. Its text, read and written, is that of the `traceparent` header:
///
/// ```
/// use lapwing_proto::TraceContext;
///
/// let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// let context: TraceContext = text.parse()?;
/// assert_eq!(context.parent_id[1], 0xf0);
/// assert_eq!(context.to_string(), text);
/// # Ok::<(), lapwing_proto::TraceParentError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace that this call belongs to.
    pub trace_id: [u8; 16],
    /// The span that made this call.
    pub parent_id: [u8; 8],
    /// W3C trace flags; bit 0 = sampled.
    pub flags: u8,
}

/// Where a payload lies in bulk memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BulkDescriptor {
    /// The sender's number of the segment.
    pub segment: u32,
    /// The block in that segment.
    pub block: u32,
    /// Bytes of payload in the block.
    pub length: u64,
}

/// One entry of an extension block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Entry<'a> {
    /// Time that is left for the call, in microseconds. At most one.
    Deadline {
        /// Microseconds from when the frame was sent.
        remaining_us: u64,
    },
    /// When the frame was sent. At most one. Of no meaning to a receiver that does not read the same clock.
    Sent {
        /// Nanoseconds of the clock that [`Features::CLOCK`](crate::Features::CLOCK) speaks of.
        at_ns: u64,
    },
    /// Trace context. At most one.
    Trace(TraceContext),
    /// The payload lies in bulk memory. At most one; critical.
    Bulk(BulkDescriptor),
    /// The payloads of the call are JSON, whatever the method's own codec. At most one; critical.
    Json,
    /// One pair of metadata. Any number, 8 KiB of keys and values together.
    Metadata {
        /// Not empty.
        key: &'a str,
        /// Any bytes.
        value: &'a [u8],
    },
}

/// Why an extension block is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExtensionError {
    /// The block or an entry ends early.
    Truncated,
    /// This side does not know a critical entry; holds its type.
    UnknownCritical(u8),
    /// An entry that may stand once stands twice; holds its type.
    Duplicate(u8),
    /// The value of an entry is of the wrong length or cannot be read; holds its type.
    BadValue(u8),
    /// Keys and values of the metadata have more bytes than allowed.
    MetadataTooLong {
        /// Bytes so far.
        length: usize,
        /// Bytes allowed.
        max: usize,
    },
}

impl fmt::Display for ExtensionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExtensionError::Truncated => f.write_str("the extension block ends early"),
            ExtensionError::UnknownCritical(number) => {
                write!(f, "the frame needs extension {number:#04x}, which this side lacks")
            }
            ExtensionError::Duplicate(number) => {
                write!(f, "extension {number:#04x} stands twice in one frame")
            }
            ExtensionError::BadValue(number) => {
                write!(f, "the value of extension {number:#04x} cannot be read")
            }
            ExtensionError::MetadataTooLong { length, max } => {
                write!(f, "the metadata has {length} bytes, at most {max} are allowed")
            }
        }
    }
}

impl Error for ExtensionError {}

/// A checked extension block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extensions<'a> {
    /// The entries without the block's length; every one has been decoded once.
    entries: &'a [u8],
}

impl<'a> Extensions<'a> {
    /// Reads and checks the block at the start of `payload`; gives it and the bytes after it.
    ///
    /// # Errors
    ///
    /// An [`ExtensionError`] refuses the frame.
    pub fn parse(payload: &'a [u8]) -> Result<(Extensions<'a>, &'a [u8]), ExtensionError> {
        let (entries, rest) = take_counted(payload).ok_or(ExtensionError::Truncated)?;
        let mut ledger = Ledger::default();
        let mut left = entries;
        while let Some((entry, after)) = next_entry(left)? {
            left = after;
            if let Some(entry) = entry {
                ledger.admit(&entry)?;
            }
        }
        Ok((Extensions { entries }, rest))
    }

    /// The entries that this version knows, in the order of the wire.
    pub fn iter(&self) -> impl Iterator<Item = Entry<'a>> + use<'a> {
        let mut left = self.entries;
        core::iter::from_fn(move || {
            // `parse` has been through all entries, so an error cannot come.
            while let Ok(Some((entry, after))) = next_entry(left) {
                left = after;
                if entry.is_some() {
                    return entry;
                }
            }
            None
        })
    }

    /// The bulk block that holds the payload, if one does.
    #[must_use]
    pub fn bulk(&self) -> Option<BulkDescriptor> {
        self.iter().find_map(|entry| match entry {
            Entry::Bulk(bulk) => Some(bulk),
            _ => None,
        })
    }
}

/// The time that a call has, as most blocks hold it and nothing else: a deadline, and behind it when the frame was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeLeft {
    /// Microseconds from when the frame was sent.
    pub remaining_us: u64,
    /// When the frame was sent: see [`Entry::Sent`].
    pub sent_at_ns: u64,
}

/// What stands in front of a block's first value, where a deadline comes first and the time of sending alone follows.
const BEFORE_DEADLINE: [u8; 5] = [22, 0, DEADLINE, 8, 0];

/// What stands between the two values.
const BEFORE_SENT: [u8; 3] = [SENT, 8, 0];

/// Bits of the deadline in the block's first word, its lowest ones; the others are in the second.
const LOW_BITS: u32 = 64 - 8 * BEFORE_DEADLINE.len() as u32;

/// Bits of the block's length in its first word.
const LENGTH_BITS: u64 = 0xFFFF;

/// `bytes` as the lowest of a little-endian word.
const fn word(bytes: &[u8]) -> u64 {
    let (mut word, mut at) = (0, bytes.len());
    while at > 0 {
        at -= 1;
        word = word << 8 | bytes[at] as u64;
    }
    word
}

// The block is written and read as words that are aligned as the frame is: a load of bytes that stand partly in one recent
// store and partly in another waits until both have reached the cache (Intel 64 and IA-32 Architectures Optimization
// Reference Manual, "Store Forwarding"). No difference was measured in a whole call.
impl TimeLeft {
    /// Bytes of the block that [`TimeLeft::block`] makes: so many that the payload behind it is aligned to eight bytes as
    /// the frame is.
    pub const BLOCK_BYTES: usize = 24;

    /// The three words of the block that [`TimeLeft::block`] makes, to be stored as little-endian ones.
    #[must_use]
    #[inline]
    pub const fn words(self) -> [u64; 3] {
        [
            word(&BEFORE_DEADLINE) | self.remaining_us << (64 - LOW_BITS),
            self.remaining_us >> LOW_BITS | word(&BEFORE_SENT) << (64 - LOW_BITS),
            self.sent_at_ns,
        ]
    }

    /// The block that holds this and nothing else: made at once.
    #[must_use]
    #[inline]
    pub const fn block(self) -> [u8; TimeLeft::BLOCK_BYTES] {
        let [first, second, third] = self.words();
        let mut block = [0; TimeLeft::BLOCK_BYTES];
        let (head, rest) = block.split_at_mut(8);
        head.copy_from_slice(&first.to_le_bytes());
        let (middle, tail) = rest.split_at_mut(8);
        middle.copy_from_slice(&second.to_le_bytes());
        tail.copy_from_slice(&third.to_le_bytes());
        block
    }

    /// What [`TimeLeft::block`] made, if `payload` begins with it: what [`Extensions::parse`] would find, at once.
    #[must_use]
    #[inline]
    pub fn read_block(payload: &[u8]) -> Option<TimeLeft> {
        let (words, _) = payload.first_chunk::<{ TimeLeft::BLOCK_BYTES }>()?.as_chunks();
        TimeLeft::of_words([0, 1, 2].map(|n| u64::from_le_bytes(words[n])))
    }

    /// As [`TimeLeft::read_block`], of the block's three words.
    #[must_use]
    #[inline]
    pub fn of_words(words: [u64; 3]) -> Option<TimeLeft> {
        let [first, second, sent_at_ns] = words;
        let remaining_us = first >> (64 - LOW_BITS) | second << LOW_BITS;
        let time = TimeLeft { remaining_us, sent_at_ns };
        let [found, rest, _] = time.words();
        (found == first && rest == second).then_some(time)
    }

    /// Writes this over what a block says that begins with the two entries, whatever follows them.
    #[inline]
    pub fn set_in(self, block: &mut [u8]) {
        let Some(block) = block.first_chunk_mut::<{ TimeLeft::BLOCK_BYTES }>() else { return };
        let (words, _) = block.as_chunks_mut();
        let [first, second, third] = self.words();
        // With the length that stands there.
        let first = first & !LENGTH_BITS | u64::from_le_bytes(words[0]) & LENGTH_BITS;
        for (bytes, word) in words.iter_mut().zip([first, second, third]) {
            *bytes = word.to_le_bytes();
        }
    }
}

/// Takes the bulk entry out of the extension block that begins at `start` of `frame` and is the rest of it, so
/// that the payload in the bulk block may follow there. Where no other entry stands, the block goes, too.
/// `None`: there is no bulk entry, and nothing was changed.
///
/// # Errors
///
/// What [`Extensions::parse`] refuses; and bytes behind a block with a bulk entry
/// ([`ExtensionError::BadValue`]): the payload is in one place.
pub fn take_bulk(
    frame: &mut Vec<u8>,
    start: usize,
) -> Result<Option<BulkDescriptor>, ExtensionError> {
    let (extensions, rest) = Extensions::parse(&frame[start..])?;
    let Some(bulk) = extensions.bulk() else { return Ok(None) };
    if !rest.is_empty() {
        return Err(ExtensionError::BadValue(BULK));
    }
    let mut at = start + 2;
    while frame[at] != BULK {
        at += 3 + usize::from(u16::from_le_bytes([frame[at + 1], frame[at + 2]]));
    }
    let length = 3 + usize::from(u16::from_le_bytes([frame[at + 1], frame[at + 2]]));
    frame.drain(at..at + length);
    let left = frame.len() - start - 2;
    if left == 0 {
        frame.truncate(start);
    } else {
        frame[start..start + 2].copy_from_slice(&(left as u16).to_le_bytes());
    }
    Ok(Some(bulk))
}

/// What a block has had so far: each single-valued entry once, metadata within its bound.
#[derive(Debug, Default)]
struct Ledger {
    deadline: bool,
    sent: bool,
    trace: bool,
    bulk: bool,
    codec: bool,
    metadata_bytes: usize,
}

impl Ledger {
    fn admit(&mut self, entry: &Entry<'_>) -> Result<(), ExtensionError> {
        let (seen, number) = match entry {
            Entry::Deadline { .. } => (&mut self.deadline, DEADLINE),
            Entry::Sent { .. } => (&mut self.sent, SENT),
            Entry::Trace(_) => (&mut self.trace, TRACE),
            Entry::Bulk(_) => (&mut self.bulk, BULK),
            Entry::Json => (&mut self.codec, CODEC),
            Entry::Metadata { key, value } => {
                if key.is_empty() {
                    return Err(ExtensionError::BadValue(METADATA));
                }
                let length = self.metadata_bytes + key.len() + value.len();
                let max = METADATA_BYTES as usize;
                if length > max {
                    return Err(ExtensionError::MetadataTooLong { length, max });
                }
                self.metadata_bytes = length;
                return Ok(());
            }
        };
        if core::mem::replace(seen, true) {
            return Err(ExtensionError::Duplicate(number));
        }
        Ok(())
    }
}

type Split<'a> = (Option<Entry<'a>>, &'a [u8]);

/// The first entry of `bytes` (`None` in it if the type is unknown) and the bytes after it, or
/// `None` at the end.
fn next_entry(bytes: &[u8]) -> Result<Option<Split<'_>>, ExtensionError> {
    let Some((&number, after)) = bytes.split_first() else {
        return Ok(None);
    };
    let (value, rest) = take_counted(after).ok_or(ExtensionError::Truncated)?;
    let entry = match number {
        DEADLINE => value
            .try_into()
            .ok()
            .map(|value| Entry::Deadline { remaining_us: u64::from_le_bytes(value) }),
        SENT => value.try_into().ok().map(|value| Entry::Sent { at_ns: u64::from_le_bytes(value) }),
        TRACE => read_trace(value),
        BULK => read_bulk(value),
        CODEC => (value == [CODEC_JSON]).then_some(Entry::Json),
        METADATA => read_metadata(value),
        _ if number & CRITICAL != 0 => return Err(ExtensionError::UnknownCritical(number)),
        _ => return Ok(Some((None, rest))),
    };
    match entry {
        Some(entry) => Ok(Some((Some(entry), rest))),
        None => Err(ExtensionError::BadValue(number)),
    }
}

/// Splits `bytes` after a `u16` length and that many bytes.
fn take_counted(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))
}

fn read_trace(value: &[u8]) -> Option<Entry<'_>> {
    let (trace_id, rest) = value.split_first_chunk()?;
    let (parent_id, rest) = rest.split_first_chunk()?;
    let &[flags] = rest else { return None };
    Some(Entry::Trace(TraceContext { trace_id: *trace_id, parent_id: *parent_id, flags }))
}

fn read_bulk(value: &[u8]) -> Option<Entry<'_>> {
    let (segment, rest) = value.split_first_chunk()?;
    let (block, rest) = rest.split_first_chunk()?;
    Some(Entry::Bulk(BulkDescriptor {
        segment: u32::from_le_bytes(*segment),
        block: u32::from_le_bytes(*block),
        length: u64::from_le_bytes(rest.try_into().ok()?),
    }))
}

fn read_metadata(value: &[u8]) -> Option<Entry<'_>> {
    let (key, value) = take_counted(value)?;
    Some(Entry::Metadata { key: core::str::from_utf8(key).ok()?, value })
}

/// Appends an extension block to a payload that is being made.
///
/// The block in `out` is whole after every step; nothing has to be finished.
#[derive(Debug)]
pub struct ExtensionBuilder<'a> {
    out: &'a mut Vec<u8>,
    /// Where the block's length lies in `out`.
    start: usize,
    ledger: Ledger,
}

impl<'a> ExtensionBuilder<'a> {
    /// Appends an empty block to `out`.
    pub fn new(out: &'a mut Vec<u8>) -> ExtensionBuilder<'a> {
        let start = out.len();
        out.extend_from_slice(&[0, 0]);
        ExtensionBuilder { out, start, ledger: Ledger::default() }
    }

    /// Goes on with the block that begins at `start` of `out` and is the rest of it.
    ///
    /// # Errors
    ///
    /// What [`Extensions::parse`] refuses.
    pub fn go_on(
        out: &'a mut Vec<u8>,
        start: usize,
    ) -> Result<ExtensionBuilder<'a>, ExtensionError> {
        let (extensions, rest) = Extensions::parse(&out[start..])?;
        if !rest.is_empty() {
            return Err(ExtensionError::Truncated);
        }
        let mut ledger = Ledger::default();
        for entry in extensions.iter() {
            ledger.admit(&entry)?;
        }
        Ok(ExtensionBuilder { out, start, ledger })
    }

    /// Appends one entry.
    ///
    /// # Errors
    ///
    /// [`ExtensionError`] for what [`Extensions::parse`] would refuse: a second entry where one may
    /// stand, too much metadata, an empty key. Nothing has been appended then.
    pub fn push(&mut self, entry: Entry<'_>) -> Result<&mut Self, ExtensionError> {
        self.ledger.admit(&entry)?;
        match entry {
            Entry::Deadline { remaining_us } => {
                self.append(DEADLINE, &[&remaining_us.to_le_bytes()]);
            }
            Entry::Sent { at_ns } => self.append(SENT, &[&at_ns.to_le_bytes()]),
            Entry::Trace(trace) => {
                self.append(TRACE, &[&trace.trace_id, &trace.parent_id, &[trace.flags]]);
            }
            Entry::Bulk(bulk) => self.append(
                BULK,
                &[
                    &bulk.segment.to_le_bytes(),
                    &bulk.block.to_le_bytes(),
                    &bulk.length.to_le_bytes(),
                ],
            ),
            Entry::Json => self.append(CODEC, &[&[CODEC_JSON]]),
            Entry::Metadata { key, value } => {
                let key_length = (key.len() as u16).to_le_bytes();
                self.append(METADATA, &[&key_length, key.as_bytes(), value]);
            }
        }
        Ok(self)
    }

    /// The ledger has admitted the entry, so that lengths fit their `u16`: at most 8 KiB of
    /// metadata in entries of six bytes or more is below 48 KiB with its framing.
    fn append(&mut self, number: u8, value: &[&[u8]]) {
        let length: usize = value.iter().map(|part| part.len()).sum();
        self.out.push(number);
        self.out.extend_from_slice(&(length as u16).to_le_bytes());
        for part in value {
            self.out.extend_from_slice(part);
        }
        let block_length = self.out.len() - self.start - 2;
        debug_assert!(block_length <= usize::from(u16::MAX));
        self.out[self.start..self.start + 2].copy_from_slice(&(block_length as u16).to_le_bytes());
    }
}

#[cfg(test)]
#[path = "extension_tests.rs"]
mod tests;
