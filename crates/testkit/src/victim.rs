//! A real server in a process of its own, watched from outside while a peer misbehaves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lapwing::{
    Builder, ClientOptions, IpcServer, Request, ServerLimits, Spin, Status, Transport, blocking,
};

use crate::peer::RawPeer;
use crate::process::{self, RoleProcess};
use crate::resources::Resources;
use crate::{PATIENCE, eventually};

/// What every [`Victim`] serves.
pub mod methods {
    /// Gives the request back; inline.
    pub const ECHO: u16 = 0x0401;
    /// Gives the request back from an async handler that is ready at once.
    pub const ECHO_ASYNC: u16 = 0x0402;
    /// Answers when as many milliseconds have passed as the request says (a little-endian `u64`).
    pub const LATER: u16 = 0x0403;
    /// Gives as many bytes as the request says (a little-endian `u64`); inline.
    pub const LARGE: u16 = 0x0404;
    /// Panics.
    pub const PANIC: u16 = 0x0405;
    /// What no victim serves.
    pub const UNKNOWN: u16 = 0x7777;
}

const PATH: &str = "LAPWING_TEST_PATH";

/// A server in its own process with two honest clients, which are served whatever else happens.
#[derive(Debug)]
pub struct Victim {
    // Ends first: its clients must not be left waiting.
    process: RoleProcess,
    bystanders: Vec<blocking::IpcClient>,
    before: Resources,
    path: PathBuf,
    folder: tempfile::TempDir,
}

impl Victim {
    /// Starts the server that `configure` describes, for the test called `test`. In the server's own
    /// process, which runs the same test, this serves until told to stop and gives `None`.
    ///
    /// # Panics
    ///
    /// If the server does not come up.
    pub fn start(test: &str, configure: impl FnOnce(Builder) -> Builder) -> Option<Victim> {
        Victim::start_with(test, configure, |_| panic!("no such command"))
    }

