//! Where a server listens: modes, locks, what stands in the way, and what each error says to do.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lapwing::error::{BindError, ConnectError, EndpointError};
use lapwing::{
    Builder, ClientOptions, IpcClient, IpcServer, ServeError, ServerLimits, blocking, endpoint_path,
};
use lapwing_testkit::process::{self, RoleProcess};
use lapwing_testkit::{PATIENCE, Victim, test_name};

fn bind(path: &Path) -> Result<Builder, BindError> {
    IpcServer::builder().bind(path)
}

#[track_caller]
fn refused(path: &Path) -> BindError {
    bind(path).err().expect("the path must be refused")
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn lock_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// One sentence that names the path and, after a semicolon, says what to do.
#[track_caller]
fn assert_says_what_to_do(error: &dyn std::error::Error, path: &Path) {
    let said = error.to_string();
    assert!(said.contains(path.to_str().unwrap()), "{said}");
    assert!(said.contains("; ") && !said.contains('\n') && !said.ends_with('.'), "{said}");
}

#[test]
fn socket_and_lock_are_private_whatever_the_umask() {
    process::alone(test_name!(), || {
        for umask in [0o000, 0o022, 0o077] {
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(umask));
            let folder = folder();
            let path = folder.path().join("s.sock");
            let _server = bind(&path).unwrap();
            assert_eq!(mode(&path), 0o600, "umask {umask:03o}");
            assert_eq!(mode(&lock_of(&path)) & 0o177, 0, "umask {umask:03o}");
        }
    });
}

/// Works out endpoints with the environment that the parent set, and tells what came of it.
fn play_namer() {
    process::ready();
    rustix::process::umask(rustix::fs::Mode::empty());
    while let Some(name) = process::told() {
        if let Some(path) = name.strip_prefix("connect ") {
            let error = blocking::IpcClient::connect(path).unwrap_err();
            process::tell(&format!("connect {error}"));
            continue;
        }
        // A client's question, or a server's.
        let (name, asks) = match name.strip_suffix(" as a client") {
            Some(name) => (name, true),
            None => (&*name, false),
        };
        process::tell(&match endpoint_path(name) {
            Ok(path) if asks => match blocking::IpcClient::connect(&path) {
                Ok(_client) => "connected".to_owned(),
                Err(error) => format!("connect {error}"),
            },
            Ok(path) => match IpcServer::builder().bind(&path) {
                Ok(_server) => format!("ok {:o} {}", mode(&path), path.display()),
                Err(error) => format!("bind {error}"),
            },
            Err(EndpointError::NotPrivate { mode, .. }) => format!("not private {mode:o}"),
            Err(error) => format!("error {error}"),
        });
    }
}

fn namer(test: &str, runtime_directory: &OsStr) -> RoleProcess {
    RoleProcess::start(test, "namer", &[("XDG_RUNTIME_DIR", runtime_directory)])
}

#[test]
fn endpoint_of_a_name_lies_in_a_private_directory_that_is_made() {
    if process::role().is_some() {
        return play_namer();
    }
    let folder = folder();
    let mut namer = namer(test_name!(), folder.path().as_os_str());
    let directory = folder.path().join("lapwing");
    let expected = directory.join("engine.sock");
    let nothing =
        format!("connect nothing listens on {}: there is no such file", expected.display());
    let said = namer.ask("engine as a client");
    assert!(said.starts_with(&nothing), "{said}");
    assert!(!directory.exists(), "a client makes no directory");
    for _ in 0..2 {
        assert_eq!(namer.ask("engine"), format!("ok 600 {}", expected.display()));
        assert_eq!(mode(&directory), 0o700, "although the umask is 0");
    }
    for bad in [".hidden", "..", "a/b", "../up", "with space", "ümlaut", "nul\u{1}"] {
        let said = namer.ask(bad);
        assert!(said.starts_with("error ") && said.contains("no endpoint name"), "{bad}: {said}");
    }
    assert_eq!(names_in(&directory), Vec::<String>::new());
    namer.finish();
}

