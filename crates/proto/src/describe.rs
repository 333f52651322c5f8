//! The answers to Describe, which methods a server has, and to DescribeMethod, what one of them takes
//! and gives.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::limits::{CODEC_NAME_BYTES, MESSAGE_BYTES_MAX, METHOD_NAME_BYTES, SCHEMA_BYTES};
use crate::message::{self, MessageError, check_name};

/// How many frames a method takes and gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MethodShape {
    /// One request, one response.
    Unary,
    /// One frame, no response.
    OneWay,
    /// One request, a stream of responses.
    ServerStream,
    /// A stream of requests, one response.
    ClientStream,
    /// A stream in each direction.
    Duplex,
}

/// One method of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodDescription {
    /// Number of its kind, `0x0100` or above.
    pub kind: u16,
    /// Its name, as `fs.search`; at most 128 bytes.
    pub name: String,
    /// Its shape.
    pub shape: MethodShape,
}

/// All methods of a server: the payload of the response to Describe.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Description {
    /// The methods, in no order that a reader may rely on.
    pub methods: Vec<MethodDescription>,
}

impl Description {
    /// The payload of the response.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        message::encode(self)
    }

    /// Reads the payload of the response. Its length is bounded by the frame it came in.
    ///
    /// # Errors
    ///
    /// [`MessageError`] if it cannot be decoded, has bytes left over, or describes a method with a
    /// name that is too long or a kind that is no application's.
    pub fn decode(bytes: &[u8]) -> Result<Description, MessageError> {
        let description: Description = message::decode(bytes, MESSAGE_BYTES_MAX)?;
        for method in &description.methods {
            check_method(method.kind, &method.name)?;
        }
        Ok(description)
    }
}

/// Asks for one method: the payload of DescribeMethod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodWanted {
    /// Number of its kind.
    pub kind: u16,
}

/// The longest payload of DescribeMethod in bytes: a number of 16 bits.
const METHOD_WANTED_BYTES: u32 = 3;

impl MethodWanted {
    /// The payload of the request.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        message::encode(self)
    }

    /// Reads the payload of the request.
    ///
    /// # Errors
    ///
    /// [`MessageError`] if it cannot be decoded or has bytes left over.
    pub fn decode(bytes: &[u8]) -> Result<MethodWanted, MessageError> {
        message::decode(bytes, METHOD_WANTED_BYTES)
    }
}

/// One method in full: the payload of the response to DescribeMethod.
///
/// A schema is JSON text in UTF-8 that nothing here looks into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodDetails {
    /// Number of its kind, `0x0100` or above.
    pub kind: u16,
    /// Its name, at most 128 bytes.
    pub name: String,
    /// Its shape.
    pub shape: MethodShape,
    /// How its payloads are written: `raw`, `postcard`, `json`, or another name of at most 32 bytes.
    pub codec: String,
    /// The JSON Schema of its request, or of an item of it; at most 64 KiB.
    pub request_schema: Option<String>,
    /// The JSON Schema of its reply, or of an item of it; at most 64 KiB.
    pub reply_schema: Option<String>,
}

/// The longest payload of the response to DescribeMethod in bytes: two schemas, two names, and what
/// stands around them.
const METHOD_DETAILS_BYTES: u32 = 2 * SCHEMA_BYTES + METHOD_NAME_BYTES + CODEC_NAME_BYTES + 64;

impl MethodDetails {
    /// The payload of the response.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        message::encode(self)
    }

    /// Reads the payload of the response.
    ///
    /// # Errors
    ///
    /// [`MessageError`] if it cannot be decoded, has bytes left over, or has a kind that is no
    /// application's, or a name or a schema that is too long.
    pub fn decode(bytes: &[u8]) -> Result<MethodDetails, MessageError> {
        let details: MethodDetails = message::decode(bytes, METHOD_DETAILS_BYTES)?;
        check_method(details.kind, &details.name)?;
        let fault = "a codec's name is longer than 32 bytes or has control characters";
        check_name(&details.codec, CODEC_NAME_BYTES, fault)?;
        for schema in [&details.request_schema, &details.reply_schema].into_iter().flatten() {
            if schema.len() > SCHEMA_BYTES as usize {
                return Err(MessageError::Field("a schema is longer than 64 KiB"));
            }
        }
        Ok(details)
    }
}

