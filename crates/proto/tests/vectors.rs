//! Every vector in `vectors/` is read, and every valid one is written again to the same bytes. The
//! vectors were made by a program in another language that shares no code with this crate.

use lapwing_proto::{
    BulkDescriptor, Checksum, Description, Entry, ExtensionBuilder, ExtensionError, Extensions,
    FrameError, Goodbye, Header, Hello, HelloAck, HelloReject, MessageError, MethodDetails,
    MethodWanted, Status, TraceContext, TransportGranted, TransportWanted,
};
use serde_json::{Value, json};

fn load(file: &str) -> Value {
    let path = format!("{}/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The cases of a list that must not be empty, each with its name.
fn cases<'a>(file: &'a Value, list: &str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    let cases = file[list].as_array().expect("a list");
    assert!(!cases.is_empty(), "{list} has no cases");
    cases.iter().map(|case| (text(&case["name"]), case))
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

fn bytes(value: &Value) -> Vec<u8> {
    from_hex(text(value))
}

fn from_hex(hex: &str) -> Vec<u8> {
    assert!(hex.is_ascii() && hex.len().is_multiple_of(2), "{hex}");
    let pairs = (0..hex.len()).step_by(2).map(|at| &hex[at..at + 2]);
    pairs.map(|pair| u8::from_str_radix(pair, 16).expect("hex")).collect()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn checksum(case: &Value) -> Checksum {
    let all = [Checksum::Off, Checksum::Crc32, Checksum::Crc32c];
    let name = text(&case["checksum"]);
    all.into_iter().find(|checksum| checksum.name() == name).expect("a checksum")
}

/// Reads a frame as a receiver does: header, length, checksum.
fn open(frame: &[u8], length_max: u32, checksum: Checksum) -> Result<(Header, &[u8]), FrameError> {
    let truncated = |needed| FrameError::Truncated { length: frame.len(), needed };
    let (head, payload) = frame.split_first_chunk().ok_or(truncated(Header::BYTES))?;
    let header = Header::decode(head, length_max)?;
    let needed = Header::BYTES + header.length as usize;
    if frame.len() != needed {
        return Err(truncated(needed));
    }
    checksum.check(frame)?;
    Ok((header, payload))
}

#[test]
fn frames_valid_are_read_and_written_again() {
    for (name, case) in cases(&load("frames.json"), "valid") {
        let (frame, checksum) = (bytes(&case["hex"]), checksum(case));
        let (header, payload) =
            open(&frame, 1024, checksum).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(json!(header.flags.bits()), case["flags"], "{name}");
        assert_eq!(json!(header.kind.number()), case["kind"], "{name}");
        assert_eq!(json!(header.id.get().to_string()), case["id"], "{name}");
        assert_eq!(payload, bytes(&case["payload"]), "{name}");
        let mut again = Header { checksum: 0, ..header }.encode().to_vec();
        again.extend_from_slice(payload);
        checksum.seal(&mut again);
        assert_eq!(again, frame, "{name}");
    }
}

#[test]
fn frames_invalid_are_refused_with_the_error_named() {
    for (name, case) in cases(&load("frames.json"), "invalid") {
        let max = u32::try_from(case["length_max"].as_u64().unwrap()).unwrap();
        let error = open(&bytes(&case["hex"]), max, checksum(case)).expect_err(name);
        assert_eq!(error.wire_error().name(), text(&case["error"]), "{name}: {error}");
    }
}

fn entry_json(entry: Entry<'_>) -> Value {
    match entry {
        Entry::Deadline { remaining_us } => {
            json!({ "type": "deadline", "remaining_us": remaining_us.to_string() })
        }
        Entry::Sent { at_ns } => json!({ "type": "sent", "at_ns": at_ns.to_string() }),
        Entry::Trace(TraceContext { trace_id, parent_id, flags }) => json!({
            "type": "trace", "trace_id": to_hex(&trace_id), "parent_id": to_hex(&parent_id),
            "flags": flags,
        }),
        Entry::Bulk(BulkDescriptor { segment, block, length }) => json!({
            "type": "bulk", "segment": segment, "block": block, "length": length.to_string(),
        }),
        Entry::Json => json!({ "type": "codec", "codec": "json" }),
        Entry::Metadata { key, value } => {
            json!({ "type": "metadata", "key": key, "value": to_hex(value) })
        }
        other => panic!("{other:?} has no vectors"),
    }
}

#[test]
fn extensions_valid_are_read_and_written_again() {
    for (name, case) in cases(&load("extensions.json"), "valid") {
        let payload = bytes(&case["hex"]);
        let (extensions, rest) = Extensions::parse(&payload).expect(name);
        let found: Vec<Value> = extensions.iter().map(entry_json).collect();
        assert_eq!(json!(found), case["entries"], "{name}");
        assert_eq!(rest, bytes(&case["rest"]), "{name}");
        let mut again = Vec::new();
        let mut builder = ExtensionBuilder::new(&mut again);
        for entry in extensions.iter() {
            builder.push(entry).expect(name);
        }
        again.extend_from_slice(rest);
        assert_eq!(json!(again == payload), case["canonical"], "{name}");
    }
}

#[test]
fn extensions_invalid_are_refused_with_the_error_named() {
    for (name, case) in cases(&load("extensions.json"), "invalid") {
        let error = Extensions::parse(&bytes(&case["hex"])).expect_err(name);
        let found = match error {
            ExtensionError::Truncated => "Truncated",
            ExtensionError::UnknownCritical(_) => "UnknownCritical",
            ExtensionError::Duplicate(_) => "Duplicate",
            ExtensionError::BadValue(_) => "BadValue",
            ExtensionError::MetadataTooLong { .. } => "MetadataTooLong",
            other => panic!("{other:?} has no vectors"),
        };
        assert_eq!(found, text(&case["error"]), "{name}");
    }
}

/// Reads a message and gives its fields as the vectors say them, and its bytes written again.
fn read(message: &str, payload: &[u8]) -> Result<(Value, Vec<u8>), MessageError> {
    Ok(match message {
        "Hello" => Hello::decode(payload).map(|hello| (hello_json(&hello), hello.encode()))?,
        "HelloAck" => HelloAck::decode(payload).map(|ack| (ack_json(&ack), ack.encode()))?,
        "HelloReject" => {
            let reject = HelloReject::decode(payload)?;
            let fields = json!({
                "error": reject.error, "sentence": reject.sentence,
                "version_min": reject.version_min, "version_max": reject.version_max,
            });
            (fields, reject.encode())
        }
        "Goodbye" => {
            let goodbye = Goodbye::decode(payload)?;
            let fields = json!({ "error": goodbye.error, "sentence": goodbye.sentence });
            (fields, goodbye.encode())
        }
        "Description" => {
            let description = Description::decode(payload)?;
            let methods = description.methods.iter().map(|method| {
                json!({ "kind": method.kind, "name": method.name, "shape": method.shape as u8 })
            });
            (json!({ "methods": methods.collect::<Vec<_>>() }), description.encode())
        }
        "MethodWanted" => {
            let wanted = MethodWanted::decode(payload)?;
            (json!({ "kind": wanted.kind }), wanted.encode())
        }
        "MethodDetails" => {
            let details = MethodDetails::decode(payload)?;
            let fields = json!({
                "kind": details.kind, "name": details.name, "shape": details.shape as u8,
                "codec": details.codec, "request_schema": details.request_schema,
                "reply_schema": details.reply_schema,
            });
            (fields, details.encode())
        }
        "Status" => {
            let status = Status::decode(payload)?;
            let fields = json!({
                "code": status.code.number(), "message": status.message,
                "details": to_hex(&status.details), "retry_after_ms": status.retry_after_ms,
            });
            (fields, status.encode())
        }
        other => panic!("no message is called {other}"),
    })
}

fn hello_json(hello: &Hello) -> Value {
    let ring_bytes = match hello.transport {
        TransportWanted::Socket => None,
        TransportWanted::SharedMemory { ring_bytes } => Some(ring_bytes),
    };
    json!({
        "version_min": hello.version_min, "version_max": hello.version_max,
        "features": hello.features.0.to_string(),
        "message_bytes": hello.limits.message_bytes,
        "calls_in_flight": hello.limits.calls_in_flight,
        "program": hello.program, "ring_bytes": ring_bytes, "checksums": hello.checksums.bits(),
    })
}

fn ack_json(ack: &HelloAck) -> Value {
    let ring_bytes = match ack.transport {
        TransportGranted::Socket => None,
        TransportGranted::SharedMemory { ring_bytes } => Some(ring_bytes),
    };
    json!({
        "version": ack.version, "features": ack.features.0.to_string(),
        "message_bytes": ack.limits.message_bytes,
        "calls_in_flight": ack.limits.calls_in_flight,
        "connection_id": ack.connection_id.to_string(), "ring_bytes": ring_bytes,
        "checksum": ack.checksum.name(), "program": ack.program,
    })
}

#[test]
fn messages_valid_are_read_and_written_again() {
    for (name, case) in cases(&load("messages.json"), "valid") {
        let (message, payload) = (text(&case["message"]), bytes(&case["hex"]));
        let (fields, again) = read(message, &payload).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(fields, case["fields"], "{message}, {name}");
        assert_eq!(again, payload, "{message}, {name}");
    }
}

#[test]
fn messages_invalid_are_refused_with_the_error_named() {
    for (name, case) in cases(&load("messages.json"), "invalid") {
        let message = text(&case["message"]);
        let error = read(message, &bytes(&case["hex"])).expect_err(name);
        let found = match error {
            MessageError::TooLong { .. } => "TooLong",
            MessageError::Malformed => "Malformed",
            MessageError::Trailing(_) => "Trailing",
            MessageError::Field(_) => "Field",
            other => panic!("{other:?} has no vectors"),
        };
        assert_eq!(found, text(&case["error"]), "{message}, {name}");
    }
}

#[path = "vectors/protocol_page.rs"]
mod protocol_page;
