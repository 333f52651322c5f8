//! The checksum of a frame and the choice of it in the handshake.

use core::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{FrameError, Header};

/// Where the checksum lies in a frame, in bytes.
pub const CHECKSUM_RANGE: Range<usize> = 20..24;

/// Frames up to this length, in bytes, are checked over a copy on the stack: one pass beats two.
const COPIED_MAX: usize = 128;

/// The algorithm that seals the frames of a connection.
///
/// It covers the header, whose checksum field counts as zero, and the payload. Frames of the
/// handshake always use `Crc32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Checksum {
    /// None; the field is zero. For rings between processes of one user only.
    Off,
    /// CRC-32 of IEEE 802.3, as in zlib.
    Crc32,
    /// CRC-32C of Castagnoli, as in iSCSI: a processor instruction on most machines.
    Crc32c,
}

impl Checksum {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The algorithm of this number, or `None` if this version knows none.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Checksum> {
        match number {
            0 => Some(Checksum::Off),
            1 => Some(Checksum::Crc32),
            2 => Some(Checksum::Crc32c),
            _ => None,
        }
    }

    /// The name in `docs/protocol.md` and in measurements.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Checksum::Off => "off",
            Checksum::Crc32 => "crc32",
            Checksum::Crc32c => "crc32c",
        }
    }

    /// The checksum of a whole frame, whose checksum field counts as zero; 0 for `Off`.
    ///
    /// # Panics
    ///
    /// If `frame` is shorter than a header.
    #[inline]
    #[must_use]
    pub fn of_frame(self, frame: &[u8]) -> u32 {
        match self {
            Checksum::Off => 0,
            Checksum::Crc32 => with_field_zeroed(frame, crc_fast::crc32_iso_hdlc, Self::Crc32),
            Checksum::Crc32c => with_field_zeroed(frame, crc_fast::crc32_iscsi, Self::Crc32c),
        }
    }

    /// The same as [`Checksum::of_frame`], of a header and a payload that lie apart.
    #[must_use]
    pub fn of_parts(self, header: &[u8; Header::BYTES], payload: &[u8]) -> u32 {
        let algorithm = match self {
            Checksum::Off => return 0,
            Checksum::Crc32 => crc_fast::CrcAlgorithm::Crc32IsoHdlc,
            Checksum::Crc32c => crc_fast::CrcAlgorithm::Crc32Iscsi,
        };
        let mut header = *header;
        header[CHECKSUM_RANGE].fill(0);
        let mut digest = crc_fast::Digest::new(algorithm);
        digest.update(&header);
        digest.update(payload);
        digest.finalize() as u32
    }

    /// Computes the checksum of a whole frame and stores it in the frame's header.
    ///
    /// # Panics
    ///
    /// If `frame` is shorter than a header.
    #[inline]
    pub fn seal(self, frame: &mut [u8]) {
        let _ = take_field(frame).expect("a frame has a whole header");
        let checksum = self.of_zeroed(frame);
        let word = frame[16..24].first_chunk_mut::<8>().expect("eight bytes");
        let low = u64::from_le_bytes(*word);
        *word = (low | u64::from(checksum) << 32).to_le_bytes();
    }

    /// Checks a whole frame; with `Off` the field must be zero.
    ///
    /// # Errors
    ///
    /// [`FrameError::Checksum`] if the bytes are not those that were sealed, and
    /// [`FrameError::Truncated`] if there is no whole header.
    #[inline]
    pub fn check(self, frame: &[u8]) -> Result<(), FrameError> {
        let Some(field) = frame.get(CHECKSUM_RANGE) else {
            return Err(FrameError::Truncated { length: frame.len(), needed: Header::BYTES });
        };
        let found = u32::from_le_bytes([field[0], field[1], field[2], field[3]]);
        let expected = self.of_frame(frame);
        if found == expected { Ok(()) } else { Err(FrameError::Checksum { expected, found }) }
    }

    /// The same as [`Checksum::check`] for a frame in private memory, without a copy: it zeroes the
    /// checksum field, whatever the outcome.
    ///
    /// # Errors
    ///
    /// As [`Checksum::check`].
    #[inline]
    pub fn check_in_place(self, frame: &mut [u8]) -> Result<(), FrameError> {
        let Some(found) = take_field(frame) else {
            return Err(FrameError::Truncated { length: frame.len(), needed: Header::BYTES });
        };
        let expected = self.of_zeroed(frame);
        if found == expected { Ok(()) } else { Err(FrameError::Checksum { expected, found }) }
    }

    /// The checksum of a whole frame whose checksum field is known to be zero; 0 for `Off`.
    #[inline(always)]
    #[must_use]
    pub fn of_zeroed(self, frame: &[u8]) -> u32 {
        match self {
            Checksum::Off => 0,
            Checksum::Crc32 => crc_fast::crc32_iso_hdlc(frame),
            Checksum::Crc32c => crc_fast::crc32_iscsi(frame),
        }
    }
}

