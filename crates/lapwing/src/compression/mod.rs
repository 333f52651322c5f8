//! Compressed payloads: who wants them, when one is worth it, and how a received one is put in its place.
//!
//! Off, nothing of this is on the way of any frame: [`Sending`](crate::link::Sending) compares a payload's
//! length with one bound either way, and [`Receiving`](crate::link::Receiving) looks at flags that it
//! looks at anyway. With the cargo feature `compression` off, neither side ever agrees to it.

#[cfg(feature = "compression")]
mod zstd;

use lapwing_proto::{Extensions, Features, Flags, Header, WireError, expanded_length};
use lapwing_shm::Buffer;

use crate::bulk::Long;
use crate::link::{Broken, misbehaved};
use crate::payload::{Frame, Payload};

/// The shortest payload that is compressed, in bytes. Measured (`cost_of_levels_and_lengths` in `zstd.rs`) with
/// source code: 512 bytes shrink to 57 % and take 5.7 us on both sides together, 1024 bytes to 49 % and take 7.9 us.
pub(crate) const COMPRESS_MIN: usize = 1024;

/// Payloads that expand to more than this, in bytes, go to memory that goes back to the system afterwards.
const LONG_BYTES: usize = 64 * 1024;

/// While one of these exists, contexts of the zstd library are kept for the next payload. When one is dropped, as
/// with its connection, all unused ones go back to the system.
#[derive(Debug)]
pub(crate) struct KeepContexts(());

impl KeepContexts {
    pub(crate) fn new() -> KeepContexts {
        KeepContexts(())
    }
}

impl Drop for KeepContexts {
    fn drop(&mut self) {
        #[cfg(feature = "compression")]
        zstd::clear_contexts();
    }
}

/// Whether there are contexts to be swept.
#[inline]
pub(crate) fn has_contexts() -> bool {
    #[cfg(feature = "compression")]
    return zstd::has_contexts();
    #[cfg(not(feature = "compression"))]
    false
}

/// Gives contexts back to the system that were not used since the last time.
pub(crate) fn sweep_contexts() {
    #[cfg(feature = "compression")]
    zstd::sweep_contexts();
}

/// Whether payloads are compressed with zstd. Both sides have to want it.
///
/// Payloads of 1 KiB and more are, where that saves a sixteenth. It saves bytes and costs time: about 8 us for 1 KiB
/// of source code and 56 us for 16 KiB, on both sides together.
/// While a payload is compressed its connection sends nothing else. Where time matters more, choose `Off`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
// Without the feature nobody outside can choose.
#[cfg_attr(not(feature = "compression"), allow(dead_code, unreachable_pub))]
pub enum Compression {
    /// Over the socket they are, through shared memory they are not: there it costs more than it saves. A client
    /// that asks for shared memory and is given the socket instead does without.
    #[default]
    Auto,
    /// On either transport.
    On,
    /// Never.
    Off,
}

impl Compression {
    /// What a client asks for that wants this transport.
    pub(crate) fn wanted(self, socket: bool) -> Features {
        let wants = match self {
            Compression::Auto => socket,
            Compression::On => true,
            Compression::Off => false,
        };
        if wants && cfg!(feature = "compression") { Features::COMPRESSION } else { Features::NONE }
    }
}

/// The payload compressed, if that is worth it: it must save a sixteenth.
pub(crate) fn compress(payload: &[u8]) -> Option<Vec<u8>> {
    if payload.len() < COMPRESS_MIN {
        return None;
    }
    let worth_bytes = payload.len() - payload.len() / 16;
    #[cfg(feature = "compression")]
    let compressed = zstd::compress(payload, worth_bytes);
    #[cfg(not(feature = "compression"))]
    let compressed: Option<Vec<u8>> = None;
    compressed.filter(|shorter| shorter.len() <= worth_bytes)
}