#[test]
fn endpoint_directory_that_others_can_enter_is_refused() {
    if process::role().is_some() {
        return play_namer();
    }
    let folder = folder();
    let mut namer = namer(test_name!(), folder.path().as_os_str());
    let directory = folder.path().join("lapwing");
    fs::create_dir(&directory).unwrap();
    for bad in [0o755, 0o710, 0o701, 0o777, 0o1777] {
        fs::set_permissions(&directory, fs::Permissions::from_mode(bad)).unwrap();
        assert_eq!(namer.ask("engine"), format!("not private {bad:o}"));
        assert_eq!(namer.ask("engine as a client"), format!("not private {bad:o}"));
    }
    // Also to who asked for the name while the directory was missing, and connects now.
    let theirs = directory.join("engine.sock");
    let listener = UnixListener::bind(&theirs).unwrap();
    let said = namer.ask(&format!("connect {}", theirs.display()));
    assert!(said.contains("must belong to you") && said.contains("its mode is 1777"), "{said}");
    drop(listener);
    fs::remove_file(&theirs).unwrap();
    fs::remove_dir(&directory).unwrap();
    // A link to a private directory is not one itself: who made the link could move it.
    let elsewhere = folder.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o700)).unwrap();
    symlink(&elsewhere, &directory).unwrap();
    assert!(namer.ask("engine").starts_with("not private"));
    fs::remove_file(&directory).unwrap();
    fs::write(&directory, "").unwrap();
    assert!(namer.ask("engine").starts_with("not private"));
    assert_eq!(names_in(&elsewhere), Vec::<String>::new());
    namer.finish();
}

#[test]
fn endpoint_without_a_runtime_directory_says_so() {
    if process::role().is_some() {
        return play_namer();
    }
    let folder = folder();
    let mut namer = namer(test_name!(), folder.path().join("missing").as_os_str());
    let said = namer.ask("engine");
    assert!(said.starts_with("bind ") && said.contains("missing/lapwing (below XDG"), "{said}");
    let said = namer.ask("engine as a client");
    assert!(said.starts_with("connect nothing listens on ") && said.contains("missing/"), "{said}");
    namer.finish();
}

#[test]
fn live_server_s_path_is_refused_and_the_server_stays() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let path = victim.path().to_owned();
    for _ in 0..3 {
        let error = refused(&path);
        assert!(matches!(error, BindError::InUse { .. }), "{error:?}");
        assert_says_what_to_do(&error, &path);
    }
    assert!(lock_of(&path).exists());
    victim.assert_unharmed();
    let _folder = victim.finish();
    assert!(!path.exists() && !lock_of(&path).exists(), "an orderly end leaves no file");
    drop(bind(&path).unwrap());
}

#[test]
fn killed_server_s_socket_is_stale_for_clients_and_taken_over_by_the_next() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let path = victim.path().to_owned();
    victim.kill();
    assert!(path.exists() && lock_of(&path).exists(), "kill -9 leaves both files");
    let error = blocking::IpcClient::connect(&path).unwrap_err();
    assert!(matches!(error, ConnectError::Stale { .. }), "{error:?}");
    assert!(error.to_string().contains("; "), "{error}");
    let server = bind(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
    assert!(matches!(refused(&path), BindError::InUse { .. }));
    drop(server);
    assert!(!path.exists() && !lock_of(&path).exists());
}

#[test]
fn server_that_knows_no_lock_is_not_taken_over() {
    let folder = folder();
    let path = folder.path().join("s.sock");
    let foreign = UnixListener::bind(&path).unwrap();
    assert!(matches!(refused(&path), BindError::InUse { .. }));
    drop(foreign);
    // Now its socket is stale.
    drop(bind(&path).unwrap());
    assert_eq!(names_in(folder.path()), Vec::<String>::new());
}

#[test]
fn what_is_no_socket_is_left_where_it_is() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("file"), "precious").unwrap();
    fs::create_dir(at("directory")).unwrap();
    symlink(at("file"), at("link")).unwrap();
    symlink(at("nowhere"), at("dangling")).unwrap();
    for name in ["file", "directory", "link", "dangling"] {
        let error = refused(&at(name));
        assert!(matches!(error, BindError::FileInTheWay { .. }), "{name}: {error:?}");
        assert_says_what_to_do(&error, &at(name));
        assert!(fs::symlink_metadata(at(name)).is_ok(), "{name}");
        assert!(!lock_of(&at(name)).exists(), "a refusal leaves no lock behind");
    }
    assert_eq!(fs::read_to_string(at("file")).unwrap(), "precious");
    assert!(!at("nowhere").exists());
    let error = blocking::IpcClient::connect(at("file")).unwrap_err();
    assert!(matches!(error, ConnectError::NotASocket { .. }), "{error:?}");
    assert_says_what_to_do(&error, &at("file"));
}

#[test]
fn link_in_the_lock_s_place_is_not_followed() {
    let folder = folder();
    let path = folder.path().join("s.sock");
    let target = folder.path().join("target");
    symlink(&target, lock_of(&path)).unwrap();
    assert!(bind(&path).is_err());
    assert!(!target.exists() && !path.exists());
}

