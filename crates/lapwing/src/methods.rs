//! Names and numbers of methods, and what a connection agreed on.

use lapwing_proto::{Checksum, Description, MessageError, MethodShape, PeerMisbehaved, WireError};

use crate::client::Core;
use crate::error::CallError;

/// The kind of a server's bytes route: what [`IpcClient::send_bytes`](crate::IpcClient::send_bytes)
/// calls.
pub const BYTES: u16 = 0x0400;

/// A method that a server has, as it describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Method {
    /// Its kind: what `call_raw` takes.
    pub kind: u16,
    /// Its name, at most 128 bytes.
    pub name: String,
    /// What its calls look like.
    pub shape: Shape,
}

/// One method in full, as its server describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MethodDetails {
    /// Its kind.
    pub kind: u16,
    /// Its name, at most 128 bytes.
    pub name: String,
    /// What its calls look like.
    pub shape: Shape,
    /// How its payloads are written: `raw`, `postcard`, `json` or the name of a codec of the server's own.
    pub codec: String,
    /// JSON Schema of its request, or of each item of it, as the server says; at most 64 KiB.
    pub request_schema: Option<String>,
    /// JSON Schema of its reply, or of each item of it, as the server says; at most 64 KiB.
    pub reply_schema: Option<String>,
}

/// How a method is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// One request, one reply.
    Unary,
    /// One message, no reply.
    OneWay,
    /// One request, a stream of replies.
    ServerStream,
    /// A stream of requests, one reply.
    ClientStream,
    /// A stream in each direction.
    Duplex,
}

/// What the two sides of a connection agreed on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Agreement {
    /// The server's number for this connection.
    pub connection_id: u64,
    /// The server's program, as it says.
    pub server_program: String,
    /// Whether frames go through shared memory.
    pub shared_memory: bool,
    /// The name of the checksum on each frame: `crc32c`, `crc32` or `off`.
    pub checksum: &'static str,
    /// The longest request, in bytes.
    pub request_bytes: usize,
    /// Calls that may be in flight at once.
    pub calls_in_flight: u32,
}

pub(crate) fn agreement(core: &Core) -> Agreement {
    let agreed = &core.agreed;
    Agreement {
        connection_id: agreed.connection_id,
        server_program: agreed.peer_program.clone(),
        shared_memory: core.doorbell.is_some(),
        checksum: Checksum::name(agreed.checksum),
        request_bytes: crate::client::lock(&core.outbox).sending.message_max(),
        calls_in_flight: agreed.limits.calls_in_flight,
    }
}

pub(crate) fn from_description(
    description: Result<Description, MessageError>,
) -> Result<Vec<Method>, CallError> {
    let description = description.map_err(|_| PeerMisbehaved {
        error: WireError::BadMessage,
        detail: "its description cannot be read",
    })?;
    let methods = description.methods.into_iter();
    Ok(methods.map(|m| Method { kind: m.kind, name: m.name, shape: shape_of(m.shape) }).collect())
}

pub(crate) fn from_details(
    kind: u16,
    details: Result<lapwing_proto::MethodDetails, MessageError>,
) -> Result<MethodDetails, CallError> {
    let details = details.ok().filter(|details| details.kind == kind);
    let details = details.ok_or(PeerMisbehaved {
        error: WireError::BadMessage,
        detail: "its description of a method cannot be read",
    })?;
    let lapwing_proto::MethodDetails { name, shape, codec, request_schema, reply_schema, .. } =
        details;
    let shape = shape_of(shape);
    Ok(MethodDetails { kind, name, shape, codec, request_schema, reply_schema })
}

fn shape_of(shape: MethodShape) -> Shape {
    match shape {
        MethodShape::Unary => Shape::Unary,
        MethodShape::OneWay => Shape::OneWay,
        MethodShape::ServerStream => Shape::ServerStream,
        MethodShape::ClientStream => Shape::ClientStream,
        MethodShape::Duplex => Shape::Duplex,
    }
}
