//! What the fuzz targets run, so that the unit tests below run it too and it never rots.
//!
//! Each body takes bytes as a hostile peer would send them and panics if an invariant is broken.

use lapwing_proto::{
    Checksum, Code, Description, Entry, ExtensionBuilder, Extensions, FrameError, Goodbye, Header,
    Hello, HelloAck, HelloReject, MethodDetails, ServerOffer, Status, TimeLeft, WireError,
};

const CHECKSUMS: [Checksum; 3] = [Checksum::Off, Checksum::Crc32, Checksum::Crc32c];

/// Everything that a peer's bytes meet before anyone has agreed on anything: as a frame, as the payload
/// of each of the connection's own frames, as a status and as an extension block.
///
/// # Panics
///
/// If what decodes does not encode to the same meaning, or more memory was taken than the input
/// accounts for.
pub fn frames(data: &[u8]) {
    frame(data);
    for payload in [data, data.get(Header::BYTES..).unwrap_or_default()] {
        extensions(payload);
        hello(payload);
        hello_ack(payload);
        farewells(payload);
        status(payload);
        description(payload);
        method_details(payload);
    }
}

fn frame(data: &[u8]) {
    let Some(bytes) = data.first_chunk::<{ Header::BYTES }>() else {
        for checksum in CHECKSUMS {
            let needed = Header::BYTES;
            let expected = FrameError::Truncated { length: data.len(), needed };
            assert_eq!(checksum.check(data), Err(expected));
        }
        return;
    };
    for length_max in [0, 64, 1 << 20, u32::MAX] {
        match Header::decode(bytes, length_max) {
            Ok(header) => {
                assert!(header.length <= length_max);
                assert_eq!(header.encode(), *bytes, "a header has one form only");
            }
            Err(error) => told_to_the_peer(error.wire_error(), &error.to_string()),
        }
    }
    // A seal makes any frame good, and changes nothing but the seal.
    for checksum in CHECKSUMS {
        let good = checksum.check(data).is_ok();
        let mut sealed = data.to_vec();
        checksum.seal(&mut sealed);
        assert_eq!(checksum.check(&sealed), Ok(()));
        assert_eq!(good, sealed == data, "a good frame is one that sealing does not change");
        assert_eq!(sealed[..20], data[..20]);
        assert_eq!(sealed[Header::BYTES..], data[Header::BYTES..]);
        let (header, payload) = sealed.split_first_chunk().expect("it has a header");
        assert_eq!(checksum.of_parts(header, payload), checksum.of_frame(&sealed));
    }
}

fn told_to_the_peer(error: WireError, sentence: &str) {
    assert_eq!(WireError::from_number(error.number()), Some(error));
    assert!(!sentence.is_empty());
}