#[test]
fn path_as_long_as_may_be_works_and_a_byte_more_is_refused() {
    let folder = folder();
    let room = 107 - folder.path().as_os_str().len() - 1;
    let longest = folder.path().join("x".repeat(room));
    drop(bind(&longest).unwrap());
    for more in [1, 1000] {
        let path = folder.path().join("x".repeat(room + more));
        let error = refused(&path);
        assert!(matches!(error, BindError::PathTooLong { length, .. } if length == 107 + more));
        assert_says_what_to_do(&error, &path);
        let error = blocking::IpcClient::connect(&path).unwrap_err();
        assert!(matches!(error, ConnectError::PathTooLong { length, .. } if length == 107 + more));
        assert_says_what_to_do(&error, &path);
    }
    assert_eq!(names_in(folder.path()), Vec::<String>::new());
}

#[test]
fn missing_directory_is_named() {
    let folder = folder();
    fs::write(folder.path().join("file"), "").unwrap();
    for parent in ["missing", "file"] {
        let directory = folder.path().join(parent);
        let error = refused(&directory.join("s.sock"));
        assert!(matches!(error, BindError::NoDirectory { .. }), "{error:?}");
        assert_says_what_to_do(&error, &directory);
        let error = blocking::IpcClient::connect(directory.join("s.sock")).unwrap_err();
        assert!(matches!(error, ConnectError::NotFound { .. }), "{error:?}");
        assert_says_what_to_do(&error, &directory);
    }
}

#[test]
fn place_that_may_not_be_written_is_refused() {
    // Nobody makes files here, not even root.
    let path = Path::new("/sys/kernel/lapwing-test.sock");
    let error = refused(path);
    assert!(matches!(error, BindError::NotPermitted { .. }), "{error:?}");
    assert_says_what_to_do(&error, path);
}

#[test]
fn servers_that_race_for_one_path_leave_exactly_one() {
    const RACERS: usize = 3;
    let folder = folder();
    for round in 0..400 {
        let path = folder.path().join(format!("{round}.sock"));
        if round % 4 != 0 {
            // A dead server's socket, which all of them want to take over.
            drop(UnixListener::bind(&path).unwrap());
        }
        let here = AtomicUsize::new(0);
        let racers: Vec<_> = std::thread::scope(|scope| {
            let race = || {
                // Spinning, so that they start together and not one after the other's wakeup.
                here.fetch_add(1, Ordering::SeqCst);
                while here.load(Ordering::SeqCst) < RACERS {
                    std::hint::spin_loop();
                }
                bind(&path)
            };
            let threads: Vec<_> = (0..RACERS).map(|_| scope.spawn(race)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let won = racers.iter().filter(|result| result.is_ok()).count();
        assert_eq!(won, 1, "round {round}");
        for error in racers.iter().filter_map(|result| result.as_ref().err()) {
            assert!(matches!(error, BindError::InUse { .. }), "{error:?}");
        }
        std::os::unix::net::UnixStream::connect(&path).expect("the winner listens there");
        drop(racers);
        assert_eq!(names_in(folder.path()), Vec::<String>::new(), "round {round}");
    }
}

#[test]
fn servers_that_come_and_go_never_listen_together() {
    let folder = folder();
    let path = folder.path().join("s.sock");
    let holders = AtomicUsize::new(0);
    let bound = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    match bind(&path) {
                        Ok(server) => {
                            let others = holders.fetch_add(1, Ordering::SeqCst);
                            assert_eq!(others, 0, "two servers hold one path");
                            assert!(fs::symlink_metadata(&path).is_ok(), "its socket is there");
                            bound.fetch_add(1, Ordering::Relaxed);
                            std::thread::yield_now();
                            holders.fetch_sub(1, Ordering::SeqCst);
                            drop(server);
                        }
                        Err(BindError::InUse { .. }) => std::thread::yield_now(),
                        Err(other) => panic!("{other:?}"),
                    }
                }
            });
        }
    });
    assert!(bound.into_inner() > 0);
    assert_eq!(names_in(folder.path()), Vec::<String>::new());
}

