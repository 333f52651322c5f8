use proptest::prelude::*;

use super::*;
use crate::MessageError;

fn hello() -> Hello {
    Hello::new("editor", TransportWanted::SharedMemory { ring_bytes: limits::RING_BYTES })
}

#[test]
fn hello_that_is_not_well_formed_is_refused() {
    let spoil: [fn(&mut Hello); 9] = [
        |hello| hello.version_min = 0,
        |hello| hello.version_min = 2,
        |hello| hello.limits.message_bytes = 0,
        |hello| hello.limits.message_bytes = 3,
        |hello| hello.limits.calls_in_flight = 0,
        |hello| hello.program = String::from("a\nb"),
        |hello| hello.transport = TransportWanted::SharedMemory { ring_bytes: 65537 },
        |hello| hello.transport = TransportWanted::SharedMemory { ring_bytes: 32768 },
        |hello| hello.transport = TransportWanted::SharedMemory { ring_bytes: 1 << 27 },
    ];
    for (at, spoil) in spoil.into_iter().enumerate() {
        let mut hello = hello();
        spoil(&mut hello);
        let decoded = Hello::decode(&hello.encode());
        assert!(matches!(decoded, Err(MessageError::Field(_))), "{at}: {decoded:?}");
    }
}

#[test]
fn hello_cut_at_any_byte_or_with_one_more_is_refused() {
    let mut bytes = hello().encode();
    for cut in 0..bytes.len() {
        assert_eq!(Hello::decode(&bytes[..cut]), Err(MessageError::Malformed), "{cut}");
    }
    bytes.push(0);
    assert_eq!(Hello::decode(&bytes), Err(MessageError::Trailing(1)));
    let max = HANDSHAKE_PAYLOAD_BYTES as usize;
    bytes.resize(max + 1, 0);
    assert_eq!(Hello::decode(&bytes), Err(MessageError::TooLong { length: max + 1, max }));
}

#[test]
fn hello_with_a_long_program_name_is_cut_when_encoded() {
    let mut hello = hello();
    hello.program = "é".repeat(100);
    let decoded = Hello::decode(&hello.encode()).unwrap();
    assert_eq!(decoded.program, "é".repeat(64));
}

fn any_hello() -> impl Strategy<Value = Hello> {
    let transport = prop_oneof![
        Just(TransportWanted::Socket),
        (16u32..=26).prop_map(|log| TransportWanted::SharedMemory { ring_bytes: 1 << log }),
    ];
    let numbers = (any::<u8>(), any::<u8>(), any::<u64>(), any::<u8>(), 4u32.., 1u32..);
    (numbers, "[a-zé ]{0,64}", transport).prop_map(|(numbers, program, transport)| {
        let (version, other, features, checksums, message_bytes, calls_in_flight) = numbers;
        Hello {
            version_min: version.min(other).max(1),
            version_max: version.max(other).max(1),
            features: Features(features),
            limits: LimitsWanted { message_bytes, calls_in_flight },
            program,
            transport,
            checksums: ChecksumSet::from_bits(checksums),
        }
    })
}

proptest! {
    #[test]
    fn hello_returns_from_its_bytes(hello in any_hello()) {
        prop_assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
    }

    #[test]
    fn any_bytes_decode_or_are_refused_without_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let _ = HelloAck::decode(&bytes);
        let _ = crate::HelloReject::decode(&bytes);
        let _ = crate::Goodbye::decode(&bytes);
        let _ = crate::Description::decode(&bytes);
        let _ = crate::Status::decode(&bytes);
        if let Ok(hello) = Hello::decode(&bytes) {
            prop_assert!(hello.version_min >= 1);
        }
    }
}
