use std::string::ToString;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

fn header() -> Header {
    Header {
        flags: Flags::REQUEST | Flags::PRIORITY,
        kind: Kind::application(0x310).unwrap(),
        length: 5,
        id: MessageId::new(0x0102_0304_0506_0708),
        checksum: 0xAABB_CCDD,
    }
}

#[test]
fn header_lies_on_the_wire_as_the_table_says() {
    let expected = [
        0x4C, 0x41, 0x50, 0x43, 1, 0x18, 0x10, 0x03, 5, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1, 0xDD,
        0xCC, 0xBB, 0xAA,
    ];
    assert_eq!(header().encode(), expected);
    assert_eq!(Header::decode(&expected, 5), Ok(header()));
}

#[test]
fn header_with_one_wrong_field_names_that_field() {
    let cases: [(usize, u8, FrameError); 9] = [
        (0, b'l', FrameError::BadMagic(*b"lAPC")),
        (4, 0, FrameError::Version { theirs: 0, ours: 1 }),
        (4, 2, FrameError::Version { theirs: 2, ours: 1 }),
        (5, 0x02, FrameError::FlagsReserved(0x02)),
        (5, 0x30, FrameError::FlagsConflict(0x30)),
        (5, 0x40, FrameError::FlagsConflict(0x40)),
        (5, 0x50, FrameError::FlagsConflict(0x50)),
        (8, 6, FrameError::TooLong { length: 6, max: 5 }),
        (11, 0x80, FrameError::TooLong { length: 0x8000_0005, max: 5 }),
    ];
    for (at, byte, error) in cases {
        let mut bytes = header().encode();
        bytes[at] = byte;
        assert_eq!(Header::decode(&bytes, 5), Err(error));
        assert!(!error.to_string().is_empty());
        assert_ne!(error.wire_error(), WireError::NoError);
    }
}

#[test]
fn header_with_kind_zero_or_a_request_without_id_is_refused() {
    let mut bytes = header().encode();
    bytes[6..8].fill(0);
    assert_eq!(Header::decode(&bytes, 5), Err(FrameError::KindZero));
    for flags in [Flags::REQUEST, Flags::RESPONSE] {
        let without_id = Header { flags, id: MessageId::CONNECTION, ..header() };
        assert_eq!(Header::decode(&without_id.encode(), 5), Err(FrameError::IdZero));
    }
    let one_way = Header { flags: Flags::NONE, id: MessageId::CONNECTION, ..header() };
    assert_eq!(Header::decode(&one_way.encode(), 5), Ok(one_way));
}

#[test]
fn version_error_names_both_versions() {
    let said = FrameError::Version { theirs: 9, ours: 1 }.to_string();
    assert!(said.contains('9') && said.contains('1'), "{said}");
}

#[test]
fn flags_are_allowed_exactly_as_the_three_rules_say() {
    for bits in 0..=u8::MAX {
        let reserved = bits & 0x02 != 0;
        let both = bits & 0x30 == 0x30;
        let stray_error = bits & 0x40 != 0 && bits & 0x24 == 0;
        assert_eq!(FLAGS_ALLOWED.has(bits), !reserved && !both && !stray_error, "{bits:#04x}");
    }
}

proptest! {
    #[test]
    fn header_returns_from_its_bytes(
        bits in any::<u8>(), kind in 1u16.., length in any::<u32>(), id in any::<u64>(),
        checksum in any::<u32>(),
    ) {
        let (flags, kind) = (Flags::from_bits(bits), Kind::new(kind).unwrap());
        let header = Header { flags, kind, length, id: MessageId::new(id), checksum };
        let fine = FLAGS_ALLOWED.has(bits) && (bits & 0x30 == 0 || id != 0);
        match Header::decode(&header.encode(), u32::MAX) {
            Ok(decoded) => prop_assert!(fine && decoded == header),
            Err(error) => prop_assert!(!fine, "{}", error),
        }
    }

    #[test]
    fn any_24_bytes_decode_or_are_refused_without_panic(
        mut bytes in any::<[u8; 24]>(), prefix in 0usize..6, max in any::<u32>(),
    ) {
        let good: Vec<u8> = MAGIC.into_iter().chain([VERSION, 0]).collect();
        bytes[..prefix].copy_from_slice(&good[..prefix]);
        let word = |n: usize| u64::from_le_bytes(*bytes[8 * n..].first_chunk().unwrap());
        let words = [word(0), word(1), word(2)];
        prop_assert_eq!(Header::from_words(words, max), Header::decode(&bytes, max));
        if let Ok(header) = Header::decode(&bytes, max) {
            prop_assert_eq!(header.to_words(), words);
            prop_assert_eq!(header.encode(), bytes);
            prop_assert!(header.length <= max);
        }
    }
}
