//! Server and client in processes of their own, one of which is killed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lapwing::{
    CallError, ClientOptions, ConnectionState, Delivered, EndReason, IpcClient, Spin, Transport,
    blocking,
};
use lapwing_testkit::frame::RawFrame;
use lapwing_testkit::methods::{ECHO, ECHO_ASYNC, LARGE, LATER};
use lapwing_testkit::process::{self, RoleProcess};
use lapwing_testkit::{RawPeer, Victim, eventually, test_name};
use rustix::process::{Pid, Signal, kill_process};

const BOTH: [Transport; 2] = [Transport::SharedMemory, Transport::Socket];

/// How long a call takes that outlasts every test, in milliseconds.
const FOREVER: [u8; 8] = 3_600_000_u64.to_le_bytes();

/// The most that the end of a killed server may take to be seen: milliseconds, on an idle machine.
const SEEN_WITHIN: Duration = Duration::from_secs(5);

fn ways() -> impl Iterator<Item = ClientOptions> {
    BOTH.into_iter().flat_map(|transport| {
        [Spin::Never, Spin::Adaptive, Spin::Always].map(|spin| ClientOptions {
            transport,
            spin,
            ..ClientOptions::default()
        })
    })
}

#[track_caller]
fn assert_maybe(error: &CallError) {
    assert!(
        matches!(
            error,
            CallError::Disconnected { delivered: Delivered::Maybe, reason: EndReason::Vanished }
        ),
        "{error:?}"
    );
}

#[track_caller]
fn assert_never(error: &CallError) {
    assert!(
        matches!(
            error,
            CallError::Disconnected { delivered: Delivered::Never, reason: EndReason::Vanished }
        ),
        "{error:?}"
    );
}

fn vanished() -> ConnectionState {
    ConnectionState::Closed(EndReason::Vanished)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn killed_server_ends_every_waiting_call_of_blocking_clients() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let received = victim.stat("received");
    let clients: Vec<_> =
        ways().map(|way| blocking::IpcClient::connect_with(victim.path(), &way).unwrap()).collect();
    std::thread::scope(|scope| {
        let wait = |client: &blocking::IpcClient| {
            let pending = client.submit(LATER, &FOREVER).unwrap();
            let called = client.call_raw(LATER, &FOREVER);
            [called.unwrap_err(), pending.collect().unwrap_err()]
        };
        let waiting: Vec<_> = clients
            .iter()
            .flat_map(|client| (0..3).map(move |_| scope.spawn(move || wait(client))))
            .collect();
        // Three threads of each client wait for two calls each, and the server has them all.
        victim.await_stat("received", received + 6 * clients.len() as u64);
        victim.kill();
        let killed = Instant::now();
        for thread in waiting {
            thread.join().unwrap().iter().for_each(assert_maybe);
        }
        assert!(killed.elapsed() < SEEN_WITHIN, "{:?}", killed.elapsed());
    });
    for client in &clients {
        assert_eq!(client.state(), vanished());
        assert_never(&client.call_raw(ECHO, b"").unwrap_err());
        assert_never(&client.send_oneway(ECHO, b"").unwrap_err());
    }
}

#[test]
fn killed_server_ends_every_waiting_call_of_async_clients() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let received = victim.stat("received");
    runtime().block_on(async {
        let mut clients = Vec::new();
        for way in ways() {
            clients.push(IpcClient::connect_with(victim.path(), way).await.unwrap());
        }
        let calls = clients.iter().flat_map(|client| {
            (0..6).map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.call_raw(LATER, &FOREVER).await })
            })
        });
        let calls: Vec<_> = calls.collect();
        victim.await_stat("received", received + calls.len() as u64);
        victim.kill();
        let killed = Instant::now();
        for call in calls {
            assert_maybe(&call.await.unwrap().unwrap_err());
        }
        assert!(killed.elapsed() < SEEN_WITHIN, "{:?}", killed.elapsed());
        for client in &clients {
            assert_eq!(client.state(), vanished());
            assert_never(&client.call_raw(ECHO, b"").await.unwrap_err());
            assert_never(&client.send_oneway(ECHO, b"").await.unwrap_err());
        }
    });
}

