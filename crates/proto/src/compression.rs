//! What a compressed payload says about itself, read before anything is allocated or expanded.
//!
//! A compressed payload is one zstd frame (RFC 8878) whose header this module checks. Expanding it is its
//! driver's.

use core::error::Error;
use core::fmt;

use crate::WireError;
use crate::limits::COMPRESSION_WINDOW_BYTES;

/// The four bytes that a zstd frame begins with.
const MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];

/// In the byte behind the magic: the frame is one segment, whose window is its content.
const SINGLE_SEGMENT: u8 = 0x20;

/// In the same byte: must be zero.
const RESERVED: u8 = 0x08;

/// In the same byte: how many bytes a dictionary's number has.
const DICTIONARY: u8 = 0x03;

/// Why a compressed payload is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CompressionError {
    /// It ends within its header.
    Truncated,
    /// It is no zstd frame.
    BadMagic,
    /// A bit is set that RFC 8878 reserves.
    Reserved,
    /// It does not say how long it is when expanded.
    NoLength,
    /// It needs a dictionary, and none is ever agreed on.
    Dictionary,
    /// Expanding it takes a window of more than [`COMPRESSION_WINDOW_BYTES`]; holds what it takes, in bytes.
    Window(u64),
    /// It is longer than a message may be when expanded.
    TooLong {
        /// Bytes that it says it has when expanded.
        length: u64,
        /// Bytes allowed.
        max: u32,
    },
}

impl CompressionError {
    /// What the peer is told in Goodbye.
    #[must_use]
    pub const fn wire_error(&self) -> WireError {
        match self {
            CompressionError::TooLong { .. } => WireError::FrameTooLong,
            _ => WireError::BadCompression,
        }
    }

    /// What the peer did, for this side's own log.
    #[must_use]
    pub const fn detail(&self) -> &'static str {
        match self {
            CompressionError::Truncated => "a compressed payload ends within its header",
            CompressionError::BadMagic => "a compressed payload is no zstd frame",
            CompressionError::Reserved => "a compressed payload sets a reserved bit",
            CompressionError::NoLength => "a compressed payload does not say its length",
            CompressionError::Dictionary => "a compressed payload needs a dictionary",
            CompressionError::Window(_) => "a compressed payload takes too large a window",
            CompressionError::TooLong { .. } => "a compressed payload expands past the limit",
        }
    }
}

impl fmt::Display for CompressionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.detail())?;
        match self {
            CompressionError::Window(bytes) => {
                write!(f, ": {bytes} bytes, at most {COMPRESSION_WINDOW_BYTES} are allowed")
            }
            CompressionError::TooLong { length, max } => {
                write!(f, ": {length} bytes, at most {max} are allowed")
            }
            _ => Ok(()),
        }
    }
}

impl Error for CompressionError {}

/// How long a compressed payload is when expanded, in bytes, as its header says; at most `length_max`.
///
/// What the header says is not yet true: who expands it stops at this length, and refuses a payload
/// that ends before or after it, or that anything follows.
///
/// # Errors
///
/// [`CompressionError`] for a header that no peer may send.
pub fn expanded_length(payload: &[u8], length_max: u32) -> Result<u32, CompressionError> {
    let (magic, rest) = payload.split_first_chunk().ok_or(CompressionError::Truncated)?;
    if *magic != MAGIC {
        return Err(CompressionError::BadMagic);
    }
    let (&descriptor, rest) = rest.split_first().ok_or(CompressionError::Truncated)?;
    if descriptor & RESERVED != 0 {
        return Err(CompressionError::Reserved);
    }
    if descriptor & DICTIONARY != 0 {
        return Err(CompressionError::Dictionary);
    }
    let single = descriptor & SINGLE_SEGMENT != 0;
    let rest = if single { rest } else { check_window(rest)? };
    let length = match descriptor >> 6 {
        0 if single => number::<1>(rest)?,
        0 => return Err(CompressionError::NoLength),
        1 => number::<2>(rest)? + 256,
        2 => number::<4>(rest)?,
        _ => number::<8>(rest)?,
    };
    let too_long = CompressionError::TooLong { length, max: length_max };
    u32::try_from(length).ok().filter(|length| *length <= length_max).ok_or(too_long)
}

/// Checks the byte that gives the window, and gives the bytes behind it.
fn check_window(bytes: &[u8]) -> Result<&[u8], CompressionError> {
    let (&window, rest) = bytes.split_first().ok_or(CompressionError::Truncated)?;
    let base = 1_u64 << (10 + (window >> 3));
    let bytes = base + base / 8 * u64::from(window & 7);
    if bytes > COMPRESSION_WINDOW_BYTES.into() {
        return Err(CompressionError::Window(bytes));
    }
    Ok(rest)
}