    /// As [`Victim::start`], with commands of the test's own that the server's process answers.
    ///
    /// # Panics
    ///
    /// As [`Victim::start`].
    pub fn start_with(
        test: &str,
        configure: impl FnOnce(Builder) -> Builder,
        answer: impl Fn(&str) -> String,
    ) -> Option<Victim> {
        if let Some(role) = process::role() {
            assert_eq!(role, "victim", "a role that the test knows must be played before this");
            serve(configure, answer);
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder can be made");
        let path = folder.path().join("victim.sock");
        let process = RoleProcess::start(test, "victim", &[(PATH, path.as_os_str())]);
        let bystanders = Vec::new();
        let before = Resources::of(process.pid());
        let mut victim = Victim { process, bystanders, before, path, folder };
        victim.settle();
        Some(victim)
    }

    /// Lets the server take what it takes once, connects the bystanders, and counts.
    fn settle(&mut self) {
        for _ in 0..2 {
            for transport in [Transport::SharedMemory, Transport::Socket] {
                drop(self.client(transport));
                drop(RawPeer::connect(&self.path));
                self.await_connections(0);
            }
        }
        let both = [Transport::SharedMemory, Transport::Socket];
        self.bystanders = both.map(|transport| self.client(transport)).into();
        self.await_connections(2);
        let mut last = Resources::of(self.process.pid());
        self.before = eventually("the server comes to rest", || {
            std::thread::sleep(Duration::from_millis(5));
            let now = Resources::of(self.process.pid());
            let same = std::mem::replace(&mut last, now).counts() == now.counts();
            same.then_some(now)
        });
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it held before the test began, with two connections.
    #[must_use]
    pub fn before(&self) -> Resources {
        self.before
    }

    /// What it holds now.
    #[must_use]
    pub fn resources(&self) -> Resources {
        Resources::of(self.process.pid())
    }

    /// Asks the command of a test's own.
    pub fn ask(&mut self, command: &str) -> String {
        self.process.ask(command)
    }

    /// One of the server's counters, or `connections`.
    ///
    /// # Panics
    ///
    /// If it has no such counter.
    pub fn stat(&mut self, name: &str) -> u64 {
        let said = self.process.ask("stats");
        let mut pairs = said.split(' ').filter_map(|pair| pair.split_once('='));
        let found = pairs.find(|(key, _)| *key == name).unwrap_or_else(|| panic!("no {name}"));
        found.1.parse().expect("a number")
    }

    /// Waits until a counter has this value.
    ///
    /// # Panics
    ///
    /// If it never has.
    pub fn await_stat(&mut self, name: &str, value: u64) {
        let mut last = 0;
        eventually(&format!("{name} becomes {value}"), || {
            last = self.stat(name);
            (last >= value).then_some(())
        });
        assert_eq!(last, value, "{name}");
    }

    /// Waits until it has this many connections, handshakes included.
    ///
    /// # Panics
    ///
    /// If it never has.
    pub fn await_connections(&mut self, count: u64) {
        let what = format!("the server has {count} connections");
        eventually(&what, || (self.stat("connections") == count).then_some(()));
    }

    /// A new honest client.
    ///
    /// # Panics
    ///
    /// If it is refused.
    #[must_use]
    pub fn client(&self, transport: Transport) -> blocking::IpcClient {
        let options = ClientOptions { transport, spin: Spin::Never, ..ClientOptions::default() };
        let client = blocking::IpcClient::connect_with(&self.path, &options).expect("is let in");
        assert_eq!(client.agreement().shared_memory, transport == Transport::SharedMemory);
        client
    }

    /// Checks that honest clients, known and new, are served.
    ///
    /// # Panics
    ///
    /// If one is not.
    pub fn assert_serves_others(&self) {
        let new = [Transport::SharedMemory, Transport::Socket].map(|way| self.client(way));
        for client in self.bystanders.iter().chain(&new) {
            for kind in [methods::ECHO, methods::ECHO_ASYNC] {
                let reply = client.call_raw(kind, b"still here").expect("is served");
                assert_eq!(reply.bytes(), b"still here");
            }
        }
    }

    /// Checks that honest clients are served, and that the server holds what it held before the test:
    /// descriptors, segments, mappings and threads.
    ///
    /// # Panics
    ///
    /// If it does not within [`PATIENCE`].
    pub fn assert_unharmed(&mut self) {
        self.assert_serves_others();
        self.await_connections(2);
        let before = self.before.counts();
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let now = self.resources().counts();
            if now == before {
                return;
            }
            let late = std::time::Instant::now() >= deadline;
            assert!(
                !late,
                "descriptors, segments, mappings, threads: before {before:?}, after {now:?}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills it, as `kill -9`.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Stops it in order, and gives the folder in which it listened.
    pub fn finish(mut self) -> tempfile::TempDir {
        self.bystanders.clear();
        let Victim { process, folder, .. } = self;
        process.finish();
        folder
    }
}

/// The server's own process: serves until the parent is done.
fn serve(configure: impl FnOnce(Builder) -> Builder, answer: impl Fn(&str) -> String) {
    let path = PathBuf::from(process::setting(PATH));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime can be made");
    let server = {
        let _entered = runtime.enter();
        let limits = ServerLimits { drain: Duration::from_secs(2), ..ServerLimits::default() };
        let builder = IpcServer::builder().limits(limits).bind(&path).expect("the path is free");
        configure(with_methods(builder)).serve().expect("the server comes up")
    };
    process::ready();
    while let Some(command) = process::told() {
        process::tell(&match &*command {
            "stats" => stats(&server),
            other => answer(other),
        });
    }
    runtime.block_on(server.shutdown());
}

fn with_methods(builder: Builder) -> Builder {
    builder
        .route_inline(methods::ECHO, "echo", |_, request, reply| {
            reply.extend(request);
            Ok(())
        })
        .route_raw(methods::ECHO_ASYNC, "echo.async", |request: Request| async move {
            Ok::<_, Status>(request.payload)
        })
        .route_raw(methods::LATER, "later", |request: Request| async move {
            tokio::time::sleep(Duration::from_millis(number(&request.payload)?)).await;
            Ok::<_, Status>(request.payload)
        })
        .route_inline(methods::LARGE, "large", |_, request, reply| {
            reply.extend(&vec![7; number(request)? as usize]);
            Ok(())
        })
        .route_inline(methods::PANIC, "panic", |_, _, _| panic!("as asked"))
}

fn number(request: &[u8]) -> Result<u64, Status> {
    let bytes = request.try_into().map_err(|_| Status::invalid_argument("eight bytes"))?;
    Ok(u64::from_le_bytes(bytes))
}

fn stats(server: &IpcServer) -> String {
    let stats = server.stats();
    format!(
        "connections={} accepted={} refused={} closed={} vanished={} misbehaved={} received={} \
         sent={} errors={} panics={} dropped={} cancelled={} late={}",
        server.connections(),
        stats.accepted,
        stats.refused,
        stats.closed,
        stats.vanished,
        stats.misbehaved,
        stats.received,
        stats.sent,
        stats.errors,
        stats.panics,
        stats.dropped,
        stats.cancelled,
        stats.late,
    )
}
