//! What a bad handshake gets: a typed refusal or the end, while others are served and nothing leaks.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use lapwing::error::{ConnectError, PeerMisbehaved};
use lapwing::{ClientOptions, IpcClient, PeerCredentials, ServerLimits, Transport, blocking};
use lapwing_proto::{
    Checksum, ChecksumSet, Flags, Hello, HelloAck, HelloReject, Kind, LimitsGranted, LimitsWanted,
    TransportGranted, TransportWanted, WireError, limits,
};
use lapwing_testkit::frame::RawFrame;
use lapwing_testkit::{
    Greeted, Heard, RawPeer, RawServer, Resources, SEALS, SealFlags, Victim, doorbell, eventually,
    hello, memory_file, pipe, process, regular_file, sealed_segment, segment_bytes, test_name,
};

const BOTH: [Transport; 2] = [Transport::SharedMemory, Transport::Socket];
const RING: u32 = limits::RING_BYTES_MIN;

fn hello_frame(hello: &Hello) -> RawFrame {
    RawFrame::connection(Kind::HELLO, &hello.encode())
}

fn good_descriptors() -> Vec<OwnedFd> {
    vec![sealed_segment(RING).1, doorbell()]
}

/// Sends one first frame with these descriptors, and gives the refusal.
fn refusal(victim: &Victim, bytes: &[u8], descriptors: &[OwnedFd]) -> HelloReject {
    let mut peer = RawPeer::connect(victim.path());
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    peer.send_with(bytes, &borrowed);
    peer.hear_reject()
}

#[track_caller]
fn assert_refused(victim: &Victim, what: &str, frame: &RawFrame, expected: WireError) {
    let reject = refusal(victim, &frame.bytes(Checksum::Crc32), &[]);
    assert_eq!(reject.wire_error(), Some(expected), "{what}: {}", reject.sentence);
}

#[test]
fn hello_with_a_wrong_header_field_is_refused_by_its_number() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let good = hello_frame(&hello(Transport::Socket));
    let of = |change: fn(&mut RawFrame)| {
        let mut frame = good.clone();
        change(&mut frame);
        frame
    };
    let cases = [
        ("magic", of(|f| f.magic = *b"LAPD"), WireError::BadMagic),
        ("magic of another order", of(|f| f.magic = *b"CPAL"), WireError::BadMagic),
        ("version 0", of(|f| f.version = 0), WireError::UnsupportedVersion),
        ("version 2", of(|f| f.version = 2), WireError::UnsupportedVersion),
        ("reserved flag", of(|f| f.flags = Flags::ENCRYPTED.bits()), WireError::BadFlags),
        ("request and response", of(|f| f.flags = 0x30), WireError::BadFlags),
        ("error alone", of(|f| f.flags = Flags::ERROR.bits()), WireError::BadFlags),
        ("kind 0", of(|f| f.kind = 0), WireError::BadKind),
        ("length one over", of(|f| f.length = Some(4097)), WireError::FrameTooLong),
        ("length of 4 GiB", of(|f| f.length = Some(u32::MAX)), WireError::FrameTooLong),
        ("request with id 0", of(|f| f.flags = Flags::REQUEST.bits()), WireError::BadId),
        ("checksum", of(|f| f.checksum = Some(0)), WireError::BadChecksum),
        ("Ack first", of(|f| f.kind = Kind::HELLO_ACK.number()), WireError::UnexpectedMessage),
        ("Goodbye first", of(|f| f.kind = Kind::GOODBYE.number()), WireError::UnexpectedMessage),
        ("method first", of(|f| f.kind = 0x0401), WireError::UnexpectedMessage),
    ];
    let count = cases.len() as u64;
    let refused = victim.stat("refused");
    for (what, frame, expected) in cases {
        assert_refused(&victim, what, &frame, expected);
    }
    let other_checksum = refusal(&victim, &good.bytes(Checksum::Crc32c), &[]);
    assert_eq!(other_checksum.wire_error(), Some(WireError::BadChecksum));
    victim.await_stat("refused", refused + count + 1);
    victim.assert_unharmed();
}