/// The little-endian number in the first `N` bytes.
fn number<const N: usize>(bytes: &[u8]) -> Result<u64, CompressionError> {
    let bytes = bytes.first_chunk::<N>().ok_or(CompressionError::Truncated)?;
    Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use std::string::ToString;
    use std::vec::Vec;

    use super::*;

    fn frame(head: &[u8]) -> Vec<u8> {
        [&MAGIC, head].concat()
    }

    #[test]
    fn length_of_every_width_is_read() {
        let max = u32::MAX;
        assert_eq!(expanded_length(&frame(&[0x20, 0]), max), Ok(0));
        assert_eq!(expanded_length(&frame(&[0x20, 255]), max), Ok(255));
        assert_eq!(expanded_length(&frame(&[0x60, 0, 0]), max), Ok(256));
        assert_eq!(expanded_length(&frame(&[0x60, 0xFF, 0xFF]), max), Ok(65_791));
        assert_eq!(expanded_length(&frame(&[0xA0, 1, 2, 3, 4]), max), Ok(0x0403_0201));
        assert_eq!(expanded_length(&frame(&[0xE0, 1, 2, 3, 4, 0, 0, 0, 0]), max), Ok(0x0403_0201));
        // With a window, and with a checksum of the content.
        assert_eq!(expanded_length(&frame(&[0x40, 0x58, 0, 1]), max), Ok(512));
        assert_eq!(expanded_length(&frame(&[0x64, 0, 1]), max), Ok(512));
    }

    #[test]
    fn length_past_the_limit_is_refused_whatever_its_width() {
        assert_eq!(expanded_length(&frame(&[0x60, 0, 0]), 256), Ok(256));
        let one_more = CompressionError::TooLong { length: 257, max: 256 };
        assert_eq!(expanded_length(&frame(&[0x60, 1, 0]), 256), Err(one_more));
        assert_eq!(one_more.wire_error(), WireError::FrameTooLong);
        let huge = expanded_length(&frame(&[0xE0, 0, 0, 0, 0, 1, 0, 0, 0]), u32::MAX);
        assert_eq!(huge, Err(CompressionError::TooLong { length: 1 << 32, max: u32::MAX }));
        let most = expanded_length(&[&MAGIC[..], &[0xE0], &[0xFF; 8]].concat(), u32::MAX);
        assert_eq!(most, Err(CompressionError::TooLong { length: u64::MAX, max: u32::MAX }));
    }

    #[test]
    fn header_that_may_not_be_sent_is_refused_with_its_reason() {
        let refused: [(&[u8], CompressionError); 8] = [
            (&[0x00, 0x58], CompressionError::NoLength),
            (&[0x28, 0], CompressionError::Reserved),
            (&[0x21, 7, 0], CompressionError::Dictionary),
            (&[0x23, 7, 0, 0, 0, 0], CompressionError::Dictionary),
            // 8 MiB is the most, and an eighth more is the next that there is.
            (&[0x40, 0x69, 0, 0], CompressionError::Window(9 << 20)),
            (&[0x40, 0xFF, 0, 0], CompressionError::Window((15 << 41) / 8)),
            (&[0x40], CompressionError::Truncated),
            (&[], CompressionError::Truncated),
        ];
        for (head, expected) in refused {
            let error = expanded_length(&frame(head), u32::MAX).unwrap_err();
            assert_eq!(error, expected, "{head:02x?}");
            assert_eq!(error.wire_error(), WireError::BadCompression);
            assert!(error.to_string().starts_with(error.detail()));
        }
        assert_eq!(expanded_length(&frame(&[0x40, 0x68, 0, 0]), u32::MAX), Ok(256));
        // A skippable frame, and one of an older format.
        for magic in [[0x50, 0x2A, 0x4D, 0x18], [0x27, 0xB5, 0x2F, 0xFD]] {
            let bytes = [&magic[..], &[0x20, 0]].concat();
            assert_eq!(expanded_length(&bytes, 1), Err(CompressionError::BadMagic));
        }
    }

    #[test]
    fn header_cut_anywhere_is_refused() {
        let whole = frame(&[0xC0, 0x58, 1, 2, 0, 0, 0, 0, 0, 0]);
        assert_eq!(expanded_length(&whole, u32::MAX), Ok(513));
        for cut in 0..whole.len() {
            let error = expanded_length(&whole[..cut], u32::MAX);
            assert_eq!(error, Err(CompressionError::Truncated), "{cut}");
        }
    }
}