/// Zeroes the checksum field of `frame` and gives what stood there; `None` without a whole header.
///
/// It stores the whole word that holds the field: a narrower store would stall the load that
/// follows.
#[inline(always)]
fn take_field(frame: &mut [u8]) -> Option<u32> {
    let word = frame.get_mut(16..24)?.first_chunk_mut::<8>()?;
    let value = u64::from_le_bytes(*word);
    *word = (value & 0xFFFF_FFFF).to_le_bytes();
    Some((value >> 32) as u32)
}

/// A frame on the stack. Aligned, because a checksum is fastest over whole aligned words.
#[repr(align(16))]
struct Copied([u8; COPIED_MAX]);

/// Runs `crc` over `frame` with its checksum field zeroed, without writing to `frame`.
#[inline(always)]
fn with_field_zeroed(frame: &[u8], crc: fn(&[u8]) -> u32, algorithm: Checksum) -> u32 {
    let (header, payload) = frame.split_first_chunk().expect("a frame has a whole header");
    if frame.len() > COPIED_MAX {
        return algorithm.of_parts(header, payload);
    }
    let mut copied = Copied([0; COPIED_MAX]);
    let (words, tail) = frame.as_chunks::<8>();
    let (copied_words, _) = copied.0.as_chunks_mut::<8>();
    for (to, from) in copied_words.iter_mut().zip(words) {
        *to = *from;
    }
    // A whole word again, for the reason given at `take_field`.
    copied_words[2] = (u64::from_le_bytes(words[2]) & 0xFFFF_FFFF).to_le_bytes();
    for (to, from) in copied.0[frame.len() - tail.len()..].iter_mut().zip(tail) {
        *to = *from;
    }
    crc(&copied.0[..frame.len()])
}

/// The checksums that one side offers in the handshake.
///
/// Offering `Off` is asking for it: it is chosen when both sides offer it. Otherwise the choice is
/// `Crc32c` if both offer that, then `Crc32`. So the default set has both and not `Off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChecksumSet(u8);

impl ChecksumSet {
    /// Nothing offered.
    pub const NONE: ChecksumSet = ChecksumSet(0);
    /// Both checksums and not `Off`.
    pub const DEFAULT: ChecksumSet = ChecksumSet(0b110);

    /// The set of one.
    #[must_use]
    pub const fn only(checksum: Checksum) -> ChecksumSet {
        ChecksumSet(bit(checksum))
    }

    /// The byte on the wire: bit n is the checksum with number n.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The set of a byte from the wire. Bits that this version does not know are kept and match
    /// nothing.
    #[must_use]
    pub const fn from_bits(bits: u8) -> ChecksumSet {
        ChecksumSet(bits)
    }

    /// Adds `checksum`.
    pub const fn insert(&mut self, checksum: Checksum) {
        self.0 |= bit(checksum);
    }

    /// Takes `checksum` out.
    pub const fn remove(&mut self, checksum: Checksum) {
        self.0 &= !bit(checksum);
    }

