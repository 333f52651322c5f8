//! The kind of a frame: which method it calls, or what it tells the connection.

use core::fmt;

/// The kind of a frame; never 0.
///
/// `0x0001`-`0x00FF` are the connection's own, `0x0100`-`0xFFFF` are application methods.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind(u16);

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $const:ident = $number:literal, $name:literal;)+) => {
        impl Kind {
            $($(#[doc = $doc])+ pub const $const: Kind = Kind($number);)+

            /// The name of one of the connection's own kinds, or `None`.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some($name),)+
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    /// The client's first frame; payload [`Hello`](crate::Hello).
    HELLO = 1, "Hello";
    /// The server grants; payload [`HelloAck`](crate::HelloAck).
    HELLO_ACK = 2, "HelloAck";
    /// The server refuses; payload [`HelloReject`](crate::HelloReject).
    HELLO_REJECT = 3, "HelloReject";
    /// No new calls; payload [`Goodbye`](crate::Goodbye).
    GOODBYE = 4, "Goodbye";
    /// Are you there; payload up to 64 bytes, given back in Pong.
    PING = 5, "Ping";
    /// Answers Ping with its id and payload.
    PONG = 6, "Pong";
    /// The caller gave the call with this id up.
    CANCEL = 7, "Cancel";
    /// Grants credit to the stream with this id.
    CREDIT = 8, "Credit";
    /// Announces a bulk segment, whose descriptor comes with it.
    SEGMENT = 9, "Segment";
    /// A bulk segment is used no more.
    SEGMENT_RETIRED = 10, "SegmentRetired";
    /// Which methods are there; answered with [`Description`](crate::Description).
    DESCRIBE = 11, "Describe";
    /// What one method takes and gives; answered with [`MethodDetails`](crate::MethodDetails).
    DESCRIBE_METHOD = 12, "DescribeMethod";
}

impl Kind {
    /// The kind of this number, or `None` for 0.
    #[inline]
    #[must_use]
    pub const fn new(number: u16) -> Option<Kind> {
        if number == 0 { None } else { Some(Kind(number)) }
    }

    /// The application method of this number, or `None` below `0x0100`.
    #[inline]
    #[must_use]
    pub const fn application(number: u16) -> Option<Kind> {
        if number < 0x100 { None } else { Some(Kind(number)) }
    }

    /// The number on the wire.
    #[inline]
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }

    /// Whether this is one of the connection's own kinds, known or not.
    #[inline]
    #[must_use]
    pub const fn is_connection(self) -> bool {
        self.0 < 0x100
    }

    /// Whether this is an application method.
    #[inline]
    #[must_use]
    pub const fn is_application(self) -> bool {
        self.0 >= 0x100
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name}(0x{:04X})", self.0),
            None => write!(f, "0x{:04X}", self.0),
        }
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kind({self})")
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn kind_zero_is_never() {
        assert_eq!(Kind::new(0), None);
        assert_eq!(Kind::application(0xFF), None);
        assert!(Kind::new(0xFF).unwrap().is_connection());
        assert!(Kind::application(0x100).unwrap().is_application());
    }

    #[test]
    fn kind_displays_name_and_number() {
        assert_eq!(Kind::HELLO.to_string(), "Hello(0x0001)");
        assert_eq!(Kind::new(0x310).unwrap().to_string(), "0x0310");
        assert_eq!(Kind::new(0x7F).unwrap().to_string(), "0x007F");
    }
}
