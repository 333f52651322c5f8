//! `describe` and `call` against a server that is older than codecs, schemas and calls in JSON.

mod common;

use common::{command, run};
use lapwing_testkit::frame::RawFrame;
use lapwing_testkit::{Heard, RawServer};

/// A unary `a` of number 0x0100 and a one-way `b` of 0x0101, as Describe tells them.
const DESCRIPTION: &[u8] = &[2, 0x80, 0x02, 1, b'a', 0, 0x81, 0x02, 1, b'b', 1];
/// The status `Unimplemented`, without a word.
const UNIMPLEMENTED: &[u8] = &[12, 0, 0, 0];
const ERROR: u8 = 0x40;
const EXTENDED: u8 = 0x80;

/// Serves one client as such a server does; `a` gives its request back. What it was asked, in order.
fn serve() -> (RawServer, std::sync::mpsc::Receiver<u16>) {
    let (asked, hears) = std::sync::mpsc::channel();
    let server = RawServer::start(move |greeted| {
        let mut peer = greeted.grant();
        while let Heard::Frame(header, payload) = peer.hear() {
            let kind = header.kind.number();
            asked.send(kind).unwrap();
            assert_eq!(header.flags.bits() & EXTENDED, 0, "nothing that it does not know");
            match kind {
                0x000B => peer.send_frame(&RawFrame::response(kind, header.id.get(), DESCRIPTION)),
                0x0100 => peer.send_frame(&RawFrame::response(kind, header.id.get(), &payload)),
                // Goodbye.
                0x0004 => break,
                _ => {
                    let mut frame = RawFrame::response(kind, header.id.get(), UNIMPLEMENTED);
                    frame.flags |= ERROR;
                    peer.send_frame(&frame);
                }
            }
        }
    });
    (server, hears)
}

#[test]
fn older_server_is_described_without_codecs_and_called_as_before() {
    let ask = |args: &[&str]| {
        let (server, asked) = serve();
        let ended = run(command(args).arg("--socket").arg(server.path()));
        server.join();
        (ended.succeeds(), asked.iter().collect::<Vec<_>>())
    };
    let (table, asked) = ask(&["describe"]);
    assert_eq!(
        table,
        "KIND    NAME  SHAPE          CODEC\n\
         0x0100  a     unary          unknown\n\
         0x0101  b     one-way        unknown\n"
    );
    assert_eq!(asked, [0x000B, 0x000C, 0x0004], "one question shows that it does not know more");
    let (method, _) = ask(&["describe", "b"]);
    assert_eq!(method, "b  0x0101  one-way  unknown\n\nRequest\n  The server does not say.\n");
    let (reply, asked) = ask(&["call", "a", "{\"x\": 1}"]);
    assert_eq!(reply, "{\"x\": 1}\n");
    assert_eq!(asked, [0x000B, 0x000C, 0x0100, 0x0004]);
}