/// Puts the expanded payload in the place of the compressed one, and makes the header say so.
///
/// The payload is expanded to what it says, which is at most `message_max`, and no further.
///
/// # Errors
///
/// The peer's misbehaviour: what `docs/protocol.md` says in section 3.1.
pub(crate) fn expand(
    mut header: Header,
    frame: &mut Frame,
    message_max: u32,
) -> Result<Header, Broken> {
    let end = if header.flags.contains(Flags::EXTENDED) {
        let behind = Extensions::parse(&frame.bytes[Header::BYTES..]);
        let detail = "an extension block cannot be understood";
        let (_, rest) = behind.map_err(|_| misbehaved(WireError::BadExtension, detail))?;
        frame.bytes.len() - rest.len()
    } else {
        Header::BYTES
    };
    let compressed = match &frame.long {
        Some(long) => long.bytes(),
        None => &frame.bytes[end..],
    };
    let length = expanded_length(compressed, message_max)
        .map_err(|error| misbehaved(error.wire_error(), error.detail()))? as usize;
    if length > LONG_BYTES {
        let mut expanded = Buffer::zeroed(length);
        expand_into(expanded.bytes_mut(), compressed)?;
        frame.bytes.truncate(end);
        frame.long = Some(Box::new(Long::Buffer(expanded)));
    } else {
        let mut expanded = Frame::kept();
        expanded.bytes.extend_from_slice(&frame.bytes[..end]);
        expanded.bytes.resize(end + length, 0);
        expand_into(&mut expanded.bytes[end..], compressed)?;
        std::mem::swap(&mut frame.bytes, &mut expanded.bytes);
        frame.long = None;
        // The buffer that is given up goes back to this thread's.
        drop(Payload::of(expanded));
    }
    header.flags = header.flags.without(Flags::COMPRESSED);
    header.length = (end - Header::BYTES + length) as u32;
    Ok(header)
}

/// A compressed payload expanded as one that was received, for tests and fuzzers.
///
/// # Errors
///
/// What the peer did.
#[doc(hidden)]
#[cfg(feature = "hostile")]
pub fn expand_payload(
    compressed: &[u8],
    message_max: u32,
) -> Result<Vec<u8>, lapwing_proto::PeerMisbehaved> {
    let kind = lapwing_proto::Kind::PING;
    let header = Header { flags: Flags::COMPRESSED, ..Header::connection(kind, 0) };
    let bytes = [&[0; Header::BYTES], compressed].concat();
    let mut frame = Box::new(Frame { bytes, front: Header::BYTES, ..Frame::default() });
    match expand(header, &mut frame, message_max) {
        Ok(header) => {
            let payload = frame.take_payload().into_vec();
            assert_eq!(header.length as usize, payload.len(), "the header says the length");
            Ok(payload)
        }
        Err(Broken::Misbehaved(peer)) => Err(peer),
        Err(other) => panic!("expanding needs nothing of the system: {other:?}"),
    }
}

/// Expands one whole zstd frame, which has to fill `expanded`.
fn expand_into(expanded: &mut [u8], compressed: &[u8]) -> Result<(), Broken> {
    #[cfg(feature = "compression")]
    let expanded = zstd::expand(expanded, compressed);
    #[cfg(not(feature = "compression"))]
    let expanded = Err((expanded, compressed)).map_err(|_| "compression was never agreed on");
    expanded.map_err(|detail| misbehaved(WireError::BadCompression, detail))
}

#[cfg(all(test, feature = "compression"))]
mod tests {
    use lapwing_proto::{Entry, ExtensionBuilder, Kind, MessageId};

    use super::*;

    fn header(flags: Flags, length: usize) -> Header {
        let kind = Kind::application(0x0100).unwrap();
        Header { flags, kind, length: length as u32, id: MessageId::new(1), checksum: 0 }
    }

    fn frame(payload: &[u8]) -> Frame {
        let bytes = [&[0xEE; Header::BYTES], payload].concat();
        Frame { bytes, front: Header::BYTES, ..Frame::default() }
    }

    fn text(length: usize) -> Vec<u8> {
        b"fn main() { println!(\"lapwing\"); }\n".iter().copied().cycle().take(length).collect()
    }

