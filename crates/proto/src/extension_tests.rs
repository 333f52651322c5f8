use std::string::String;
use std::vec;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, PartialEq)]
enum Owned {
    Deadline(u64),
    Sent(u64),
    Trace([u8; 16], [u8; 8], u8),
    Bulk(u32, u32, u64),
    Json,
    Metadata(String, Vec<u8>),
}

impl Owned {
    fn entry(&self) -> Entry<'_> {
        match self {
            Owned::Deadline(remaining_us) => Entry::Deadline { remaining_us: *remaining_us },
            Owned::Sent(at_ns) => Entry::Sent { at_ns: *at_ns },
            Owned::Trace(trace_id, parent_id, flags) => Entry::Trace(TraceContext {
                trace_id: *trace_id,
                parent_id: *parent_id,
                flags: *flags,
            }),
            Owned::Bulk(segment, block, length) => {
                Entry::Bulk(BulkDescriptor { segment: *segment, block: *block, length: *length })
            }
            Owned::Json => Entry::Json,
            Owned::Metadata(key, value) => Entry::Metadata { key, value },
        }
    }
}

fn entries() -> impl Strategy<Value = Vec<Owned>> {
    let entry = prop_oneof![
        any::<u64>().prop_map(Owned::Deadline),
        any::<u64>().prop_map(Owned::Sent),
        any::<([u8; 16], [u8; 8], u8)>().prop_map(|(a, b, c)| Owned::Trace(a, b, c)),
        any::<(u32, u32, u64)>().prop_map(|(a, b, c)| Owned::Bulk(a, b, c)),
        Just(Owned::Json),
        (".{0,20}", prop::collection::vec(any::<u8>(), 0..3000))
            .prop_map(|(key, value)| Owned::Metadata(key, value)),
    ];
    prop::collection::vec(entry, 0..8)
}

proptest! {
    #[test]
    fn extensions_return_from_their_bytes(
        entries in entries(),
        before in prop::collection::vec(any::<u8>(), 0..9),
        rest in prop::collection::vec(any::<u8>(), 0..9),
    ) {
        let mut payload = before.clone();
        let mut builder = ExtensionBuilder::new(&mut payload);
        let kept: Vec<&Owned> =
            entries.iter().filter(|entry| builder.push(entry.entry()).is_ok()).collect();
        payload.extend_from_slice(&rest);
        let (extensions, after) = Extensions::parse(&payload[before.len()..]).unwrap();
        prop_assert_eq!(after, &rest[..]);
        let found: Vec<Entry<'_>> = extensions.iter().collect();
        prop_assert_eq!(found, kept.iter().map(|entry| entry.entry()).collect::<Vec<_>>());
    }

    #[test]
    fn any_bytes_parse_or_are_refused_without_panic(
        mut bytes in prop::collection::vec(
            prop_oneof![any::<u8>(), Just(0), Just(1), Just(2), Just(4), Just(8), Just(0x83), Just(0x85)],
            0..64,
        ),
    ) {
        let length = bytes.len().saturating_sub(2) as u8;
        if let Some(low) = bytes.first_mut() { *low = length; }
        if let Some(high) = bytes.get_mut(1) { *high = 0; }
        if let Ok((extensions, rest)) = Extensions::parse(&bytes) {
            prop_assert!(rest.is_empty());
            prop_assert!(extensions.iter().count() <= bytes.len());
        }
    }
}

#[test]
fn block_cut_at_any_byte_is_refused() {
    let mut payload = Vec::new();
    let mut builder = ExtensionBuilder::new(&mut payload);
    builder.push(Entry::Deadline { remaining_us: 9 }).unwrap();
    builder.push(Entry::Metadata { key: "k", value: b"v" }).unwrap();
    for cut in 0..payload.len() {
        assert_eq!(Extensions::parse(&payload[..cut]), Err(ExtensionError::Truncated), "{cut}");
    }
    // The same cuts with a block length that admits to them: still refused within an entry.
    for cut in 3..payload.len() {
        let mut short = payload[..cut].to_vec();
        short[..2].copy_from_slice(&(cut as u16 - 2).to_le_bytes());
        let whole_entry = cut == 2 + 3 + 8;
        assert_eq!(Extensions::parse(&short).is_ok(), whole_entry, "{cut}");
    }
}

