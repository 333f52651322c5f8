//! What a peer gets that breaks the rules of calls in JSON and of descriptions, in a client's place and in a
//! server's; and what a client says to a server that is too old for them.

use lapwing::error::WireError;
use lapwing::{
    Builder, Call, CallError, CallOptions, Code, IpcClient, Payload, Raw, Status, Transport, Unary,
    blocking,
};
use lapwing_proto::{
    Features, Flags, Hello, Kind, MethodDetails, MethodShape, Status as WireStatus,
};
use lapwing_testkit::frame::RawFrame;
use lapwing_testkit::methods::ECHO;
use lapwing_testkit::{Heard, RawPeer, RawServer, Victim, hello, test_name};

const BOTH: [Transport; 2] = [Transport::SharedMemory, Transport::Socket];

const ADD: Unary<(u8, u8), u8> = Unary::new(0x0710, "add");

fn with_add(builder: Builder) -> Builder {
    builder.route(ADD, |_: Call, (a, b): (u8, u8)| async move {
        a.checked_add(b).ok_or_else(|| Status::invalid_argument("the sum is above 255"))
    })
}

fn greet(victim: &Victim, transport: Transport) -> RawPeer {
    let hello = Hello { features: Features::JSON, ..hello(transport) };
    let (peer, ack) = RawPeer::greet_with(victim.path(), &hello);
    assert_eq!(ack.features, Features::JSON);
    peer
}

/// A request whose payload begins with this block of entries.
fn extended(kind: u16, id: u64, entries: &[u8], payload: &[u8]) -> RawFrame {
    let mut bytes = (entries.len() as u16).to_le_bytes().to_vec();
    bytes.extend_from_slice(entries);
    bytes.extend_from_slice(payload);
    RawFrame::of(Flags::REQUEST | Flags::EXTENDED, kind, id, &bytes)
}

const CODEC_JSON: [u8; 4] = [0x85, 1, 0, 1];

#[test]
fn codec_entry_makes_one_call_json_and_no_other() {
    let Some(mut victim) = Victim::start(test_name!(), with_add) else { return };
    for transport in BOTH {
        let mut peer = greet(&victim, transport);
        peer.send_frame(&extended(ADD.kind(), 1, &CODEC_JSON, b"[2, 3]"));
        let (header, reply) = peer.hear_frame();
        assert_eq!((header.flags, &reply[..]), (Flags::RESPONSE, &b"5"[..]));
        assert_eq!(peer.call(ADD.kind(), 2, &[2, 3]).1, [5]);
        // Inline and raw methods take their bytes as they are.
        peer.send_frame(&extended(ECHO, 3, &CODEC_JSON, b"\xFF\x00"));
        assert_eq!(peer.hear_frame().1, b"\xFF\x00");
        // Depth is bounded, and so is what a message repeats.
        for text in [vec![b'['; 12_000], [&b"[\""[..], &[b'x'; 12_000], b"\"]"].concat()] {
            peer.send_frame(&extended(ADD.kind(), 4, &CODEC_JSON, &text));
            let (header, reply) = peer.hear_frame();
            assert!(header.flags.contains(Flags::ERROR));
            let status = WireStatus::decode(&reply).unwrap();
            assert_eq!(status.code, Code::InvalidArgument);
            assert!(status.message.len() < 500, "{}", status.message);
        }
    }
    victim.assert_serves_others();
    victim.assert_unharmed();
}

#[test]
fn codec_entry_that_breaks_a_rule_is_cut() {
    let Some(mut victim) = Victim::start(test_name!(), with_add) else { return };
    let twice = [CODEC_JSON, CODEC_JSON].concat();
    for transport in BOTH {
        for (what, entries) in [
            ("twice", &twice[..]),
            ("unknown codec", &[0x85, 1, 0, 2]),
            ("codec 0", &[0x85, 1, 0, 0]),
            ("no value", &[0x85, 0, 0]),
            ("two bytes", &[0x85, 2, 0, 1, 1]),
        ] {
            let mut peer = greet(&victim, transport);
            peer.send_frame(&extended(ADD.kind(), 1, entries, b"[2, 3]"));
            assert_eq!(peer.hear_goodbye(), WireError::BadExtension, "{transport:?}, {what}");
        }
        // Not agreed on in the handshake.
        let mut peer = RawPeer::greet(victim.path(), transport);
        peer.send_frame(&extended(ADD.kind(), 1, &CODEC_JSON, b"[2, 3]"));
        assert_eq!(peer.hear_goodbye(), WireError::BadExtension, "{transport:?}");
    }
    victim.assert_serves_others();
    victim.assert_unharmed();
}

