//! Two endpoints shake hands through bytes: what one says, the other reads, and no third thing.

use lapwing_proto::{
    Checksum, ChecksumSet, Features, Header, Hello, HelloAck, HelloReject, Kind, LimitsGranted,
    LimitsWanted, ServerOffer, TransportGranted, TransportWanted, WireError, limits,
};
use proptest::prelude::*;

/// Sends `payload` as a sealed frame and reads it as the other side does.
fn carry(kind: Kind, payload: &[u8]) -> (Kind, Vec<u8>) {
    let mut frame = Header::connection(kind, payload.len() as u32).encode().to_vec();
    frame.extend_from_slice(payload);
    Checksum::Crc32.seal(&mut frame);
    let (head, body) = frame.split_first_chunk().unwrap();
    let header = Header::decode(head, limits::HANDSHAKE_PAYLOAD_BYTES).unwrap();
    Checksum::Crc32.check(&frame).unwrap();
    (header.kind, body.to_vec())
}

/// The whole handshake: what the client ends up with.
fn shake(hello: &Hello, offer: &ServerOffer) -> Result<HelloAck, HelloReject> {
    let (_, payload) = carry(Kind::HELLO, &hello.encode());
    let (kind, payload) = match offer.answer(&Hello::decode(&payload).unwrap(), 7) {
        Ok(ack) => carry(Kind::HELLO_ACK, &ack.encode()),
        Err(reject) => carry(Kind::HELLO_REJECT, &reject.encode()),
    };
    match kind {
        Kind::HELLO_ACK => {
            let ack = HelloAck::decode(&payload).unwrap();
            hello.check(&ack).expect("an honest server grants what was asked");
            Ok(ack)
        }
        _ => Err(HelloReject::decode(&payload).unwrap()),
    }
}

fn shared(ring_bytes: u32) -> TransportWanted {
    TransportWanted::SharedMemory { ring_bytes }
}

#[test]
fn defaults_agree_on_shared_memory_and_crc32c() {
    let ack = shake(&Hello::new("editor", shared(1 << 16)), &ServerOffer::default()).unwrap();
    assert_eq!(ack.version, 1);
    assert_eq!(ack.checksum, Checksum::Crc32c);
    let ring_bytes = limits::RING_BYTES;
    assert_eq!(ack.transport, TransportGranted::SharedMemory { ring_bytes });
    assert_eq!(ack.connection_id, 7);
}

#[test]
fn client_without_crc32c_gets_crc32_and_lesser_limits_win() {
    let mut hello = Hello::new("script", TransportWanted::Socket);
    hello.checksums = ChecksumSet::only(Checksum::Crc32);
    hello.limits = LimitsWanted { message_bytes: 1000, calls_in_flight: 100_000 };
    hello.features = Features(u64::MAX);
    let ack = shake(&hello, &ServerOffer::default()).unwrap();
    assert_eq!(ack.checksum, Checksum::Crc32);
    assert_eq!(ack.limits, LimitsGranted { message_bytes: 1000, calls_in_flight: 256 });
    assert_eq!(ack.features, Features::NONE);
    assert_eq!(ack.transport, TransportGranted::Socket);
}

#[test]
fn feature_for_the_socket_alone_is_granted_there_alone() {
    let compression = Features::COMPRESSION;
    let offer = ServerOffer { socket_features: compression, ..ServerOffer::default() };
    let grant = |transport, offer: &ServerOffer| {
        let hello = Hello { features: compression, ..Hello::new("editor", transport) };
        shake(&hello, offer).unwrap().features
    };
    assert_eq!(grant(TransportWanted::Socket, &offer), compression);
    assert_eq!(grant(shared(1 << 16), &offer), Features::NONE);
    let no_rings = ServerOffer { shared_memory: None, ..offer.clone() };
    assert_eq!(grant(shared(1 << 16), &no_rings), compression);
    let everywhere = ServerOffer { features: compression, ..ServerOffer::default() };
    assert_eq!(grant(shared(1 << 16), &everywhere), compression);
    // It is never granted to who did not ask.
    let silent = Hello::new("editor", TransportWanted::Socket);
    assert_eq!(shake(&silent, &offer).unwrap().features, Features::NONE);
}

#[test]
fn shared_memory_that_is_not_to_be_had_becomes_the_socket() {
    let offer = ServerOffer { shared_memory: None, ..ServerOffer::default() };
    let ack = shake(&Hello::new("editor", shared(1 << 16)), &offer).unwrap();
    assert_eq!(ack.transport, TransportGranted::Socket);
}