#[test]
fn hello_with_a_bad_payload_is_refused_by_its_number() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let good = hello(Transport::Socket);
    let refuse = |what: &str, hello: &Hello, expected| {
        assert_refused(&victim, what, &hello_frame(hello), expected);
    };
    let limits = |message_bytes, calls_in_flight| Hello {
        limits: LimitsWanted { message_bytes, calls_in_flight },
        ..good.clone()
    };
    let ring = |ring_bytes| Hello {
        transport: TransportWanted::SharedMemory { ring_bytes },
        ..good.clone()
    };
    refuse("versions from 0", &Hello { version_min: 0, ..good.clone() }, WireError::BadMessage);
    let no_version = Hello { version_min: 2, version_max: 1, ..good.clone() };
    refuse("no version", &no_version, WireError::BadMessage);
    refuse("messages of 0 bytes", &limits(0, 1), WireError::BadMessage);
    refuse("no calls", &limits(1, 0), WireError::BadMessage);
    refuse("short ring", &ring(RING / 2), WireError::BadMessage);
    refuse("odd ring", &ring(RING + 64), WireError::BadMessage);
    refuse("long ring", &ring(limits::RING_BYTES_MAX * 2), WireError::BadMessage);
    let escape = Hello { program: "\u{1b}[2J".into(), ..good.clone() };
    refuse("control characters", &escape, WireError::BadMessage);
    let none = Hello { checksums: ChecksumSet::NONE, ..good.clone() };
    refuse("no checksum", &none, WireError::NoCommonChecksum);
    let off = Hello { checksums: ChecksumSet::only(Checksum::Off), ..good.clone() };
    refuse("no checksum on the socket", &off, WireError::NoCommonChecksum);

    let payload = good.encode();
    for length in 0..payload.len() {
        let cut = RawFrame::connection(Kind::HELLO, &payload[..length]);
        assert_refused(&victim, &format!("{length} bytes"), &cut, WireError::BadMessage);
    }
    let mut more = payload.clone();
    more.push(0);
    let more = RawFrame::connection(Kind::HELLO, &more);
    assert_refused(&victim, "a byte left over", &more, WireError::BadMessage);
    let noise = RawFrame::connection(Kind::HELLO, &[0xFF; 4096]);
    assert_refused(&victim, "4096 bytes of noise", &noise, WireError::BadMessage);
    victim.assert_unharmed();
}

#[test]
fn hello_of_other_versions_is_told_which_ones_there_are() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let later = Hello { version_min: 2, version_max: 9, ..hello(Transport::Socket) };
    let reject = refusal(&victim, &hello_frame(&later).bytes(Checksum::Crc32), &[]);
    assert_eq!(reject.wire_error(), Some(WireError::UnsupportedVersion));
    assert_eq!((reject.version_min, reject.version_max), (1, 1));
    assert!(reject.sentence.contains("2 to 9") && reject.sentence.contains("1 to 1"));
    // A range that holds version 1 is served with it.
    let wide = Hello { version_min: 1, version_max: 9, ..hello(Transport::Socket) };
    let (_peer, ack) = RawPeer::greet_with(victim.path(), &wide);
    assert_eq!(ack.version, 1);
    drop(_peer);
    victim.assert_unharmed();
}

#[test]
fn hello_cut_at_any_byte_leaves_nothing_behind() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let refused = victim.stat("refused");
    let mut cut = 0;
    for transport in BOTH {
        let bytes = hello_frame(&hello(transport)).bytes(Checksum::Crc32);
        for length in 0..bytes.len() {
            let descriptors =
                if transport == Transport::SharedMemory { good_descriptors() } else { vec![] };
            let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            let mut peer = RawPeer::connect(victim.path());
            peer.send_with(&bytes[..length], &borrowed);
            if length % 2 == 0 {
                peer.hang_up();
                assert_eq!(peer.hear(), Heard::End);
            }
            cut += 1;
        }
    }
    victim.await_stat("refused", refused + cut);
    victim.assert_unharmed();
}

