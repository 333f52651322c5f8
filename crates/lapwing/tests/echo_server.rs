//! The example ends in order.

use std::path::Path;

use lapwing::blocking::IpcClient;
use lapwing_testkit::process::{self, RoleProcess};
use lapwing_testkit::{eventually, test_name};
use rustix::process::{Pid, Signal, kill_process};

#[path = "../examples/echo_server.rs"]
#[expect(dead_code, reason = "its `main` is this test's own")]
mod echo_server;

#[test]
fn echo_server_answers_and_removes_its_socket_at_either_signal() {
    const PATH: &str = "ECHO_SERVER_PATH";
    if process::role().is_some() {
        process::ready();
        echo_server::serve(Path::new(&process::setting(PATH))).unwrap();
        process::tell("ended");
        let _ = process::told();
        return;
    }
    if std::env::var("LAPWING_SANITIZER").is_ok_and(|sanitizer| sanitizer == "tsan") {
        // ThreadSanitizer keeps a signal back until the thread that it went to makes a call that it knows,
        // and the harness's own thread sleeps in one that it does not.
        eprintln!("SKIPPED: under ThreadSanitizer signals do not come");
        return;
    }
    for signal in [Signal::INT, Signal::TERM] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("echo.sock");
        let server = RoleProcess::start(test_name!(), "server", &[(PATH, path.as_os_str())]);
        let client = eventually("it listens", || IpcClient::connect(&path).ok());
        assert_eq!(client.call_raw(0x0400, b"hello").unwrap().bytes(), b"hello");
        kill_process(Pid::from_raw(server.pid() as i32).unwrap(), signal).unwrap();
        assert_eq!(server.hear(), "ended");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        server.finish();
    }
}