#[test]
fn unknown_critical_refuses_and_unknown_other_is_skipped() {
    let skipped = [8, 0, 0x7F, 1, 0, 9, 0x04, 3, 0, 1];
    assert_eq!(Extensions::parse(&skipped), Err(ExtensionError::Truncated));
    let skipped = [11, 0, 0x7F, 1, 0, 9, 0x04, 4, 0, 1, 0, b'k', b'v'];
    let (extensions, rest) = Extensions::parse(&skipped).unwrap();
    assert!(rest.is_empty());
    let found: Vec<_> = extensions.iter().collect();
    assert_eq!(found, [Entry::Metadata { key: "k", value: b"v" }]);
    let critical = [3, 0, 0xFF, 0, 0];
    assert_eq!(Extensions::parse(&critical), Err(ExtensionError::UnknownCritical(0xFF)));
}

#[test]
fn builder_refuses_what_parse_would_and_appends_nothing() {
    let mut payload = Vec::new();
    let mut builder = ExtensionBuilder::new(&mut payload);
    builder.push(Entry::Deadline { remaining_us: 1 }).unwrap();
    let second = builder.push(Entry::Deadline { remaining_us: 2 }).map(drop);
    assert_eq!(second, Err(ExtensionError::Duplicate(0x01)));
    let no_key = builder.push(Entry::Metadata { key: "", value: b"v" }).map(drop);
    assert_eq!(no_key, Err(ExtensionError::BadValue(0x04)));
    let value = vec![0; 8192];
    let long = builder.push(Entry::Metadata { key: "k", value: &value }).map(drop);
    assert_eq!(long, Err(ExtensionError::MetadataTooLong { length: 8193, max: 8192 }));
    builder.push(Entry::Metadata { key: "k", value: &value[1..] }).unwrap();
    let (extensions, _) = Extensions::parse(&payload).unwrap();
    assert_eq!(extensions.iter().count(), 2);
    assert!(extensions.iter().any(|entry| entry == Entry::Deadline { remaining_us: 1 }));
    assert_eq!(extensions.bulk(), None);
}

#[test]
fn the_most_entries_of_metadata_still_fit_a_block() {
    let mut payload = Vec::new();
    let mut builder = ExtensionBuilder::new(&mut payload);
    for _ in 0..8192 {
        builder.push(Entry::Metadata { key: "k", value: b"" }).unwrap();
    }
    builder.push(Entry::Bulk(BulkDescriptor { segment: 1, block: 2, length: 3 })).unwrap();
    let (extensions, _) = Extensions::parse(&payload).unwrap();
    assert_eq!(extensions.iter().count(), 8193);
    assert_eq!(extensions.bulk().map(|bulk| bulk.length), Some(3));
}

#[test]
fn bulk_entry_is_taken_out_wherever_it_stands() {
    let bulk = BulkDescriptor { segment: 3, block: 9, length: 1 << 20 };
    let others =
        [Entry::Deadline { remaining_us: 7 }, Entry::Metadata { key: "k", value: b"value" }];
    for at in 0..=others.len() {
        let mut frame = b"header".to_vec();
        let mut builder = ExtensionBuilder::new(&mut frame);
        for entry in &others[..at] {
            builder.push(*entry).unwrap();
        }
        builder.push(Entry::Bulk(bulk)).unwrap();
        for entry in &others[at..] {
            builder.push(*entry).unwrap();
        }
        assert_eq!(take_bulk(&mut frame, 6), Ok(Some(bulk)));
        let (left, rest) = Extensions::parse(&frame[6..]).unwrap();
        assert_eq!(left.iter().collect::<Vec<_>>(), others);
        assert!(rest.is_empty() && frame.starts_with(b"header"));
        assert_eq!(take_bulk(&mut frame, 6), Ok(None));
    }
    let mut alone = b"header".to_vec();
    ExtensionBuilder::new(&mut alone).push(Entry::Bulk(bulk)).unwrap();
    let mut followed = [&alone[..], b"payload"].concat();
    assert_eq!(take_bulk(&mut alone, 6), Ok(Some(bulk)));
    assert_eq!(alone, b"header");
    assert!(take_bulk(&mut followed, 6).is_err(), "a payload in two places");
}