#[test]
fn request_for_a_description_that_makes_no_sense_is_answered() {
    let Some(mut victim) = Victim::start(test_name!(), with_add) else { return };
    for transport in BOTH {
        let mut peer = RawPeer::greet(victim.path(), transport);
        for (payload, code) in [
            (&b""[..], Code::InvalidArgument),
            (&[0x80, 0x80, 0x04], Code::InvalidArgument),
            (&[0x90, 0x06, 0x00, 0x00], Code::InvalidArgument),
            (&[0; 5000], Code::InvalidArgument),
            (&[0x00], Code::NotFound),
            (&[0x0B], Code::NotFound),
            (&[0xFF, 0xFF, 0x03], Code::NotFound),
        ] {
            let (header, reply) = peer.call(Kind::DESCRIBE_METHOD.number(), 1, payload);
            assert_eq!(header.kind, Kind::DESCRIBE_METHOD);
            assert_eq!(header.flags, Flags::RESPONSE | Flags::ERROR);
            assert_eq!(WireStatus::decode(&reply).unwrap().code, code, "{payload:?}");
        }
        // One-way, nobody is answered and the connection goes on.
        peer.send_frame(&RawFrame::of(Flags::NONE, Kind::DESCRIBE_METHOD.number(), 0, &[0]));
        assert_eq!(peer.call(ADD.kind(), 2, &[2, 3]).1, [5]);
    }
    victim.assert_unharmed();
}

const DYNAMIC: Unary<&str, Payload, Raw> = Unary::new(0x0710, "");

#[test]
fn server_without_calls_in_json_is_not_asked_for_one() {
    let serve = || {
        RawServer::start(|greeted| {
            assert!(greeted.hello.features.contains(Features::JSON));
            let mut peer = greeted.grant();
            // What comes is the next call: the one in JSON was never sent.
            let (header, payload) = peer.hear_frame();
            assert_eq!((header.flags, &payload[..]), (Flags::REQUEST, &b"plain"[..]));
            peer.send_frame(&RawFrame::response(ECHO, header.id.get(), b"plain"));
            while !matches!(peer.hear(), Heard::End) {}
        })
    };
    let told = |error: CallError| {
        assert!(matches!(error, CallError::NoJson));
        let sentence = "the server is too old for calls in JSON; update it, or call the method in its own codec";
        assert_eq!(error.to_string(), sentence);
    };
    let json = CallOptions::default().json(true);
    let server = serve();
    let client = blocking::IpcClient::connect(server.path()).unwrap();
    told(client.call_with(DYNAMIC, &"[1, 2]", &json).unwrap_err());
    assert_eq!(client.call_raw(ECHO, b"plain").unwrap().bytes(), b"plain");
    drop(client);
    server.join();

    let server = serve();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = IpcClient::connect(server.path()).await.unwrap();
        told(client.call_with(DYNAMIC, &"[1, 2]", &json).await.unwrap_err());
        assert_eq!(client.call_raw(ECHO, b"plain").await.unwrap().bytes(), b"plain");
    });
    drop(runtime);
    server.join();
}

#[test]
fn response_with_a_codec_entry_is_a_typed_error() {
    let serve = || {
        RawServer::start(|mut greeted| {
            greeted.features = Features::JSON;
            let mut peer = greeted.grant();
            let (header, payload) = peer.hear_frame();
            assert_eq!(payload, [&[4, 0][..], &CODEC_JSON, b"[1, 2]"].concat());
            let reply = [&[4, 0][..], &CODEC_JSON, b"3"].concat();
            let flags = Flags::RESPONSE | Flags::EXTENDED;
            peer.send_frame(&RawFrame::of(flags, ADD.kind(), header.id.get(), &reply));
            assert_eq!(peer.hear_goodbye(), WireError::BadExtension);
        })
    };
    let is_typed = |error: CallError| {
        let CallError::Protocol(fault) = error else { panic!("{error:?}") };
        assert_eq!(fault.error, WireError::BadExtension);
    };
    let json = CallOptions::default().json(true);
    let server = serve();
    let client = blocking::IpcClient::connect(server.path()).unwrap();
    is_typed(client.call_with(DYNAMIC, &"[1, 2]", &json).unwrap_err());
    drop(client);
    server.join();

    let server = serve();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = IpcClient::connect(server.path()).await.unwrap();
        is_typed(client.call_with(DYNAMIC, &"[1, 2]", &json).await.unwrap_err());
    });
    drop(runtime);
    server.join();
}

/// A server that describes a method in a way that cannot be.
fn describing(payload: fn() -> Vec<u8>) -> CallError {
    let server = RawServer::start(move |greeted| {
        let mut peer = greeted.grant();
        let (header, _) = peer.hear_frame();
        let kind = header.kind.number();
        peer.send_frame(&RawFrame::response(kind, header.id.get(), &payload()));
        while !matches!(peer.hear(), Heard::End) {}
    });
    let client = blocking::IpcClient::connect(server.path()).unwrap();
    let error = client.describe_method(0x0710).unwrap_err();
    drop(client);
    server.join();
    error
}

fn details() -> MethodDetails {
    MethodDetails {
        kind: 0x0710,
        name: "add".into(),
        shape: MethodShape::Unary,
        codec: "json".into(),
        request_schema: None,
        reply_schema: None,
    }
}

#[test]
fn description_that_cannot_be_is_the_server_s_fault() {
    let cases: [fn() -> Vec<u8>; 5] = [
        || b"\xFF\xFF\xFF\xFF\xFF".to_vec(),
        || MethodDetails { kind: 0x0711, ..details() }.encode(),
        || MethodDetails { codec: "\u{1b}[2J".into(), ..details() }.encode(),
        || MethodDetails { name: "x".repeat(129), ..details() }.encode(),
        || [&details().encode()[..], b"more"].concat(),
    ];
    for payload in cases {
        let error = describing(payload);
        let CallError::Protocol(fault) = error else { panic!("{error:?}") };
        assert_eq!(fault.error, WireError::BadMessage);
    }
}
