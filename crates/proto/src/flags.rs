//! The flags byte of a frame header.

use core::fmt;
use core::ops::BitOr;

/// The flags of one frame.
///
/// Any byte is a `Flags`; which combinations a frame may carry is checked in
/// [`Header::decode`](crate::Header::decode): `ENCRYPTED` must be zero, `REQUEST` and `RESPONSE` do
/// not stand together, and `ERROR` stands only with `RESPONSE` or `STREAM`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(u8);

macro_rules! flags {
    ($($(#[doc = $doc:literal])+ $name:ident = $bits:literal;)+) => {
        impl Flags {
            $($(#[doc = $doc])+ pub const $name: Flags = Flags($bits);)+
        }

        const NAMES: &[(u8, &str)] = &[$(($bits, stringify!($name))),+];
    };
}

flags! {
    /// The payload, extension block aside, is compressed with zstd. Only with
    /// [`Features::COMPRESSION`](crate::Features::COMPRESSION).
    COMPRESSED = 0x01;
    /// Reserved; must be zero in version 1.
    ENCRYPTED = 0x02;
    /// More frames of this call follow in this direction.
    STREAM = 0x04;
    /// To be dispatched before frames without it.
    PRIORITY = 0x08;
    /// A response is expected.
    REQUEST = 0x10;
    /// Answers the request with the same id.
    RESPONSE = 0x20;
    /// The payload is a [`Status`](crate::Status).
    ERROR = 0x40;
    /// The payload begins with an extension block.
    EXTENDED = 0x80;
}

impl Flags {
    /// No flag: a plain one-way frame.
    pub const NONE: Flags = Flags(0);

    /// The byte on the wire.
    #[inline]
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The flags of a byte from the wire, unchecked.
    #[inline]
    #[must_use]
    pub const fn from_bits(bits: u8) -> Flags {
        Flags(bits)
    }

    /// Whether every flag of `other` is set.
    #[inline]
    #[must_use]
    pub const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// The flags set in either.
    #[inline]
    #[must_use]
    pub const fn union(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }

    /// These flags but those of `other`.
    #[inline]
    #[must_use]
    pub const fn without(self, other: Flags) -> Flags {
        Flags(self.0 & !other.0)
    }

    /// Whether any flag of `other` is set.
    #[inline]
    #[must_use]
    pub const fn intersects(self, other: Flags) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether a response is expected.
    #[inline]
    #[must_use]
    pub const fn is_request(self) -> bool {
        self.contains(Flags::REQUEST)
    }

    /// Whether this answers a request.
    #[inline]
    #[must_use]
    pub const fn is_response(self) -> bool {
        self.contains(Flags::RESPONSE)
    }

    /// Whether this is neither a request nor a response.
    #[inline]
    #[must_use]
    pub const fn is_one_way(self) -> bool {
        !self.intersects(Flags::REQUEST.union(Flags::RESPONSE))
    }
}

impl BitOr for Flags {
    type Output = Flags;

    #[inline]
    fn bitor(self, other: Flags) -> Flags {
        self.union(other)
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flags(")?;
        if self.0 == 0 {
            f.write_str("NONE")?;
        }
        let set = NAMES.iter().filter(|(bit, _)| self.0 & bit != 0);
        for (at, (_, name)) in set.enumerate() {
            if at > 0 {
                f.write_str(" | ")?;
            }
            f.write_str(name)?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use std::format;

    use super::*;

    #[test]
    fn flags_print_their_names() {
        assert_eq!(format!("{:?}", Flags::NONE), "Flags(NONE)");
        assert_eq!(format!("{:?}", Flags::RESPONSE | Flags::ERROR), "Flags(RESPONSE | ERROR)");
    }

    #[test]
    fn flags_tell_request_response_and_one_way_apart() {
        assert!(Flags::REQUEST.is_request() && !Flags::REQUEST.is_one_way());
        assert!(Flags::RESPONSE.is_response() && !Flags::RESPONSE.is_one_way());
        assert!((Flags::STREAM | Flags::PRIORITY).is_one_way());
        assert!(!Flags::REQUEST.contains(Flags::REQUEST | Flags::STREAM));
    }
}