fn all_threads_sleep(pid: u32) -> bool {
    let sleeps = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap();
        // The state stands behind the name, which is in parentheses.
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S'))
    };
    std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(|task| sleeps(task.unwrap()))
}

/// Nobody has called since the server was killed, so nobody has seen it; the first to call finds out.
#[test]
fn what_is_sent_to_a_server_killed_before_went_nowhere() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let clients: Vec<_> = ways()
        .flat_map(|way| [way.clone(), way])
        .map(|way| blocking::IpcClient::connect_with(victim.path(), &way).unwrap())
        .collect();
    let runtime = runtime();
    let connect = |way| runtime.block_on(IpcClient::connect_with(victim.path(), way)).unwrap();
    let async_clients: Vec<_> = ways().flat_map(|way| [way.clone(), way]).map(connect).collect();
    for client in &clients {
        client.call_raw(ECHO, b"1").unwrap();
    }
    // One that is killed while it still looks for calls may have seen what comes after it. A moment's sleep may be
    // another than that in which it waits for calls; and a client looks at its socket once a millisecond at most.
    eventually("the server sleeps", || {
        let sleeps = || {
            std::thread::sleep(Duration::from_millis(2));
            all_threads_sleep(victim.pid())
        };
        (0..5).all(|_| sleeps()).then_some(())
    });
    victim.kill();
    for pair in clients.chunks(2) {
        assert_never(&pair[0].call_raw(ECHO, b"2").unwrap_err());
        assert_never(&pair[1].send_oneway(ECHO, b"2").unwrap_err());
        for client in pair {
            assert_eq!(client.state(), vanished());
        }
    }
    runtime.block_on(async {
        for pair in async_clients.chunks(2) {
            // The task that watches the socket has had no turn since.
            assert_never(&pair[0].call_raw(ECHO, b"2").await.unwrap_err());
            assert_never(&pair[1].send_oneway(ECHO, b"2").await.unwrap_err());
            for client in pair {
                assert_eq!(client.state(), vanished());
            }
        }
    });
}

/// What the server had sent before it was killed has been executed, and is not lost.
#[test]
fn replies_sent_before_the_server_was_killed_arrive() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let clients: Vec<_> =
        ways().map(|way| blocking::IpcClient::connect_with(victim.path(), &way).unwrap()).collect();
    let (sent, received) = (victim.stat("sent"), victim.stat("received"));
    // Nobody collects before the server is gone.
    let waiting: Vec<_> = clients
        .iter()
        .flat_map(|client| {
            let soon = client.submit(LATER, &1_u64.to_le_bytes()).unwrap();
            let never = client.submit(LATER, &FOREVER).unwrap();
            [(soon, true), (never, false)]
        })
        .collect();
    let runtime = runtime();
    let client = |way| runtime.block_on(IpcClient::connect_with(victim.path(), way)).unwrap();
    let async_clients: Vec<_> = ways().map(client).collect();
    let started = async_clients.iter().map(|client| {
        let [soon, never] = [client.clone(), client.clone()];
        let soon = runtime.spawn(async move { soon.call_raw(LATER, &1_u64.to_le_bytes()).await });
        let never = runtime.spawn(async move { never.call_raw(LATER, &FOREVER).await });
        (soon, never)
    });
    let started: Vec<_> = started.collect();
    let calls = clients.len() + async_clients.len();
    victim.await_stat("sent", sent + calls as u64);
    victim.await_stat("received", received + 2 * calls as u64);
    victim.kill();
    for (call, answered) in waiting {
        let ended = call.collect();
        if answered {
            assert_eq!(ended.unwrap().bytes(), 1_u64.to_le_bytes());
        } else {
            assert_maybe(&ended.unwrap_err());
        }
    }
    for (soon, never) in started {
        let (soon, never) = runtime.block_on(async { (soon.await.unwrap(), never.await.unwrap()) });
        assert_eq!(soon.unwrap().bytes(), 1_u64.to_le_bytes());
        assert_maybe(&never.unwrap_err());
    }
}