    /// Whether `checksum` is offered.
    #[must_use]
    pub const fn contains(self, checksum: Checksum) -> bool {
        self.0 & bit(checksum) != 0
    }

    /// The checksum that two sides agree on, or `None` if they share none.
    #[must_use]
    pub fn best_common(ours: ChecksumSet, theirs: ChecksumSet) -> Option<Checksum> {
        let common = ChecksumSet(ours.0 & theirs.0);
        [Checksum::Off, Checksum::Crc32c, Checksum::Crc32]
            .into_iter()
            .find(|&checksum| common.contains(checksum))
    }
}

impl Default for ChecksumSet {
    fn default() -> ChecksumSet {
        ChecksumSet::DEFAULT
    }
}

const fn bit(checksum: Checksum) -> u8 {
    1 << checksum.number()
}

#[cfg(test)]
mod tests {
    use std::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::{Flags, Kind, MessageId};

    #[test]
    fn checksums_of_the_check_string_are_the_catalogue_ones() {
        assert_eq!(crc_fast::crc32_iso_hdlc(b"123456789"), 0xCBF4_3926);
        assert_eq!(crc_fast::crc32_iscsi(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn check_of_a_short_frame_is_an_error_and_no_panic() {
        for checksum in [Checksum::Off, Checksum::Crc32, Checksum::Crc32c] {
            let error = checksum.check(&[0; 23]).unwrap_err();
            assert_eq!(error, FrameError::Truncated { length: 23, needed: 24 });
        }
    }

    #[test]
    fn best_common_takes_off_only_when_both_ask_for_it() {
        let default = ChecksumSet::DEFAULT;
        let mut with_off = default;
        with_off.insert(Checksum::Off);
        let best = ChecksumSet::best_common;
        assert_eq!(best(default, default), Some(Checksum::Crc32c));
        assert_eq!(best(with_off, default), Some(Checksum::Crc32c));
        assert_eq!(best(default, with_off), Some(Checksum::Crc32c));
        assert_eq!(best(with_off, with_off), Some(Checksum::Off));
        let crc32 = ChecksumSet::only(Checksum::Crc32);
        assert_eq!(best(default, crc32), Some(Checksum::Crc32));
        assert_eq!(best(default, ChecksumSet::only(Checksum::Off)), None);
        assert_eq!(best(ChecksumSet::from_bits(0xF8), ChecksumSet::from_bits(0xF8)), None);
    }

    proptest! {
        #[test]
        fn of_frame_of_parts_seal_and_check_agree(
            payload in proptest::collection::vec(any::<u8>(), 0..600),
            stale in any::<u32>(),
            flip in any::<prop::sample::Index>(),
        ) {
            let header = Header {
                flags: Flags::REQUEST,
                kind: Kind::application(0x310).unwrap(),
                length: payload.len() as u32,
                id: MessageId::new(7),
                checksum: stale,
            };
            let mut frame = vec![0; Header::BYTES + payload.len()];
            frame[..Header::BYTES].copy_from_slice(&header.encode());
            frame[Header::BYTES..].copy_from_slice(&payload);
            for checksum in [Checksum::Crc32, Checksum::Crc32c, Checksum::Off] {
                let expected = checksum.of_frame(&frame);
                prop_assert_eq!(checksum.of_parts(&header.encode(), &payload), expected);
                checksum.seal(&mut frame);
                prop_assert_eq!(&frame[CHECKSUM_RANGE], &expected.to_le_bytes());
                prop_assert_eq!(checksum.check(&frame), Ok(()));
                prop_assert_eq!(checksum.check_in_place(&mut frame.clone()), Ok(()));
                if checksum != Checksum::Off {
                    let at = flip.index(frame.len());
                    frame[at] ^= 0x10;
                    let refused = checksum.check(&frame);
                    prop_assert!(refused.is_err());
                    prop_assert_eq!(checksum.check_in_place(&mut frame.clone()), refused);
                    frame[at] ^= 0x10;
                }
            }
        }
    }
}
