//! Methods with JSON on one side and a file's bytes on the other.

use lapwing::{Codec, CodecError, Decode, Encode, Json, Payload, Raw};

use crate::types::{ReadRequest, WriteReply};

/// The request is JSON, and the reply is bytes as they are.
#[derive(Debug, Clone, Copy)]
pub enum JsonThenBytes {}

/// The request is bytes as they are, and the reply is JSON.
#[derive(Debug, Clone, Copy)]
pub enum BytesThenJson {}

impl Codec for JsonThenBytes {
    const NAME: &'static str = "json/raw";
}

impl Codec for BytesThenJson {
    const NAME: &'static str = "raw/json";
}

impl Encode<ReadRequest> for JsonThenBytes {
    fn encode(value: &ReadRequest, into: &mut Vec<u8>) -> Result<(), CodecError> {
        Json::encode(value, into)
    }
}

impl Decode<Payload> for JsonThenBytes {
    fn decode(payload: Payload) -> Result<Payload, CodecError> {
        Ok(payload)
    }
}

impl Encode<Payload> for BytesThenJson {
    fn encode(value: &Payload, into: &mut Vec<u8>) -> Result<(), CodecError> {
        Raw::encode(value, into)
    }
}

impl Decode<Payload> for BytesThenJson {
    fn decode(payload: Payload) -> Result<Payload, CodecError> {
        Ok(payload)
    }
}

impl Encode<WriteReply> for BytesThenJson {
    fn encode(value: &WriteReply, into: &mut Vec<u8>) -> Result<(), CodecError> {
        Json::encode(value, into)
    }
}

impl Decode<WriteReply> for BytesThenJson {
    fn decode(payload: Payload) -> Result<WriteReply, CodecError> {
        Json::decode(payload)
    }
}