#[test]
fn killed_server_is_seen_by_the_state_of_idle_clients() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let runtime = runtime();
    for (n, way) in ways().enumerate() {
        // Some have never called, some were busy.
        let calls = if n % 2 == 0 { 0 } else { 100 };
        let idle = blocking::IpcClient::connect_with(victim.path(), &way).unwrap();
        let asleep = runtime.block_on(IpcClient::connect_with(victim.path(), way)).unwrap();
        for _ in 0..calls {
            idle.call_raw(ECHO, b"busy").unwrap();
            runtime.block_on(asleep.call_raw(ECHO, b"busy")).unwrap();
        }
        assert_eq!(idle.state(), ConnectionState::Connected);
        assert_eq!(asleep.state(), ConnectionState::Connected);
        if n < ways().count() - 1 {
            continue;
        }
        victim.kill();
        eventually("the state says so", || {
            (idle.state() == vanished() && asleep.state() == vanished()).then_some(())
        });
    }
}

#[test]
fn stopped_server_that_is_killed_ends_those_who_wait_for_room() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let pid = Pid::from_raw(victim.pid().cast_signed()).unwrap();
    for transport in BOTH {
        let options = ClientOptions { transport, ..ClientOptions::default() };
        let client = blocking::IpcClient::connect_with(victim.path(), &options).unwrap();
        client.call_raw(ECHO, b"good").unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        std::thread::scope(|scope| {
            let send = || {
                // Enough to fill any ring or socket; nobody reads.
                (0..100_000).find_map(|_| client.send_oneway(ECHO, &[0; 1000]).err())
            };
            let (one, other) = (scope.spawn(send), scope.spawn(send));
            let mut sent = 0;
            eventually("both wait for room", || {
                std::thread::sleep(Duration::from_millis(50));
                let before = std::mem::replace(&mut sent, client.stats().sent);
                (before == sent).then_some(())
            });
            if transport == Transport::Socket {
                victim.kill();
                for thread in [one, other] {
                    assert_never(&thread.join().unwrap().expect("it ends with an error"));
                }
                assert_eq!(client.state(), vanished());
            } else {
                // Goes on where it was: both senders do, too.
                kill_process(pid, Signal::CONT).unwrap();
                for thread in [one, other] {
                    assert!(thread.join().unwrap().is_none());
                }
            }
        });
    }
}

#[test]
fn server_in_a_killed_one_s_place_serves_new_clients() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let old = victim.client(Transport::SharedMemory);
    victim.kill();
    let runtime = runtime();
    let _entered = runtime.enter();
    let server = lapwing::IpcServer::builder()
        .bind(victim.path())
        .expect("a killed server's place can be taken")
        .route_inline(ECHO, "echo", |_, request, reply| {
            reply.extend(request);
            Ok(())
        })
        .serve()
        .unwrap();
    for transport in BOTH {
        let client = victim.client(transport);
        assert_eq!(client.call_raw(ECHO, b"new").unwrap().bytes(), b"new");
        client.disconnect();
    }
    assert!(matches!(old.call_raw(ECHO, b"old"), Err(CallError::Disconnected { .. })));
    assert!(runtime.block_on(server.shutdown()));
}

#[test]
fn server_that_stops_in_order_says_goodbye_to_the_other_process() {
    let Some(victim) = Victim::start(test_name!(), |server| server) else { return };
    let clients = BOTH.map(|transport| victim.client(transport));
    let _folder = victim.finish();
    for client in clients {
        eventually("the client hears it", || {
            let closed = ConnectionState::Closed(EndReason::Goodbye);
            (client.state() == closed).then_some(())
        });
        let error = client.call_raw(ECHO, b"").unwrap_err();
        assert!(matches!(
            error,
            CallError::Disconnected { delivered: Delivered::Never, reason: EndReason::Goodbye }
        ));
    }
}

