//! The answer to Describe: which methods a server has.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::limits::{MESSAGE_BYTES_MAX, METHOD_NAME_BYTES};
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
            let fault = "a method name is longer than 128 bytes or has control characters";
            check_name(&method.name, METHOD_NAME_BYTES, fault)?;
            if method.kind < 0x100 {
                return Err(MessageError::Field("a method has a kind that is the connection's"));
            }
        }
        Ok(description)
    }
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
}
