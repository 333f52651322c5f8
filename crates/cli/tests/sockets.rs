//! What a socket path can be: missing, too long, not permitted, stale, live, a file in the way.

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use common::{Place, Server, is_root, lapwing, run, unprivileged};

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn missing_socket_is_said_by_every_client() {
    let place = Place::of(&[]);
    for args in [&["ping"][..], &["describe"], &["call", "fs.list.page"], &["call", "0x0302"]] {
        place.lapwing(args).fails(3, "start the server or check the path");
        place.lapwing(args).fails(3, "(`lapwing serve` starts one that serves files)");
    }
    lapwing(&["ping", "--socket", "/no/such/directory/s"]).fails(3, "/no/such/directory/s");
    let serve = &["serve", "--socket", "/no/such/directory/s"];
    lapwing(serve).fails(8, "there is no directory /no/such/directory; make it");
}

#[test]
fn too_long_path_is_said_with_both_lengths() {
    let long = format!("/tmp/{}", "x".repeat(200));
    lapwing(&["ping", "--socket", &long]).fails(3, "has 205 bytes and may have");
    lapwing(&["serve", "--socket", &long]).fails(8, "use a shorter one");
}

#[test]
fn file_in_the_way_is_left_alone() {
    let place = Place::of(&[]);
    fs::write(place.socket(), "mine").unwrap();
    place.lapwing(&["ping"]).fails(3, "is not a socket");
    run(&mut place.server_command()).fails(8, "is not a stream socket; move it away");
    assert_eq!(fs::read_to_string(place.socket()).unwrap(), "mine");
    assert!(!place.lock().exists());

    fs::remove_file(place.socket()).unwrap();
    symlink("elsewhere", place.socket()).unwrap();
    run(&mut place.server_command()).fails(8, "is not a stream socket; move it away");
}

#[test]
fn stale_socket_is_said_and_taken_over() {
    let place = Place::of(&[]);
    place.serve().kill();
    assert!(place.socket().exists());
    place.lapwing(&["ping"]).fails(3, "its server is gone; start it again (`lapwing serve` starts");
    let _server = place.serve();
    place.lapwing(&["ping", "-c", "1"]).succeeds();
}

#[test]
fn live_socket_is_not_taken() {
    let place = Place::of(&[]);
    let _server = place.serve();
    let second = run(&mut place.server_command());
    second.fails(8, "another server is listening on");
    place.lapwing(&["ping", "-c", "1"]).succeeds();
}

#[test]
fn live_server_whose_socket_was_removed_is_said_with_its_process() {
    let place = Place::of(&[]);
    let server = place.serve();
    fs::remove_file(place.socket()).unwrap();
    place.lapwing(&["ping"]).fails(3, "there is no such file");
    let second = run(&mut place.server_command());
    second.fails(8, "lives, but its socket");
    let process = format!("(process {})", server.child.id());
    // Of some file systems the system tells another number than programs see.
    assert!(second.stderr.contains(&process) || !second.stderr.contains("(process"), "{second:?}");
}

#[test]
fn datagram_socket_is_no_server_s() {
    let place = Place::of(&[]);
    let _other = UnixDatagram::bind(place.socket()).unwrap();
    place.lapwing(&["ping"]).fails(3, "is not a stream socket; give the path of a server's socket");
    run(&mut place.server_command()).fails(8, "is not a stream socket; move it away");
}

#[test]
fn socket_is_its_owners_alone() {
    let place = Place::of(&[]);
    let _server = place.serve();
    assert_eq!(fs::metadata(place.socket()).unwrap().permissions().mode() & 0o777, 0o600);
    // Someone else, or the owner without a right to it.
    mode(place.sockets.path(), 0o755);
    if !is_root() {
        mode(&place.socket(), 0o000);
    }
    let socket = place.socket();
    let args = ["ping", "--socket", socket.to_str().unwrap()];
    run(&mut unprivileged(place.sockets.path(), &args)).fails(4, "no permission to connect to");
}

#[test]
fn directory_that_may_not_be_written_is_said() {
    let place = Place::of(&[]);
    mode(place.root.path(), 0o755);
    let folder = tempfile::tempdir().unwrap();
    mode(folder.path(), 0o755);
    let inner = place.sockets.path().join("inner");
    fs::create_dir(&inner).unwrap();
    mode(place.sockets.path(), 0o755);
    mode(&inner, 0o555);
    let socket = inner.join("s");
    let root = place.root.path().to_str().unwrap();
    let args = ["serve", "--root", root, "--socket", socket.to_str().unwrap()];
    run(&mut unprivileged(folder.path(), &args)).fails(8, "no permission to listen on");
}

