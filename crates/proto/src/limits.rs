//! Every limit of the protocol: one row gives its name, default, unit and the sentence that an
//! error about it says.

/// One row of the table of limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The name of the constant in this module.
    pub name: &'static str,
    /// The default, in `unit`.
    pub default: u64,
    /// `"bytes"`, `"milliseconds"`, `"items"`, `"connections"` or `"calls"`.
    pub unit: &'static str,
    /// What an error about this limit says, without the figures.
    pub sentence: &'static str,
}

macro_rules! limits {
    ($(
        $(#[doc = $doc:literal])+
        $name:ident: $type:ty = $default:expr, $unit:literal, $sentence:literal;
    )+) => {
        $($(#[doc = $doc])+ pub const $name: $type = $default;)+

        /// All limits, in the order of the table in `docs/protocol.md`.
        pub const LIMITS: &[Limit] = &[$(Limit {
            name: stringify!($name),
            default: $default as u64,
            unit: $unit,
            sentence: $sentence,
        }),+];
    };
}

const KIB: u32 = 1024;
const MIB: u32 = 1024 * KIB;

limits! {
    /// Length of a frame header in bytes. Fixed.
    HEADER_BYTES: usize = 24, "bytes",
        "a frame header has 24 bytes";
    /// Default length of one ring in bytes; a power of two.
    RING_BYTES: u32 = 256 * KIB, "bytes",
        "the ring length must be a power of two from 64 KiB to 64 MiB";
    /// Shortest ring in bytes.
    RING_BYTES_MIN: u32 = 64 * KIB, "bytes",
        "the ring length must be a power of two from 64 KiB to 64 MiB";
    /// Longest ring in bytes.
    RING_BYTES_MAX: u32 = 64 * MIB, "bytes",
        "the ring length must be a power of two from 64 KiB to 64 MiB";
    /// Default for the largest message, in payload bytes.
    MESSAGE_BYTES: u32 = 10 * MIB, "bytes",
        "the message is longer than this connection allows";
    /// The largest that `MESSAGE_BYTES` may be configured to, in payload bytes.
    MESSAGE_BYTES_MAX: u32 = 1024 * MIB, "bytes",
        "the largest message may not be configured above 1 GiB";
    /// The smallest that `MESSAGE_BYTES` may be configured to or asked for, in payload bytes: a Status without words.
    MESSAGE_BYTES_MIN: u32 = 4, "bytes",
        "the largest message may not be too short for an error";
    /// Bulk memory that one side of a connection may have announced at a time, in bytes; more where one message
    /// may be longer: [`bulk_max`].
    BULK_BYTES: u32 = 64 * MIB, "bytes",
        "this connection's bulk memory is used up";
    /// Default for the bulk memory of all connections of one user id, both sides', in bytes.
    BULK_BYTES_PER_UID: u64 = 4096 * MIB as u64, "bytes",
        "this user's bulk memory is used up";
    /// Default for how long bulk memory stays unused before it is given back, in milliseconds.
    BULK_IDLE_MS: u32 = 2000, "milliseconds",
        "bulk memory that is not used is given back";
    /// The largest window of a compressed payload that does not consist of one segment, in bytes.
    COMPRESSION_WINDOW_BYTES: u32 = 8 * MIB, "bytes",
        "the window of a compressed payload is too large";
    /// Default for connections that a server holds at once.
    CONNECTIONS: u32 = 1024, "connections",
        "the server has all the connections it allows";
    /// Default for connections that one user id holds at once.
    CONNECTIONS_PER_UID: u32 = 1024, "connections",
        "this user has all the connections the server allows one user";
    /// Default for calls in flight on one connection and direction.
    CALLS_IN_FLIGHT: u32 = 256, "calls",
        "this connection has all the calls in flight that it allows";
    /// The largest that `CALLS_IN_FLIGHT` may be configured to.
    CALLS_IN_FLIGHT_MAX: u32 = 65536, "calls",
        "calls in flight may not be configured above 65536";
    /// Default window of a stream and direction, in items.
    STREAM_ITEMS: u32 = 64, "items",
        "the stream's window has no room for another item";
    /// Default window of a stream and direction, in payload bytes.
    STREAM_BYTES: u32 = 256 * KIB, "bytes",
        "the stream's window has no room for so many bytes";
    /// Time from connect to the end of the handshake, in milliseconds.
    HANDSHAKE_MS: u32 = 5000, "milliseconds",
        "the handshake did not end in time";
    /// Time that running calls get after Goodbye, in milliseconds.
    DRAIN_MS: u32 = 10_000, "milliseconds",
        "the connection did not drain in time";
    /// Keys and values of all metadata entries of one frame together, in bytes.
    METADATA_BYTES: u32 = 8 * KIB, "bytes",
        "the metadata of one frame is too long";
    /// Longest method name in UTF-8 bytes.
    METHOD_NAME_BYTES: u32 = 128, "bytes",
        "the method name is too long";
    /// Longest name of a codec in UTF-8 bytes.
    CODEC_NAME_BYTES: u32 = 32, "bytes",
        "the codec's name is too long";
    /// Longest schema of a method's request or reply in UTF-8 bytes.
    SCHEMA_BYTES: u32 = 64 * KIB, "bytes",
        "the schema is too long";
    /// Longest program name in UTF-8 bytes.
    PROGRAM_NAME_BYTES: u32 = 128, "bytes",
        "the program name is too long";
    /// Longest message of a status in UTF-8 bytes; longer ones are cut when encoded.
    STATUS_MESSAGE_BYTES: u32 = 4096, "bytes",
        "the status message is too long";
    /// Longest payload of Hello, HelloAck, HelloReject and Goodbye in bytes.
    HANDSHAKE_PAYLOAD_BYTES: u32 = 4096, "bytes",
        "the handshake message is too long";
    /// Longest payload of Ping and Pong in bytes.
    PING_PAYLOAD_BYTES: u32 = 64, "bytes",
        "the ping payload is too long";
    /// Longest line in a log in bytes; longer ones are cut.
    LOG_LINE_BYTES: u32 = 4 * KIB, "bytes",
        "the log line is too long";
}

/// The longest frame payload, in bytes, that goes into a ring of `ring_bytes`: a quarter of it.
///
/// It bounds the whole payload of the frame, extension block included, and is the `length_max` of
/// [`Header::decode`](crate::Header::decode) for frames read from a ring.
#[must_use]
pub const fn inline_max(ring_bytes: u32) -> u32 {
    ring_bytes / 4
}

/// Bulk memory that one side of a connection may have announced and not retired, in bytes, where the
/// largest message has `message_bytes`: [`BULK_BYTES`], or one block for such a message if that is more.
#[must_use]
pub const fn bulk_max(message_bytes: u32) -> u64 {
    let one = (message_bytes as u64).next_power_of_two();
    if one > BULK_BYTES as u64 { one } else { BULK_BYTES as u64 }
}

/// Whether `ring_bytes` is a length that a ring may have.
#[must_use]
pub const fn is_ring_bytes(ring_bytes: u32) -> bool {
    ring_bytes.is_power_of_two() && ring_bytes >= RING_BYTES_MIN && ring_bytes <= RING_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_each_have_a_name_a_unit_and_a_sentence_of_their_own_row() {
        for (at, limit) in LIMITS.iter().enumerate() {
            assert!(!limit.sentence.is_empty() && limit.default > 0, "{}", limit.name);
            assert!(LIMITS[at + 1..].iter().all(|other| other.name != limit.name));
            let units = ["bytes", "milliseconds", "items", "connections", "calls"];
            assert!(units.contains(&limit.unit), "{}", limit.name);
        }
    }

    #[test]
    fn ring_bytes_outside_the_bounds_are_refused() {
        for good in [RING_BYTES_MIN, RING_BYTES, RING_BYTES_MAX] {
            assert!(is_ring_bytes(good));
        }
        for bad in [0, 1, RING_BYTES_MIN / 2, RING_BYTES + 64, RING_BYTES_MAX * 2, u32::MAX] {
            assert!(!is_ring_bytes(bad));
        }
        assert_eq!(inline_max(RING_BYTES), 65536);
    }
}