#[test]
fn fifty_silent_and_stalled_clients_are_timed_out_while_others_are_served() {
    let handshake = Duration::from_millis(600);
    let limits = ServerLimits { handshake, ..ServerLimits::default() };
    let Some(mut victim) = Victim::start(test_name!(), |server| server.limits(limits)) else {
        return;
    };
    let bytes = hello_frame(&hello(Transport::SharedMemory)).bytes(Checksum::Crc32);
    let descriptors = good_descriptors();
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let begun = Instant::now();
    let mut stalled: Vec<RawPeer> = (0..50)
        .map(|n| {
            let peer = RawPeer::connect(victim.path());
            // Every other says nothing at all, the rest a part of Hello that differs each time.
            if n % 2 == 1 {
                peer.send_with(&bytes[..n % bytes.len()], &borrowed);
            }
            peer
        })
        .collect();
    while begun.elapsed() < handshake / 2 {
        victim.assert_serves_others();
    }
    for peer in &mut stalled {
        assert_eq!(peer.hear_reject().wire_error(), Some(WireError::HandshakeTimeout));
    }
    assert!(begun.elapsed() >= handshake);
    victim.assert_unharmed();
}

#[test]
fn client_that_dies_mid_handshake_is_forgotten() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    for n in 0..30 {
        let transport = BOTH[n % 2];
        let bytes = hello_frame(&hello(transport)).bytes(Checksum::Crc32);
        let descriptors =
            if transport == Transport::SharedMemory { good_descriptors() } else { vec![] };
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let peer = RawPeer::connect(victim.path());
        peer.send_with(&bytes, &borrowed);
        // Gone without reading the answer; every third a moment later.
        if n % 3 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    victim.assert_unharmed();
}

#[test]
fn descriptors_in_any_wrong_number_are_refused_and_closed() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let shared = hello_frame(&hello(Transport::SharedMemory)).bytes(Checksum::Crc32);
    let socket = hello_frame(&hello(Transport::Socket)).bytes(Checksum::Crc32);
    let some = |count: usize| -> Vec<OwnedFd> {
        good_descriptors().into_iter().cycle_with(doorbell).take(count).collect()
    };
    let surplus = WireError::SurplusDescriptors;
    let missing = WireError::MissingDescriptors;
    // Four is what the server makes room for; from five on the kernel cuts the control message.
    for (count, expected) in [
        (0, missing),
        (1, missing),
        (3, surplus),
        (4, surplus),
        (5, surplus),
        (10, surplus),
        (253, surplus),
    ] {
        let reject = refusal(&victim, &shared, &some(count));
        assert_eq!(reject.wire_error(), Some(expected), "{count}: {}", reject.sentence);
    }
    for count in [1, 2, 4, 10] {
        let reject = refusal(&victim, &socket, &some(count));
        assert_eq!(reject.wire_error(), Some(surplus), "{count}: {}", reject.sentence);
    }
    victim.assert_unharmed();
}

/// The first few, then as many more of one kind as are asked for.
trait CycleWith: Iterator<Item = OwnedFd> + Sized {
    fn cycle_with(self, more: fn() -> OwnedFd) -> impl Iterator<Item = OwnedFd> {
        self.chain(std::iter::repeat_with(more))
    }
}

impl<I: Iterator<Item = OwnedFd>> CycleWith for I {}

#[test]
fn descriptors_on_every_byte_of_hello_are_not_hoarded() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    // A Hello as long as may be, so that there are many bytes to send descriptors with.
    let long = RawFrame::connection(Kind::HELLO, &[0; 4096]).bytes(Checksum::Crc32);
    let descriptors: Vec<OwnedFd> = (0..4).map(|_| doorbell()).collect();
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut peer = RawPeer::connect(victim.path());
    for byte in &long[..100] {
        // The server may have refused already.
        if peer.try_send_with(&[*byte], &borrowed).is_err() {
            break;
        }
    }
    std::thread::sleep(Duration::from_millis(50));
    let held = victim.resources().descriptors - victim.before().descriptors;
    assert!(held <= 8, "the server holds {held} descriptors more than before");
    assert_eq!(peer.hear_reject().wire_error(), Some(WireError::SurplusDescriptors));
    victim.assert_unharmed();
}