#[test]
fn server_of_another_user_refuses_with_its_sentence() {
    if !is_root() {
        eprintln!("SKIPPED: only root can start a server as another user and reach its socket");
        return;
    }
    let place = Place::of(&[]);
    for folder in [place.root.path(), place.sockets.path()] {
        mode(folder, 0o755);
        chown(folder, Some(65534), Some(65534)).unwrap();
    }
    let (root, socket) = (place.root.path().to_str().unwrap(), place.socket());
    let args = ["serve", "--root", root, "--socket", socket.to_str().unwrap()];
    let _server = Server::start(&mut unprivileged(place.sockets.path(), &args));
    place.lapwing(&["ping"]).fails(4, "user 0 is not the user this server works for");
}

#[test]
fn runtime_directory_that_others_may_read_is_refused() {
    let place = Place::of(&[]);
    let shared = place.sockets.path().join("lapwing");
    fs::create_dir(&shared).unwrap();
    mode(&shared, 0o755);
    let mut ping = common::command(&["ping"]);
    run(ping.env("XDG_RUNTIME_DIR", place.sockets.path())).fails(4, "must belong to you");
}

#[test]
fn bad_runtime_directory_is_said_by_its_variable_to_clients_and_servers() {
    let place = Place::of(&[]);
    let folder = place.sockets.path();
    fs::write(folder.join("file"), "").unwrap();
    let run_in = |runtime_directory: &Path, args: &[&str]| {
        let mut command = common::command(args);
        run(command.env("XDG_RUNTIME_DIR", runtime_directory).current_dir(place.root.path()))
    };
    let clients = [&["ping"][..], &["describe"], &["call", "fs.list.page"]];
    for bad in ["missing", "file"] {
        let bad = folder.join(bad);
        for args in clients {
            let socket = bad.join("lapwing/lapwing.sock");
            let sentence = format!(
                "lapwing: nothing listens on {}: there is no such file; start the server or check the path (`lapwing",
                socket.display()
            );
            run_in(&bad, args).fails(3, &sentence);
        }
        let server = run_in(&bad, &["serve"]);
        server.fails(8, &format!("{}/lapwing (below XDG_RUNTIME_DIR)", bad.display()));
        server.fails(8, "set XDG_RUNTIME_DIR to a directory of yours");
    }

    // A directory that only misses its own for sockets is left as it is by clients.
    let open = folder.join("lapwing");
    for args in clients {
        run_in(folder, args).fails(3, "there is no such file; start the server or check the path");
        assert!(!open.exists(), "{args:?}");
    }
    fs::create_dir(&open).unwrap();
    mode(&open, 0o777);
    for args in clients {
        run_in(folder, args).fails(4, "(below XDG_RUNTIME_DIR) must belong to you");
    }
    run_in(folder, &["serve"]).fails(8, "but its mode is 0777; `chmod 700 ");
    fs::remove_dir(&open).unwrap();
    fs::write(&open, "mine").unwrap();
    run_in(folder, &["ping"]).fails(4, "but it is a file or a link");
    run_in(folder, &["serve"]).fails(8, "but it is a file or a link");
    assert_eq!(fs::read_to_string(&open).unwrap(), "mine");
    run_in(folder, &["serve", "--name", "../up"]).fails(2, "is no endpoint name");
}

#[test]
fn runtime_directory_that_may_not_be_written_is_said() {
    let place = Place::of(&[]);
    let folder = place.sockets.path();
    let inner = folder.join("inner");
    fs::create_dir(&inner).unwrap();
    mode(&inner, 0o555);
    for shown in [folder, place.root.path()] {
        mode(shown, 0o755);
    }
    let root = place.root.path().to_str().unwrap();
    for (args, code, part) in [
        (&["ping"][..], 3, "nothing listens on"),
        (&["serve", "--root", root], 8, "(below XDG_RUNTIME_DIR)"),
    ] {
        let mut command = unprivileged(folder, args);
        run(command.env("XDG_RUNTIME_DIR", &inner)).fails(code, part);
    }
}

#[test]
fn client_of_what_is_no_socket_is_told_what_it_is() {
    let place = Place::of(&[]);
    fs::create_dir(place.socket()).unwrap();
    let folder = place.lapwing(&["describe"]);
    folder.fails(3, "is not a socket but a directory; give the path of a server's socket");
    fs::remove_dir(place.socket()).unwrap();
    fs::write(place.socket(), "mine").unwrap();
    place.lapwing(&["call", "fs.list.page"]).fails(3, "is not a socket but a regular file; give");
}