fn check_method(kind: u16, name: &str) -> Result<(), MessageError> {
    let fault = "a method name is longer than 128 bytes or has control characters";
    check_name(name, METHOD_NAME_BYTES, fault)?;
    if kind < 0x100 {
        return Err(MessageError::Field("a method has a kind that is the connection's"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;

    fn method(kind: u16, name: &str) -> MethodDescription {
        MethodDescription { kind, name: String::from(name), shape: MethodShape::Unary }
    }

    #[test]
    fn description_returns_from_its_bytes() {
        let methods = vec![method(0x310, "fs.search"), method(0x0FFF, "")];
        let description = Description { methods };
        assert_eq!(Description::decode(&description.encode()), Ok(description));
    }

    #[test]
    fn description_with_a_bad_method_is_refused() {
        for bad in [method(0xFF, "a"), method(0x100, &"a".repeat(129)), method(0x100, "a\nb")] {
            let bytes = Description { methods: vec![bad] }.encode();
            assert!(matches!(Description::decode(&bytes), Err(MessageError::Field(_))));
        }
        // A count of methods that no frame could hold must not allocate for them.
        let huge = [0xFF, 0xFF, 0xFF, 0xFF, 0x0F];
        assert_eq!(Description::decode(&huge), Err(MessageError::Malformed));
    }

    fn details() -> MethodDetails {
        MethodDetails {
            kind: 0x310,
            name: "fs.search".into(),
            shape: MethodShape::ServerStream,
            codec: "postcard".into(),
            request_schema: Some("{\"type\":\"string\"}".into()),
            reply_schema: None,
        }
    }

    #[test]
    fn details_with_the_longest_of_everything_return_from_their_bytes() {
        let schema = Some("x".repeat(SCHEMA_BYTES as usize));
        let (request_schema, reply_schema) = (schema.clone(), schema);
        let name = "n".repeat(METHOD_NAME_BYTES as usize);
        let codec = "c".repeat(CODEC_NAME_BYTES as usize);
        let longest =
            MethodDetails { kind: 0xFFFF, name, codec, request_schema, reply_schema, ..details() };
        for details in [details(), longest] {
            assert_eq!(MethodDetails::decode(&details.encode()), Ok(details));
        }
        let wanted = MethodWanted { kind: 0xFFFF };
        assert_eq!(MethodWanted::decode(&wanted.encode()), Ok(wanted));
    }

    #[test]
    fn details_that_break_a_bound_are_refused() {
        let long = || Some("x".repeat(SCHEMA_BYTES as usize + 1));
        for bad in [
            MethodDetails { kind: 0xFF, ..details() },
            MethodDetails { name: "n".repeat(129), ..details() },
            MethodDetails { codec: "c".repeat(33), ..details() },
            MethodDetails { codec: "\u{1b}[31m".into(), ..details() },
            MethodDetails { request_schema: long(), ..details() },
            MethodDetails { reply_schema: long(), ..details() },
        ] {
            let decoded = MethodDetails::decode(&bad.encode());
            assert!(matches!(decoded, Err(MessageError::Field(_))), "{decoded:?}");
        }
        let huge = MethodDetails { reply_schema: Some("x".repeat(1 << 20)), ..details() };
        let decoded = MethodDetails::decode(&huge.encode());
        assert!(matches!(decoded, Err(MessageError::TooLong { .. })), "{decoded:?}");
        assert!(matches!(
            MethodWanted::decode(&[0x90, 0x86, 0x80, 0x00]),
            Err(MessageError::TooLong { .. })
        ));
    }

    #[test]
    fn details_cut_at_any_byte_or_with_one_more_are_refused() {
        let mut bytes = details().encode();
        for end in 0..bytes.len() {
            assert_eq!(MethodDetails::decode(&bytes[..end]), Err(MessageError::Malformed));
        }
        bytes.push(0);
        assert_eq!(MethodDetails::decode(&bytes), Err(MessageError::Trailing(1)));
        // A schema that says it is longer than all memory.
        let mut bytes = details().encode();
        let at = bytes.len() - 20;
        bytes.truncate(at);
        bytes.extend_from_slice(&[0xFF, 0xFF, 0xFF, 0xFF, 0x0F]);
        assert_eq!(MethodDetails::decode(&bytes), Err(MessageError::Malformed));
    }
}
