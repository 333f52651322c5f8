//! `docs/protocol.md` holds what this crate does: its worked example and its tables cannot drift.

use lapwing_proto::{
    Code, Description, Flags, Goodbye, Header, Hello, HelloAck, Kind, MethodDescription,
    MethodShape, ServerOffer, Status, TransportWanted, WireError, limits,
};

use super::{bytes, checksum, from_hex, load, open, text};

fn page() -> String {
    let path = format!("{}/../../docs/protocol.md", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The fenced blocks of the page that are marked `hex NAME`, in order.
fn hex_blocks(page: &str) -> Vec<(String, Vec<u8>)> {
    let mut blocks = Vec::new();
    for part in page.split("```hex ").skip(1) {
        let (name, rest) = part.split_once('\n').expect("a name");
        let (hex, _) = rest.split_once("```").expect("an end");
        let digits: String = hex.split_whitespace().collect();
        blocks.push((name.trim().to_owned(), from_hex(&digits)));
    }
    blocks
}

#[test]
fn page_shows_the_bytes_of_the_exchange() {
    let exchange = load("exchange.json");
    let frames = exchange["frames"].as_array().unwrap();
    let expected: Vec<_> =
        frames.iter().map(|case| (text(&case["name"]).to_owned(), bytes(&case["hex"]))).collect();
    assert_eq!(hex_blocks(&page()), expected);
}

#[test]
fn exchange_is_what_this_crate_says() {
    let exchange = load("exchange.json");
    let hello = Hello::new("example", TransportWanted::Socket);
    let offer = ServerOffer { program: "lapwing".to_owned(), ..ServerOffer::default() };
    let ack = offer.answer(&hello, 42).unwrap();
    hello.check(&ack).unwrap();
    let status = Status::not_found("no such file");
    let goodbye = Goodbye { error: 0, sentence: String::new() };
    let echo = Kind::application(0x100).unwrap();
    let expected = [
        (Flags::NONE, Kind::HELLO, 0, hello.encode()),
        (Flags::NONE, Kind::HELLO_ACK, 0, ack.encode()),
        (Flags::REQUEST, echo, 1, b"hello".to_vec()),
        (Flags::RESPONSE, echo, 1, b"hello".to_vec()),
        (Flags::RESPONSE | Flags::ERROR, echo, 1, status.encode()),
        (Flags::NONE, Kind::GOODBYE, 0, goodbye.encode()),
    ];
    let frames = exchange["frames"].as_array().unwrap();
    assert_eq!(frames.len(), expected.len());
    for (case, (flags, kind, id, payload)) in frames.iter().zip(expected) {
        let frame = bytes(&case["hex"]);
        let (header, found) = open(&frame, 4096, checksum(case)).unwrap();
        assert_eq!((header.flags, header.kind, header.id.get()), (flags, kind, id));
        assert_eq!(found, payload, "{}", text(&case["name"]));
        let mut again = Header { checksum: 0, ..header }.encode().to_vec();
        again.extend_from_slice(&payload);
        checksum(case).seal(&mut again);
        assert_eq!(again, frame);
    }
    assert_eq!(HelloAck::decode(&ack.encode()), Ok(ack));
}

/// The cells of each table row of the page.
fn rows(page: &str) -> Vec<Vec<&str>> {
    let lines = page.lines().filter(|line| line.starts_with('|'));
    lines.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

fn has_row(rows: &[Vec<&str>], cells: &[&str]) -> bool {
    rows.iter().any(|row| row.starts_with(cells))
}

#[test]
fn page_lists_every_wire_error_code_kind_limit_and_shape() {
    let page = page();
    let rows = rows(&page);
    for error in WireError::ALL {
        let number = error.number().to_string();
        assert!(has_row(&rows, &[&number, error.name(), error.sentence()]), "{error:?}");
    }
    for code in Code::ALL {
        let number = code.number().to_string();
        assert!(has_row(&rows, &[&number, code.name(), code.sentence()]), "{code:?}");
    }
    for limit in limits::LIMITS {
        let (name, value) = (format!("`{}`", limit.name), limit.default.to_string());
        assert!(has_row(&rows, &[&name, &value, limit.unit]), "{name} {value} {}", limit.unit);
    }
    for number in 1..0x100 {
        if let Some(name) = Kind::new(number).and_then(Kind::name) {
            assert!(has_row(&rows, &[&format!("`{number:04X}`"), name]), "{name}");
        }
    }
    let shapes = [
        MethodShape::Unary,
        MethodShape::OneWay,
        MethodShape::ServerStream,
        MethodShape::ClientStream,
        MethodShape::Duplex,
    ];
    for (number, shape) in shapes.into_iter().enumerate() {
        let (digit, name) = (number.to_string(), format!("{shape:?}"));
        assert!(has_row(&rows, &[&digit, &name]), "{name}");
        let method = MethodDescription { kind: 0x100, name: String::new(), shape };
        let encoded = Description { methods: vec![method] }.encode();
        assert_eq!(encoded.last(), Some(&(number as u8)));
    }
}