#[test]
fn segment_of_any_wrong_make_is_refused() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let bytes = segment_bytes(RING);
    let frame = hello_frame(&hello(Transport::SharedMemory)).bytes(Checksum::Crc32);
    let (read, write) = pipe();
    let (near, far) = UnixStream::pair().unwrap();
    let write_only = {
        let (_own, file) = sealed_segment(RING);
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        std::fs::OpenOptions::new().write(true).open(path).map(OwnedFd::from)
    };
    let mut cases = vec![
        ("unsealed", memory_file(bytes, SealFlags::empty())),
        ("sealed for the seals only", memory_file(bytes, SealFlags::SEAL)),
        ("able to shrink", memory_file(bytes, SEALS.difference(SealFlags::SHRINK))),
        ("able to grow", memory_file(bytes, SEALS.difference(SealFlags::GROW))),
        ("writable", memory_file(bytes, SEALS.difference(SealFlags::FUTURE_WRITE))),
        ("able to take seals", memory_file(bytes, SEALS.difference(SealFlags::SEAL))),
        ("empty", memory_file(0, SEALS)),
        ("a byte short", memory_file(bytes - 1, SEALS)),
        ("a page short", memory_file(bytes - 4096, SEALS)),
        ("a byte long", memory_file(bytes + 1, SEALS)),
        ("of a longer ring", memory_file(segment_bytes(RING * 2), SEALS)),
        ("a regular file", regular_file(bytes)),
        ("a pipe for reading", read),
        ("a pipe for writing", write),
        ("a socket", near.into()),
        ("a doorbell", doorbell()),
    ];
    cases.extend(write_only.map(|file| ("only for writing", file)));
    for (what, segment) in cases {
        let reject = refusal(&victim, &frame, &[segment, doorbell()]);
        assert_eq!(reject.wire_error(), Some(WireError::BadSegment), "{what}: {reject:?}");
    }
    drop(far);
    victim.assert_unharmed();
}

#[test]
fn doorbell_of_any_wrong_make_is_refused() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let frame = hello_frame(&hello(Transport::SharedMemory)).bytes(Checksum::Crc32);
    let (read, write) = pipe();
    let (near, far) = UnixStream::pair().unwrap();
    let cases = [
        ("a memory file", memory_file(4096, SealFlags::empty())),
        ("a segment", sealed_segment(RING).1),
        ("a regular file", regular_file(8)),
        ("a pipe for reading", read),
        ("a pipe for writing", write),
        ("a socket", near.into()),
    ];
    for (what, bell) in cases {
        let reject = refusal(&victim, &frame, &[sealed_segment(RING).1, bell]);
        assert_eq!(reject.wire_error(), Some(WireError::BadDoorbell), "{what}: {reject:?}");
    }
    drop(far);
    victim.assert_unharmed();
}

#[test]
fn client_refused_by_policy_is_told_the_policy_s_sentence() {
    let refuse = |peer: &PeerCredentials| {
        assert!(peer.pid > 0);
        // The test's own first clients are let in; then a name on disk keeps everybody out.
        if std::path::Path::new(&process::setting("LAPWING_TEST_PATH"))
            .with_extension("no")
            .exists()
        {
            return Err(format!("user {} is on holiday", peer.uid));
        }
        Ok(())
    };
    let Some(mut victim) = Victim::start(test_name!(), |server| server.policy(refuse)) else {
        return;
    };
    let sign = victim.path().with_extension("no");
    std::fs::write(&sign, "").unwrap();
    for transport in BOTH {
        let descriptors =
            if transport == Transport::SharedMemory { good_descriptors() } else { vec![] };
        let bytes = hello_frame(&hello(transport)).bytes(Checksum::Crc32);
        let reject = refusal(&victim, &bytes, &descriptors);
        assert_eq!(reject.wire_error(), Some(WireError::NotPermitted));
        assert!(reject.sentence.ends_with("is on holiday"), "{}", reject.sentence);
        for error in refused_clients(victim.path(), transport) {
            let ConnectError::Rejected { error: Some(WireError::NotPermitted), sentence } = error
            else {
                panic!("{error}")
            };
            assert!(sentence.ends_with("is on holiday"), "{sentence}");
        }
    }
    std::fs::remove_file(sign).unwrap();
    victim.assert_unharmed();
}