#[tokio::test]
async fn orderly_end_of_a_server_removes_its_socket_and_lock() {
    let folder = folder();
    let path = folder.path().join("s.sock");
    for how in 0..3 {
        let server = bind(&path).unwrap();
        match how {
            0 => drop(server),
            1 => assert!(server.serve().unwrap().shutdown().await),
            _ => {
                drop(server.serve().unwrap());
                // Its task is ended, not waited for.
                while path.exists() || lock_of(&path).exists() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
        assert_eq!(names_in(folder.path()), Vec::<String>::new(), "way {how}");
    }
}

#[test]
fn socket_that_is_not_this_server_s_any_more_is_not_removed() {
    let folder = folder();
    let path = folder.path().join("s.sock");
    let server = bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    drop(server);
    assert!(path.exists(), "somebody else's socket stays");
    drop(other);
}

/// A server that begins has the lock and no socket yet, one that ends has none any more; one whose socket was removed
/// lives on. As `bind` may stand in an async task, none of them is waited for.
#[test]
fn server_without_its_socket_is_told_apart_without_waiting() {
    const BINDS: u32 = 100;
    let folder = folder();
    let path = folder.path().join("s.sock");
    let lock = fs::File::create(lock_of(&path)).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let begun = Instant::now();
    for _ in 0..BINDS {
        let error = refused(&path);
        assert!(matches!(error, BindError::InUse { .. }), "{error:?}");
    }
    fs::remove_file(lock_of(&path)).unwrap();
    drop(lock);
    let server = bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    for _ in 0..BINDS {
        let error = refused(&path);
        let BindError::SocketRemoved { process, .. } = &error else { panic!("{error:?}") };
        assert!(process.is_none_or(|process| process == std::process::id()), "{error:?}");
    }
    // A tenth of a second each time would be too long.
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    drop(server);
    assert_eq!(names_in(folder.path()), Vec::<String>::new());
}

/// Its lock says still that it listens.
#[test]
fn killed_server_whose_socket_was_removed_is_followed_by_the_next() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let path = victim.path().to_owned();
    victim.kill();
    fs::remove_file(&path).unwrap();
    assert_eq!(fs::metadata(lock_of(&path)).unwrap().len(), 1);
    let server = bind(&path).unwrap();
    assert!(matches!(refused(&path), BindError::InUse { .. }));
    drop(server);
    assert!(!path.exists() && !lock_of(&path).exists());
}

#[tokio::test]
async fn clients_wait_for_a_full_queue_of_connections_within_the_handshake_s_time() {
    let folder = folder();
    let path = folder.path().join("s.sock");
    let listener = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    // The kernel takes one connection more than the length of its queue.
    let first = std::os::unix::net::UnixStream::connect(&path).unwrap();

    let options =
        ClientOptions { handshake: Duration::from_millis(300), ..ClientOptions::default() };
    let error = blocking::IpcClient::connect_with(&path, &options).unwrap_err();
    assert!(matches!(error, ConnectError::HandshakeTimeout { .. }), "{error:?}");
    let error = IpcClient::connect_with(&path, options).await.unwrap_err();
    assert!(matches!(error, ConnectError::HandshakeTimeout { .. }), "{error:?}");

    // A queue that has room again lets the waiting one in: it gets as far as the server's silence.
    drop(first);
    let patient = ClientOptions { handshake: Duration::from_secs(20), ..ClientOptions::default() };
    let waiting = {
        let path = path.clone();
        std::thread::spawn(move || blocking::IpcClient::connect_with(path, &patient))
    };
    for _ in 0..2 {
        // The first one, then the one that waited; what is closed at once ends as vanished.
        drop(listener.accept().unwrap());
    }
    let error = waiting.join().unwrap().unwrap_err();
    assert!(!matches!(error, ConnectError::HandshakeTimeout { .. }), "{error:?}");
}

#[tokio::test]
async fn limits_that_cannot_be_are_refused_and_leave_nothing_behind() {
    let folder = folder();
    let path = folder.path().join("s.sock");
    let serve = |limits| bind(&path).unwrap().limits(limits).serve().unwrap_err();
    let with = ServerLimits::default;
    for bytes in [0, (1 << 30) + 1] {
        let error = serve(ServerLimits { message_bytes: bytes, ..with() });
        assert!(matches!(error, ServeError::MessageBytes(found) if found == bytes), "{error:?}");
    }
    for calls in [0, 65_537] {
        let error = serve(ServerLimits { calls_in_flight: calls, ..with() });
        assert!(matches!(error, ServeError::CallsInFlight(found) if found == calls), "{error:?}");
    }
    let error = serve(ServerLimits { ring_bytes: 1000, ..with() });
    assert!(matches!(error, ServeError::RingBytes(1000)), "{error:?}");
    assert_eq!(names_in(folder.path()), Vec::<String>::new());
}