    /// Bytes that do not compress.
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn compressed_payload_expands_to_itself_with_and_without_an_extension_block() {
        let mut block = Vec::new();
        ExtensionBuilder::new(&mut block).push(Entry::Deadline { remaining_us: 7 }).unwrap();
        for length in [COMPRESS_MIN, 5000, LONG_BYTES, LONG_BYTES + 1, 3_000_000] {
            let payload = text(length);
            let compressed = compress(&payload).unwrap();
            assert!(compressed.len() < length / 8);
            for block in [&[][..], &block] {
                let flags = if block.is_empty() { Flags::NONE } else { Flags::EXTENDED };
                let mut frame = frame(&[block, &compressed].concat());
                let sent = header(Flags::REQUEST | Flags::COMPRESSED | flags, 0);
                let header = expand(sent, &mut frame, length as u32).unwrap();
                assert_eq!(header.flags, Flags::REQUEST | flags);
                assert_eq!(header.length as usize, block.len() + length);
                let here = [
                    &frame.bytes[Header::BYTES..],
                    match &frame.long {
                        Some(long) => long.bytes(),
                        None => &[],
                    },
                ]
                .concat();
                assert!(here == [block, &payload].concat(), "{length} bytes");
            }
        }
    }

    #[test]
    fn payload_that_is_short_or_does_not_shrink_is_left_as_it_is() {
        assert_eq!(compress(&text(COMPRESS_MIN - 1)), None);
        assert!(compress(&text(COMPRESS_MIN)).is_some());
        for length in [COMPRESS_MIN, 70_000, 1_000_000] {
            assert_eq!(compress(&noise(length)), None);
        }
        // It shrinks, and by less than is worth it.
        let little = [noise(40_000), vec![0; 1000]].concat();
        assert_eq!(compress(&little), None);
    }

    #[test]
    fn limit_is_exact_and_is_looked_at_before_anything_is_expanded() {
        let compressed = compress(&text(100_000)).unwrap();
        let sent = header(Flags::COMPRESSED, compressed.len());
        assert!(expand(sent, &mut frame(&compressed), 100_000).is_ok());
        let refused = expand(sent, &mut frame(&compressed), 99_999).unwrap_err();
        let Broken::Misbehaved(peer) = refused else { panic!("{refused:?}") };
        assert_eq!(peer.error, WireError::FrameTooLong);
    }

    #[test]
    fn payload_that_comes_to_another_length_than_it_says_is_refused() {
        let refused = |compressed: &[u8]| {
            let sent = header(Flags::COMPRESSED, compressed.len());
            match expand(sent, &mut frame(compressed), 1 << 20) {
                Err(Broken::Misbehaved(peer)) => peer.error,
                other => panic!("{other:?}"),
            }
        };
        let honest = compress(&text(60_000)).unwrap();
        // One segment with two bytes of length, which stand behind magic and descriptor.
        assert_eq!(honest[4] & 0xE0, 0x60, "{:02x}", honest[4]);
        for claimed in [0_u16, 59_999 - 256, 60_001 - 256, u16::MAX] {
            let mut lying = honest.clone();
            lying[5..7].copy_from_slice(&claimed.to_le_bytes());
            assert_eq!(refused(&lying), WireError::BadCompression, "{claimed}");
        }
        for cut in 0..honest.len() {
            assert_eq!(refused(&honest[..cut]), WireError::BadCompression, "{cut}");
        }
        assert_eq!(refused(&[&honest[..], b"x"].concat()), WireError::BadCompression);
        assert_eq!(refused(&[&honest[..], &honest].concat()), WireError::BadCompression);
        assert_eq!(refused(&noise(2000)), WireError::BadCompression);
    }

    #[test]
    fn compression_is_wanted_where_the_transport_makes_it_worth_it() {
        let on = Features::COMPRESSION;
        assert_eq!(Compression::Auto.wanted(true), on);
        assert_eq!(Compression::Auto.wanted(false), Features::NONE);
        assert_eq!(Compression::On.wanted(false), on);
        assert_eq!(Compression::Off.wanted(true), Features::NONE);
    }
}