const SERVER: &str = "LAPWING_TEST_SERVER";

/// Calls the server in every way at once until killed.
fn play_caller() {
    process::ready();
    let path = PathBuf::from(process::setting(SERVER));
    let runtime = runtime();
    std::thread::scope(|scope| {
        for transport in BOTH {
            let options = ClientOptions { transport, ..ClientOptions::default() };
            let path = &path;
            let asynchronous = options.clone();
            scope.spawn(move || {
                let client = blocking::IpcClient::connect_with(path, &options).unwrap();
                let _forgotten = client.submit(LATER, &FOREVER).unwrap();
                for n in 0_u64.. {
                    client.send_oneway(ECHO, &[1; 3000]).unwrap();
                    let payload = vec![n as u8; n as usize * 731 % 60_000];
                    assert_eq!(client.call_raw(ECHO, &payload).unwrap().bytes(), payload);
                }
            });
            let runtime = runtime.handle().clone();
            scope.spawn(move || {
                runtime.block_on(async {
                    let client = IpcClient::connect_with(path, asynchronous).await.unwrap();
                    for n in 0_u64.. {
                        let length = (n % 50_000).to_le_bytes();
                        let (large, small) = tokio::join!(
                            client.call_raw(LARGE, &length),
                            client.call_raw(ECHO_ASYNC, b"small"),
                        );
                        assert_eq!(large.unwrap().len() as u64, n % 50_000);
                        assert_eq!(small.unwrap().bytes(), b"small");
                    }
                });
            });
        }
    });
}

fn caller(test: &str, server: &Path) -> RoleProcess {
    RoleProcess::start(test, "caller", &[(SERVER, server.as_os_str())])
}

#[test]
fn clients_killed_at_random_moments_leave_nothing_and_others_are_served() {
    if process::role().as_deref() == Some("caller") {
        return play_caller();
    }
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let mut random = 0x2545_F491_4F6C_DD1D_u64;
    for round in 0..30 {
        let mut client = caller(test_name!(), victim.path());
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(Duration::from_micros(random % 30_000));
        client.kill();
        if round % 6 == 0 {
            victim.assert_serves_others();
        }
    }
    victim.assert_unharmed();
    assert!(victim.stat("received") > 100, "the clients did call");
    assert_eq!(victim.stat("misbehaved"), 0, "a death is no misbehaviour");
}

/// Has replies wait for room, and never reads.
fn play_deaf() {
    let path = PathBuf::from(process::setting(SERVER));
    let _peers = BOTH.map(|transport| {
        let mut peer = RawPeer::greet(&path, transport);
        peer.send_frame(&RawFrame::request(LATER, 1000, &20_u64.to_le_bytes()));
        for id in 1..=100 {
            peer.send_frame(&RawFrame::request(LARGE, id, &60_000_u64.to_le_bytes()));
        }
        peer
    });
    process::ready();
    let _ = process::told();
}

#[test]
fn client_killed_while_replies_wait_for_it_leaves_nothing() {
    if process::role().as_deref() == Some("deaf") {
        return play_deaf();
    }
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    for _ in 0..5 {
        let settings = [(SERVER, victim.path().as_os_str())];
        let mut deaf = RoleProcess::start(test_name!(), "deaf", &settings);
        std::thread::sleep(Duration::from_millis(10));
        victim.assert_serves_others();
        deaf.kill();
    }
    victim.assert_unharmed();
}

#[test]
fn server_that_never_sleeps_sees_clients_killed_too() {
    if process::role().as_deref() == Some("deaf") {
        return play_deaf();
    }
    let Some(mut victim) = Victim::start(test_name!(), |server| server.spin(Spin::Always)) else {
        return;
    };
    for _ in 0..3 {
        let settings = [(SERVER, victim.path().as_os_str())];
        let mut deaf = RoleProcess::start(test_name!(), "deaf", &settings);
        let idle = BOTH.map(|transport| victim.client(transport));
        victim.assert_serves_others();
        deaf.kill();
        drop(idle);
    }
    victim.assert_unharmed();
}