fn extensions(payload: &[u8]) {
    let (block, rest) = match Extensions::parse(payload) {
        Ok(parsed) => parsed,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    assert!(payload.ends_with(rest) && rest.len() + 2 <= payload.len());
    // Unknown entries are skipped, so that only the meaning must survive.
    let mut encoded = Vec::new();
    let mut builder = ExtensionBuilder::new(&mut encoded);
    for entry in block.iter() {
        builder.push(entry).expect("what was admitted once is admitted again");
    }
    assert!(encoded.len() + rest.len() <= payload.len());
    let (again, nothing) = Extensions::parse(&encoded).expect("a built block is well-formed");
    assert!(nothing.is_empty());
    assert!(again.iter().eq(block.iter()));
    let deadlines = block.iter().filter(|entry| matches!(entry, Entry::Deadline { .. })).count();
    assert!(deadlines <= 1);
    if let Some(TimeLeft { remaining_us, sent_at_ns }) = TimeLeft::read_block(payload) {
        let entries = [Entry::Deadline { remaining_us }, Entry::Sent { at_ns: sent_at_ns }];
        assert!(block.iter().eq(entries), "the short way finds what the long one does");
    }
    let bulks = block.iter().filter(|entry| matches!(entry, Entry::Bulk(_))).count();
    assert_eq!(bulks, usize::from(block.bulk().is_some()));
}

fn hello(payload: &[u8]) {
    let Ok(hello) = Hello::decode(payload) else { return };
    assert!(hello.program.capacity() <= payload.len());
    assert_eq!(Hello::decode(&hello.encode()).as_ref(), Ok(&hello));
    let offers = [
        ServerOffer::default(),
        ServerOffer { shared_memory: None, ..ServerOffer::default() },
        ServerOffer { socket: false, ..ServerOffer::default() },
    ];
    for offer in offers {
        match offer.answer(&hello, 7) {
            Ok(ack) => {
                assert_eq!(hello.check(&ack), Ok(()), "a client believes what a server may grant");
                assert_eq!(HelloAck::decode(&ack.encode()), Ok(ack));
            }
            Err(reject) => {
                assert!(reject.wire_error().is_some());
                assert_eq!(HelloReject::decode(&reject.encode()), Ok(reject));
            }
        }
    }
}

fn hello_ack(payload: &[u8]) {
    let Ok(ack) = HelloAck::decode(payload) else { return };
    assert!(ack.program.capacity() <= payload.len());
    assert_eq!(HelloAck::decode(&ack.encode()).as_ref(), Ok(&ack));
    let transport = lapwing_proto::TransportWanted::Socket;
    if let Err(misbehaved) = Hello::new("fuzz", transport).check(&ack) {
        told_to_the_peer(misbehaved.error, misbehaved.detail);
    }
}

/// A sentence may be cut when it is encoded, since a decoded one may use what other fields left over.
fn farewells(payload: &[u8]) {
    if let Ok(goodbye) = Goodbye::decode(payload) {
        assert!(goodbye.sentence.capacity() <= payload.len());
        let again = Goodbye::decode(&goodbye.encode()).expect("an encoded Goodbye is well-formed");
        assert_eq!(again.error, goodbye.error);
        assert_cut(&again.sentence, &goodbye.sentence);
    }
    if let Ok(reject) = HelloReject::decode(payload) {
        assert!(reject.sentence.capacity() <= payload.len());
        let again =
            HelloReject::decode(&reject.encode()).expect("an encoded refusal is well-formed");
        assert_eq!((again.error, again.version_min), (reject.error, reject.version_min));
        assert_eq!(again.version_max, reject.version_max);
        assert_cut(&again.sentence, &reject.sentence);
    }
}

fn assert_cut(short: &str, long: &str) {
    assert!(long.starts_with(short) && long.len() - short.len() < 16);
}

fn status(payload: &[u8]) {
    let Ok(status) = Status::decode(payload) else { return };
    assert!(status.message.capacity() <= payload.len());
    assert!(status.details.capacity() <= 2 * payload.len() + 64);
    assert_eq!(Status::decode(&status.encode()).as_ref(), Ok(&status));
    assert!(Code::ALL.contains(&status.code));
}

fn method_details(payload: &[u8]) {
    let Ok(details) = MethodDetails::decode(payload) else { return };
    assert_eq!(MethodDetails::decode(&details.encode()).as_ref(), Ok(&details));
}

fn description(payload: &[u8]) {
    let Ok(description) = Description::decode(payload) else { return };
    assert!(description.methods.capacity() <= 2 * payload.len() + 64);
    assert_eq!(Description::decode(&description.encode()).as_ref(), Ok(&description));
}

/// A compressed payload from a peer: it expands to what it says and no more than the limit, or is refused with
/// something to tell the peer. Bytes that were compressed here come back.
///
/// # Panics
///
/// If an invariant is broken.
pub fn compressed(data: &[u8]) {
    for max in [0, 100, 4096, 1 << 20] {
        let claimed = lapwing_proto::expanded_length(data, max);
        match lapwing::expand_payload(data, max) {
            Ok(payload) => {
                assert_eq!(claimed, Ok(payload.len() as u32));
                assert!(payload.len() <= max as usize);
                if max > 0 {
                    let less = lapwing::expand_payload(data, payload.len() as u32);
                    assert_eq!(less, Ok(payload), "the limit is inclusive");
                }
            }
            Err(peer) => {
                if let Err(error) = claimed {
                    assert_eq!(peer.error, error.wire_error(), "the header is judged first");
                }
                told_to_the_peer(peer.error, peer.detail);
            }
        }
    }
    let whole = compress(data);
    assert_eq!(lapwing::expand_payload(&whole, data.len() as u32).as_deref(), Ok(data));
    if let Some(less) = data.len().checked_sub(1) {
        let refused = lapwing::expand_payload(&whole, less as u32).expect_err("it is too long");
        assert_eq!(refused.error, WireError::FrameTooLong);
    }
    for cut in [whole.len() / 2, whole.len() - 1] {
        assert!(lapwing::expand_payload(&whole[..cut], 1 << 20).is_err(), "cut at {cut}");
    }
}

/// The payload as one zstd frame that says its length.
///
/// # Panics
///
/// If the system has no memory.
#[must_use]
pub fn compress(payload: &[u8]) -> Vec<u8> {
    let mut whole = Vec::with_capacity(zstd_safe::compress_bound(payload.len()));
    zstd_safe::compress(&mut whole, payload, 3).expect("there is room for it");
    whole
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use lapwing_proto::{BulkDescriptor, Kind, TraceContext, TransportWanted};

    use super::*;

    const MUTATIONS_PER_SEED: u64 = 400;

    #[test]
    fn frames_body_holds_on_every_vector_and_its_mutations() {
        let vectors = vectors();
        assert!(!vectors.is_empty(), "crates/proto/vectors has no hexadecimal strings");
        for seed in &vectors {
            frames_with_mutations(seed);
        }
    }

    #[test]
    fn frames_body_holds_on_well_formed_messages_and_their_mutations() {
        for seed in &well_formed() {
            frames_with_mutations(seed);
        }
    }

    #[test]
    fn frames_body_holds_on_short_and_random_bytes() {
        let mut random = Random(1);
        for length in 0..600 {
            let bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
            frames(&bytes);
            frames(&vec![0; length]);
            frames(&vec![0xFF; length]);
        }
    }

    #[test]
    fn compressed_body_holds_on_compressed_payloads_and_their_mutations() {
        let mut random = Random(3);
        let seeds = [
            compress(b""),
            compress(b"lapwing"),
            compress(&[7; 300]),
            compress(&(0..5000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect::<Vec<_>>()),
            compress(&vec![0; 200_000]),
            (0..500).map(|_| random.next() as u8).collect(),
        ];
        for seed in &seeds {
            compressed(seed);
            for _ in 0..MUTATIONS_PER_SEED {
                compressed(&random.mutated(seed));
            }
        }
    }

    fn frames_with_mutations(seed: &[u8]) {
        frames(seed);
        let mut random = Random(seed.len() as u64 + 1);
        for _ in 0..MUTATIONS_PER_SEED {
            frames(&random.mutated(seed));
        }
    }

    /// Every string of hexadecimal digits in the files of `crates/proto/vectors`, as bytes.
    fn vectors() -> Vec<Vec<u8>> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/vectors");
        let mut found = Vec::new();
        for entry in fs::read_dir(directory).expect("crates/proto/vectors is readable") {
            let path = entry.expect("crates/proto/vectors is readable").path();
            let Ok(text) = fs::read_to_string(&path) else { continue };
            found.extend(text.split('"').filter_map(from_hex));
        }
        found
    }

    fn from_hex(text: &str) -> Option<Vec<u8>> {
        let digits: Vec<u32> = text
            .chars()
            .filter(|c| !c.is_whitespace())
            .map(|c| c.to_digit(16))
            .collect::<Option<_>>()?;
        let whole = !digits.is_empty() && digits.len().is_multiple_of(2);
        whole.then(|| digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect())
    }

    /// One of each message, so that mutations begin close to what decodes; each also as a whole frame.
    fn well_formed() -> Vec<Vec<u8>> {
        let hello = Hello::new("fuzz", TransportWanted::SharedMemory { ring_bytes: 1 << 18 });
        let ack = ServerOffer::default().answer(&hello, 7).expect("the defaults agree");
        let mut block = Vec::new();
        let mut builder = ExtensionBuilder::new(&mut block);
        let trace = TraceContext { trace_id: [1; 16], parent_id: [2; 8], flags: 1 };
        let bulk = BulkDescriptor { segment: 1, block: 2, length: 3 };
        for entry in [
            Entry::Deadline { remaining_us: 1_000_000 },
            Entry::Sent { at_ns: 2_000_000 },
            Entry::Trace(trace),
            Entry::Bulk(bulk),
            Entry::Metadata { key: "key", value: b"value" },
        ] {
            builder.push(entry).expect("one of each is allowed");
        }
        let status = Status::new(Code::NotFound, "no such file")
            .with_details(b"details".as_slice())
            .with_retry_after_ms(50);
        let payloads = [
            hello.encode(),
            ack.encode(),
            HelloReject::new(WireError::UnsupportedVersion, "").encode(),
            Goodbye::new(WireError::Draining, "the server is stopped").encode(),
            status.encode(),
            block,
        ];
        let framed = payloads.clone().into_iter().map(|payload| {
            let mut frame = Header::connection(Kind::HELLO, payload.len() as u32).encode().to_vec();
            frame.extend(payload);
            Checksum::Crc32.seal(&mut frame);
            frame
        });
        let framed: Vec<Vec<u8>> = framed.collect();
        payloads.into_iter().chain(framed).collect()
    }

    /// xorshift64: the same mutations at every run.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        fn below(&mut self, bound: usize) -> usize {
            (self.next() % bound.max(1) as u64) as usize
        }

        /// `seed` with one to four bytes changed, removed, repeated or appended.
        fn mutated(&mut self, seed: &[u8]) -> Vec<u8> {
            let mut bytes = seed.to_vec();
            for _ in 0..=self.below(4) {
                let at = self.below(bytes.len());
                match self.below(6) {
                    0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                    1 if !bytes.is_empty() => bytes[at] = self.next() as u8,
                    2 if !bytes.is_empty() => drop(bytes.remove(at)),
                    3 => bytes.truncate(at),
                    4 if !bytes.is_empty() => bytes.insert(at, bytes[at]),
                    _ => bytes.push(self.next() as u8),
                }
            }
            bytes
        }
    }
}