#[test]
fn sides_that_share_nothing_part_with_the_reason() {
    let mut from_the_future = Hello::new("editor", TransportWanted::Socket);
    (from_the_future.version_min, from_the_future.version_max) = (2, 3);
    let reject = shake(&from_the_future, &ServerOffer::default()).unwrap_err();
    assert_eq!(reject.wire_error(), Some(WireError::UnsupportedVersion));
    assert!(reject.sentence.contains("2 to 3") && reject.sentence.contains("1 to 1"));
    assert_eq!((reject.version_min, reject.version_max), (1, 1));

    let only_rings = ServerOffer { socket: false, ..ServerOffer::default() };
    let reject = shake(&Hello::new("a", TransportWanted::Socket), &only_rings).unwrap_err();
    assert_eq!(reject.wire_error(), Some(WireError::TransportRefused));

    let mut no_checksum = Hello::new("a", TransportWanted::Socket);
    no_checksum.checksums = ChecksumSet::NONE;
    let reject = shake(&no_checksum, &ServerOffer::default()).unwrap_err();
    assert_eq!(reject.wire_error(), Some(WireError::NoCommonChecksum));
}

#[test]
fn off_is_granted_only_in_rings_and_only_when_both_ask() {
    let mut asks = Hello::new("editor", shared(1 << 16));
    asks.checksums.insert(Checksum::Off);
    assert_eq!(shake(&asks, &ServerOffer::default()).unwrap().checksum, Checksum::Crc32c);
    let mut offer = ServerOffer::default();
    offer.checksums.insert(Checksum::Off);
    assert_eq!(shake(&asks, &offer).unwrap().checksum, Checksum::Off);
    asks.transport = TransportWanted::Socket;
    assert_eq!(shake(&asks, &offer).unwrap().checksum, Checksum::Crc32c);
}

#[test]
fn client_refuses_a_grant_that_it_did_not_ask_for() {
    let hello = Hello::new("editor", TransportWanted::Socket);
    let honest = ServerOffer::default().answer(&hello, 1).unwrap();
    hello.check(&honest).unwrap();
    let spoil: [fn(&mut HelloAck); 8] = [
        |ack| ack.version = 2,
        |ack| ack.version = 0,
        |ack| ack.features = Features(1),
        |ack| ack.limits.message_bytes += 1,
        |ack| ack.limits.calls_in_flight += 1,
        |ack| ack.checksum = Checksum::Off,
        |ack| ack.transport = TransportGranted::SharedMemory { ring_bytes: 1 << 16 },
        |ack| ack.limits.message_bytes = u32::MAX,
    ];
    for (at, spoil) in spoil.into_iter().enumerate() {
        let mut ack = honest.clone();
        spoil(&mut ack);
        assert_eq!(hello.check(&ack).unwrap_err().error, WireError::BadGrant, "{at}");
    }
    let mut asks_for_off = hello;
    asks_for_off.checksums.insert(Checksum::Off);
    let off_on_socket = HelloAck { checksum: Checksum::Off, ..honest };
    assert!(asks_for_off.check(&off_on_socket).is_err());
}

fn bits_of(set: u8) -> ChecksumSet {
    ChecksumSet::from_bits(set)
}

proptest! {
    #[test]
    fn whatever_an_honest_server_answers_the_client_accepts(
        wanted in (4u32.., 1u32.., any::<u8>(), any::<u64>(), any::<bool>(), 1u8..4, 0u8..3),
        offered in (
            4u32.., 1u32.., any::<u8>(), any::<u64>(), any::<(bool, bool)>(), 1u8..4, 0u8..3,
        ),
    ) {
        let transport = if wanted.4 { shared(1 << 20) } else { TransportWanted::Socket };
        let mut hello = Hello::new("editor", transport);
        hello.limits = LimitsWanted { message_bytes: wanted.0, calls_in_flight: wanted.1 };
        hello.checksums = bits_of(wanted.2);
        hello.features = Features(wanted.3);
        (hello.version_min, hello.version_max) = (wanted.5, wanted.5 + wanted.6);
        let limits = LimitsGranted { message_bytes: offered.0, calls_in_flight: offered.1 };
        let offer = ServerOffer {
            version_min: offered.5,
            version_max: offered.5 + offered.6,
            features: Features(offered.3),
            socket_features: Features(offered.3.rotate_left(7)),
            limits,
            checksums: bits_of(offered.2),
            shared_memory: offered.4.0.then_some(1 << 18),
            socket: offered.4.1,
            program: String::from("engine"),
        };
        // `shake` itself checks that a grant passes `Hello::check`.
        if let Err(reject) = shake(&hello, &offer) {
            prop_assert!(matches!(
                reject.wire_error(),
                Some(WireError::UnsupportedVersion
                    | WireError::TransportRefused
                    | WireError::NoCommonChecksum)
            ));
        }
    }
}