#[test]
fn builder_goes_on_with_a_block_and_knows_what_stands_there() {
    let mut out = b"header".to_vec();
    ExtensionBuilder::new(&mut out).push(Entry::Deadline { remaining_us: 7 }).unwrap();
    let bulk = BulkDescriptor { segment: 0, block: 0, length: 1 };
    let mut builder = ExtensionBuilder::go_on(&mut out, 6).unwrap();
    assert!(builder.push(Entry::Deadline { remaining_us: 8 }).is_err());
    builder.push(Entry::Bulk(bulk)).unwrap();
    let (found, _) = Extensions::parse(&out[6..]).unwrap();
    assert_eq!(found.bulk(), Some(bulk));
    assert!(found.iter().any(|entry| entry == Entry::Deadline { remaining_us: 7 }));
    assert!(ExtensionBuilder::go_on(&mut vec![5, 0], 0).is_err());
}

#[test]
fn time_alone_is_what_the_parser_finds_with_an_aligned_payload_behind() {
    for (remaining_us, sent_at_ns) in [(0, 0), (1, 2), (5_000_000, 1 << 60), (u64::MAX, u64::MAX)] {
        let time = TimeLeft { remaining_us, sent_at_ns };
        let mut block = time.block().to_vec();
        assert_eq!(block.len() % 8, 0);
        block.extend_from_slice(b"payload");
        assert_eq!(TimeLeft::read_block(&block), Some(time));
        let (extensions, rest) = Extensions::parse(&block).unwrap();
        let entries: Vec<_> = extensions.iter().collect();
        assert_eq!(entries, [Entry::Deadline { remaining_us }, Entry::Sent { at_ns: sent_at_ns }]);
        assert_eq!(rest, b"payload");
    }
}

#[test]
fn time_alone_is_no_other_block() {
    let time = TimeLeft { remaining_us: 7, sent_at_ns: 8 };
    assert_eq!(TimeLeft::read_block(&time.block()[..TimeLeft::BLOCK_BYTES - 1]), None);
    let values = [5..13, 16..24];
    for at in 0..TimeLeft::BLOCK_BYTES {
        let mut other = time.block();
        other[at] ^= 1;
        let is_value = values.iter().any(|value| value.contains(&at));
        assert_eq!(TimeLeft::read_block(&other).is_some(), is_value, "{at}");
    }
}

#[test]
fn time_is_set_in_a_block_with_more_entries() {
    let mut block = Vec::new();
    let mut builder = ExtensionBuilder::new(&mut block);
    builder.push(Entry::Deadline { remaining_us: 0 }).unwrap();
    builder.push(Entry::Sent { at_ns: 0 }).unwrap();
    builder.push(Entry::Metadata { key: "k", value: b"v" }).unwrap();
    assert_eq!(TimeLeft::read_block(&block), None);
    TimeLeft { remaining_us: 7, sent_at_ns: 8 }.set_in(&mut block);
    let (extensions, _) = Extensions::parse(&block).unwrap();
    let entries: Vec<_> = extensions.iter().collect();
    let (deadline, sent) = (Entry::Deadline { remaining_us: 7 }, Entry::Sent { at_ns: 8 });
    assert_eq!(entries, [deadline, sent, Entry::Metadata { key: "k", value: b"v" }]);
}
