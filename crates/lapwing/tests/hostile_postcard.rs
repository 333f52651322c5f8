//! What a payload in postcard gets that would make of its type more than a process can bear: it is refused,
//! in a server and in both clients, and the next call is served.

use lapwing::error::Part;
use lapwing::{Builder, Call, CallError, Code, IpcClient, Payload, Raw, Transport, Unary};
use lapwing_testkit::{Victim, test_name};
use serde::{Deserialize, Serialize};

const BOTH: [Transport; 2] = [Transport::SharedMemory, Transport::Socket];

#[derive(Serialize, Deserialize, Default, Debug)]
struct Chain {
    next: Option<Box<Chain>>,
}

impl Chain {
    fn len(&self) -> u32 {
        1 + self.next.as_ref().map_or(0, |next| next.len())
    }
}

const LEN: Unary<Chain, u32> = Unary::new(0x0720, "chain.len");
const COUNT: Unary<Vec<[u8; 0]>, u64> = Unary::new(0x0721, "empty.count");
/// Answers with the bytes of its request.
const BYTES: Unary<Payload, Payload, Raw> = Unary::new(0x0722, "bytes");
/// The same for a client that sends a chain and takes what comes for one.
const CHAIN: Unary<Chain, Chain> = Unary::new(BYTES.kind(), "chain");
/// Answers whatever it is sent with a chain that goes on and on.
const HOSTILE_BYTES: Unary<Payload, Payload, Raw> = Unary::new(0x0723, "hostile.bytes");
const HOSTILE_CHAIN: Unary<(), Chain> = Unary::new(HOSTILE_BYTES.kind(), "hostile");

fn deep() -> Vec<u8> {
    vec![1; 1 << 20]
}

fn with_chains(builder: Builder) -> Builder {
    builder
        .route(LEN, |_: Call, chain: Chain| async move { Ok(chain.len()) })
        .route(COUNT, |_: Call, empty: Vec<[u8; 0]>| async move { Ok(empty.len() as u64) })
        .route(BYTES, |_: Call, bytes: Payload| async move { Ok(bytes) })
        .route(HOSTILE_BYTES, |_: Call, _: Payload| async move { Ok(deep().into()) })
}

#[test]
fn request_beyond_the_bounds_is_refused_and_the_next_is_served() {
    let Some(mut victim) = Victim::start(test_name!(), with_chains) else { return };
    for transport in BOTH {
        let client = victim.client(transport);
        // A length of 2^64 - 1, and no byte for any element.
        let endless = [&[0xFF; 9][..], &[1]].concat();
        for (kind, payload, what) in [
            (LEN.kind(), deep(), "it is nested deeper than 128 levels"),
            (COUNT.kind(), endless, "it has more elements than its bytes can say"),
        ] {
            let error = client.call_raw(kind, &payload).unwrap_err();
            let CallError::Status(status) = error else { panic!("{error:?}") };
            assert_eq!(status.code, Code::InvalidArgument);
            assert_eq!(status.message, format!("the request cannot be read: {what}"));
        }
        assert_eq!(client.call(LEN, &Chain::default()).unwrap(), 1);
        assert_eq!(client.call(COUNT, &vec![[]; 3]).unwrap(), 3);
    }
    victim.assert_unharmed();
}

#[test]
fn reply_beyond_the_bounds_is_a_typed_error_and_the_next_is_read() {
    let Some(mut victim) = Victim::start(test_name!(), with_chains) else { return };
    let assert_refused = |error: CallError| {
        assert!(matches!(error, CallError::Codec { part: Part::Reply, .. }), "{error:?}");
        let sentence = "the reply of hostile cannot be read: it is nested deeper than 128 levels";
        assert_eq!(error.to_string(), sentence);
    };
    for transport in BOTH {
        let client = victim.client(transport);
        assert_refused(client.call(HOSTILE_CHAIN, &()).unwrap_err());
        assert_eq!(client.call(CHAIN, &Chain::default()).unwrap().len(), 1);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = IpcClient::connect(victim.path()).await.unwrap();
        assert_refused(client.call(HOSTILE_CHAIN, &()).await.unwrap_err());
        assert_eq!(client.call(CHAIN, &Chain::default()).await.unwrap().len(), 1);
    });
    drop(runtime);
    victim.assert_unharmed();
}
