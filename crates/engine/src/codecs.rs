//! Methods with JSON on one side and a file's bytes on the other.

use std::borrow::Cow;

use lapwing::schemars::generate::SchemaGenerator;
use lapwing::schemars::{JsonSchema, Schema};
use lapwing::{Codec, CodecError, Decode, Encode, Json, Payload, Raw};

use crate::types::{ReadRequest, WriteReply, WriteRequest};

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

/// What `describe` tells of the content of a file that is to be written: bytes, and where the request is.
pub(crate) enum NewContent {}

impl JsonSchema for NewContent {
    fn schema_name() -> Cow<'static, str> {
        "Bytes".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        // Its definition is told beside; the payload does not hold it.
        generator.subschema_for::<WriteRequest>();
        let mut schema = Payload::json_schema(generator);
        let description = "The file's content. Which file, and how, is a WriteRequest: the JSON of the call's \
                           metadata pair `request`; in a shell, --metadata request='{\"path\": \"notes.md\"}'";
        schema.insert("description".to_owned(), description.into());
        schema
    }
}