/// What the blocking and the async client say when they are not let in.
fn refused_clients(path: &std::path::Path, transport: Transport) -> [ConnectError; 2] {
    let options = ClientOptions { transport, ..ClientOptions::default() };
    let blocking = blocking::IpcClient::connect_with(path, &options).unwrap_err();
    let asynchronous = runtime().block_on(IpcClient::connect_with(path, options)).unwrap_err();
    [blocking, asynchronous]
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn assert_quota(test: &str, limits: &ServerLimits, places: usize, said: &str) {
    let Some(mut victim) = Victim::start(test, |server| server.limits(limits.clone())) else {
        return;
    };
    // The bystanders have two places already; one that says nothing takes one, too.
    for round in 0..3 {
        let mut inside = vec![RawPeer::connect(victim.path())];
        for n in 1..places - 2 {
            inside.push(RawPeer::greet(victim.path(), BOTH[n % 2]));
        }
        victim.await_connections(places as u64);
        for transport in BOTH {
            for error in refused_clients(victim.path(), transport) {
                let ConnectError::Rejected { error, sentence } = error else { panic!("{error}") };
                assert_eq!(error, Some(WireError::QuotaConnections), "round {round}");
                assert!(sentence.contains(said), "{sentence}");
            }
        }
        let mut silent = RawPeer::connect(victim.path());
        assert_eq!(silent.hear_reject().wire_error(), Some(WireError::QuotaConnections));
        drop(inside);
        victim.await_connections(2);
    }
    victim.assert_unharmed();
}

#[test]
fn connections_over_the_total_are_refused_until_one_is_free() {
    let limits = ServerLimits { connections: 6, ..ServerLimits::default() };
    assert_quota(test_name!(), &limits, 6, "all 6 connections");
}

#[test]
fn connections_over_the_user_s_share_are_refused_until_one_is_free() {
    let limits = ServerLimits { connections_per_uid: 5, ..ServerLimits::default() };
    assert_quota(test_name!(), &limits, 5, "all 5 connections it may have");
}

/// What a hostile server answers Hello with, and what each client must make of it.
struct Answer {
    what: &'static str,
    transport: Transport,
    answer: fn(Greeted),
    expected: fn(&ConnectError) -> bool,
}

fn misbehaved(error: &ConnectError, expected: WireError) -> bool {
    matches!(error, ConnectError::Misbehaved(PeerMisbehaved { error, .. }) if *error == expected)
}

fn ack_with(greeted: &Greeted, change: impl FnOnce(&mut HelloAck)) -> Vec<u8> {
    let mut ack = greeted.honest_ack();
    change(&mut ack);
    ack.encode()
}

fn server_half() -> Vec<OwnedFd> {
    vec![sealed_segment(limits::RING_BYTES).1, doorbell()]
}

fn answer_with(greeted: &Greeted, change: impl FnOnce(&mut HelloAck), descriptors: &[OwnedFd]) {
    greeted.answer(Kind::HELLO_ACK, &ack_with(greeted, change), descriptors);
}

fn answers() -> Vec<Answer> {
    use Transport::{SharedMemory, Socket};
    let case = |what, transport, answer, expected| Answer { what, transport, answer, expected };
    let mut cases = vec![
        case("closes", Socket, drop, |e| matches!(e, ConnectError::Closed)),
        case(
            "closes within HelloAck",
            Socket,
            |g| {
                let bytes = RawFrame::connection(Kind::HELLO_ACK, &[0; 20]).bytes(Checksum::Crc32);
                g.peer.send(&bytes[..30]);
            },
            |e| matches!(e, ConnectError::Closed),
        ),
        case(
            "noise",
            Socket,
            |g| g.peer.send(&[0xA5; 4096]),
            |e| misbehaved(e, WireError::BadMagic),
        ),
        case(
            "HelloAck that cannot be read",
            Socket,
            |g| g.answer(Kind::HELLO_ACK, &[0xFF; 9], &[]),
            |e| misbehaved(e, WireError::BadMessage),
        ),
        case(
            "HelloAck with a byte left over",
            Socket,
            |g| g.answer(Kind::HELLO_ACK, &[&*ack_with(&g, |_| ()), &[0]].concat(), &[]),
            |e| misbehaved(e, WireError::BadMessage),
        ),
        case(
            "HelloAck with a bad checksum",
            Socket,
            |g| {
                let mut frame = RawFrame::connection(Kind::HELLO_ACK, &ack_with(&g, |_| ()));
                frame.checksum = Some(1);
                g.peer.send(&frame.bytes(Checksum::Crc32));
            },
            |e| misbehaved(e, WireError::BadChecksum),
        ),
        case(
            "HelloAck that announces too much",
            Socket,
            |g| {
                let mut frame = RawFrame::connection(Kind::HELLO_ACK, &[]);
                frame.length = Some(4097);
                g.peer.send(&frame.bytes(Checksum::Crc32));
            },
            |e| misbehaved(e, WireError::FrameTooLong),
        ),
        case(
            "something else",
            Socket,
            |g| g.answer(Kind::HELLO, &g.hello.encode(), &[]),
            |e| misbehaved(e, WireError::UnexpectedMessage),
        ),
        case(
            "HelloReject that cannot be read",
            Socket,
            |g| g.answer(Kind::HELLO_REJECT, &[0xFF; 3], &[]),
            |e| misbehaved(e, WireError::BadMessage),
        ),
        case(
            "HelloReject with an unknown number and an escape sequence",
            SharedMemory,
            |g| {
                let mut reject = HelloReject::new(WireError::Internal, "no\u{1b}[2J\nway");
                reject.error = 999;
                g.answer(Kind::HELLO_REJECT, &reject.encode(), &[]);
            },
            |e| matches!(e, ConnectError::Rejected { error: None, sentence } if sentence == "no [2J way"),
        ),
        case(
            "descriptors with the socket granted",
            Socket,
            |g| answer_with(&g, |_| (), &server_half()),
            |e| misbehaved(e, WireError::SurplusDescriptors),
        ),
        case(
            "descriptors with the socket granted in place of shared memory",
            SharedMemory,
            |g| answer_with(&g, |ack| ack.transport = TransportGranted::Socket, &server_half()),
            |e| misbehaved(e, WireError::SurplusDescriptors),
        ),
        case(
            "no descriptors",
            SharedMemory,
            |g| answer_with(&g, |_| (), &[]),
            |e| misbehaved(e, WireError::MissingDescriptors),
        ),
        case(
            "one descriptor",
            SharedMemory,
            |g| answer_with(&g, |_| (), &server_half()[..1]),
            |e| misbehaved(e, WireError::MissingDescriptors),
        ),
        case(
            "three descriptors",
            SharedMemory,
            |g| answer_with(&g, |_| (), &[server_half(), vec![doorbell()]].concat_all()),
            |e| misbehaved(e, WireError::SurplusDescriptors),
        ),
        case(
            "ten descriptors",
            SharedMemory,
            |g| {
                let bells: Vec<_> = (0..10).map(|_| doorbell()).collect();
                answer_with(&g, |_| (), &bells);
            },
            |e| misbehaved(e, WireError::SurplusDescriptors),
        ),
        case(
            "a HelloAck with an id",
            Socket,
            |g| {
                let mut frame = RawFrame::connection(Kind::HELLO_ACK, &g.honest_ack().encode());
                frame.id = 9;
                g.peer.send(&frame.bytes(Checksum::Crc32));
            },
            |e| misbehaved(e, WireError::BadFlags),
        ),
        case(
            "a HelloAck with a flag",
            Socket,
            |g| {
                let mut frame = RawFrame::connection(Kind::HELLO_ACK, &g.honest_ack().encode());
                frame.flags = Flags::PRIORITY.bits();
                g.peer.send(&frame.bytes(Checksum::Crc32));
            },
            |e| misbehaved(e, WireError::BadFlags),
        ),
        case(
            "an unsealed segment",
            SharedMemory,
            |g| {
                let file = memory_file(segment_bytes(limits::RING_BYTES), SealFlags::empty());
                answer_with(&g, |_| (), &[file, doorbell()]);
            },
            |e| misbehaved(e, WireError::BadSegment),
        ),
        case(
            "a segment of another length",
            SharedMemory,
            |g| answer_with(&g, |_| (), &[sealed_segment(RING).1, doorbell()]),
            |e| misbehaved(e, WireError::BadSegment),
        ),
        case(
            "a file for a doorbell",
            SharedMemory,
            |g| answer_with(&g, |_| (), &[sealed_segment(limits::RING_BYTES).1, regular_file(8)]),
            |e| misbehaved(e, WireError::BadDoorbell),
        ),
        case(
            "a ring of an impossible length",
            SharedMemory,
            |g| {
                let transport = TransportGranted::SharedMemory { ring_bytes: 1000 };
                answer_with(&g, |ack| ack.transport = transport, &server_half());
            },
            |e| misbehaved(e, WireError::BadMessage),
        ),
    ];
    cases.extend(grants().into_iter().map(|(what, transport, answer)| Answer {
        what,
        transport,
        answer,
        expected: |e| misbehaved(e, WireError::BadGrant),
    }));
    cases
}

/// What is granted, on which transport, and how.
type Grant = (&'static str, Transport, fn(Greeted));

/// Grants of what was not asked for.
fn grants() -> Vec<Grant> {
    use Transport::{SharedMemory, Socket};
    vec![
        ("version 2", Socket, |g| answer_with(&g, |ack| ack.version = 2, &[])),
        ("a feature", Socket, |g| answer_with(&g, |ack| ack.features.0 = 1 << 40, &[])),
        ("longer messages", Socket, |g| {
            let more = |ack: &mut HelloAck| {
                ack.limits = LimitsGranted { message_bytes: u32::MAX, ..ack.limits };
            };
            answer_with(&g, more, &[]);
        }),
        ("more calls", Socket, |g| answer_with(&g, |ack| ack.limits.calls_in_flight += 1, &[])),
        ("no checksum", SharedMemory, |g| {
            answer_with(&g, |ack| ack.checksum = Checksum::Off, &server_half());
        }),
        ("shared memory", Socket, |g| {
            let transport = TransportGranted::SharedMemory { ring_bytes: limits::RING_BYTES };
            answer_with(&g, |ack| ack.transport = transport, &server_half());
        }),
    ]
}

trait ConcatAll {
    fn concat_all(self) -> Vec<OwnedFd>;
}

impl ConcatAll for [Vec<OwnedFd>; 2] {
    fn concat_all(self) -> Vec<OwnedFd> {
        self.into_iter().flatten().collect()
    }
}

#[test]
fn bad_answer_to_hello_is_a_typed_error_of_both_clients_and_leaks_nothing() {
    process::alone(test_name!(), || {
        let runtime = runtime();
        let check = |answer: &Answer| {
            let options = ClientOptions { transport: answer.transport, ..ClientOptions::default() };
            let server = RawServer::start(answer.answer);
            let error = blocking::IpcClient::connect_with(server.path(), &options).unwrap_err();
            assert!((answer.expected)(&error), "blocking, {}: {error:?}", answer.what);
            server.join();
            let server = RawServer::start(answer.answer);
            let client = IpcClient::connect_with(server.path(), options);
            let error = runtime.block_on(client).unwrap_err();
            assert!((answer.expected)(&error), "async, {}: {error:?}", answer.what);
            server.join();
        };
        let answers = answers();
        check(&answers[0]);
        let before = held();
        answers.iter().for_each(check);
        eventually("the clients hold nothing", || (held() == before).then_some(()));
    });
}

/// Descriptors and segments of this process.
fn held() -> (usize, usize) {
    let now = Resources::of(std::process::id());
    (now.descriptors, now.segment_mappings)
}

#[test]
fn server_that_does_not_answer_hello_times_out_both_clients() {
    for transport in BOTH {
        let handshake = Duration::from_millis(200);
        let options = ClientOptions { transport, handshake, ..ClientOptions::default() };
        let stall = |mut greeted: Greeted| assert_eq!(greeted.peer.hear(), Heard::End);
        let server = RawServer::start(stall);
        let error = blocking::IpcClient::connect_with(server.path(), &options).unwrap_err();
        assert!(matches!(error, ConnectError::HandshakeTimeout { .. }), "{error}");
        server.join();
        let server = RawServer::start(stall);
        let client = IpcClient::connect_with(server.path(), options);
        let error = runtime().block_on(client).unwrap_err();
        assert!(matches!(error, ConnectError::HandshakeTimeout { .. }), "{error}");
        server.join();
    }
}
