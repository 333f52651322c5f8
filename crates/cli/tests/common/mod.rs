//! What the tests share: the command as a process of its own, servers that do not outlive their test.

#![allow(dead_code)] // Each test program uses a part.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long anything may take on a machine that is busy with much else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A user that owns nothing.
const NOBODY: u32 = 65534;

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Asserts the exit code and that exactly one sentence of ours went to standard error.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, part: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.stderr.starts_with("lapwing: "), "{self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "{self:?}");
        assert!(self.stderr.contains(part), "no {part:?} in {self:?}");
    }

    /// Asserts success and silence on standard error; the output.
    #[track_caller]
    pub(crate) fn succeeds(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{}", self.stdout);
        self.stdout
    }
}

/// The command with these arguments, as a new user's shell would start it.
pub(crate) fn command<A: AsRef<std::ffi::OsStr>>(args: &[A]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapwing"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the command to its end.
pub(crate) fn lapwing(args: &[&str]) -> Ended {
    run(&mut command(args))
}

/// Runs a command to its end, or kills it when it takes longer than [`PATIENCE`].
pub(crate) fn run(command: &mut Command) -> Ended {
    // A copy of the binary is busy while a thread that forked at the wrong moment still has it open.
    for _ in 0..500 {
        match command.spawn() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {
                thread::sleep(Duration::from_millis(10));
            }
            started => return finish(started.unwrap()),
        }
    }
    panic!("the binary stays busy")
}

/// Collects what a process prints, and its end.
pub(crate) fn finish(mut child: Child) -> Ended {
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let code = wait(&mut child);
    Ended { code, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            pipe.read_to_end(&mut bytes).unwrap();
        }
        String::from_utf8(bytes).unwrap()
    })
}

/// Waits for a process to end; its exit code.
#[track_caller]
pub(crate) fn wait(child: &mut Child) -> Option<i32> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the process did not end");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "never came to be: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a signal to a process that this test started and has not yet waited for.
pub(crate) fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// A directory that is served, and a socket in another one.
pub(crate) struct Place {
    pub(crate) root: TempDir,
    pub(crate) sockets: TempDir,
}

impl Place {
    pub(crate) fn of(files: &[(&str, &str)]) -> Place {
        let (root, sockets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (name, content) in files {
            fs::write(root.path().join(name), content).unwrap();
        }
        Place { root, sockets }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.sockets.path().join("s.sock")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.sockets.path().join("s.sock.lock")
    }

    /// Fills the root with so much text that a search for [`SLOW_PATTERN`] takes many seconds: one
    /// file under many names.
    pub(crate) fn fill(&self, names: usize) {
        let line = format!("{}\n", "ab".repeat(500));
        let first = self.root.path().join("f0");
        fs::write(&first, line.repeat(8_000)).unwrap();
        for n in 1..names {
            fs::hard_link(&first, self.root.path().join(format!("f{n}"))).unwrap();
        }
    }

    pub(crate) fn serve(&self) -> Server {
        Server::start(&mut self.server_command())
    }

    pub(crate) fn server_command(&self) -> Command {
        let mut command = command(&["serve", "--root"]);
        command.arg(self.root.path()).arg("--socket").arg(self.socket());
        command
    }

    /// Runs the command with `--socket` of this place.
    pub(crate) fn lapwing(&self, args: &[&str]) -> Ended {
        run(&mut self.client(args))
    }

    pub(crate) fn client(&self, args: &[&str]) -> Command {
        let mut command = command(args);
        command.arg("--socket").arg(self.socket());
        command
    }
}

/// Has no literal to jump to, so that every byte is walked through; matches nothing in [`Place::fill`].
pub(crate) const SLOW_PATTERN: &str = r#"{"pattern": "(a|b)*[abc]{3}(b|a){9}c"}"#;

/// A running `lapwing serve`. Dropping it kills it.
pub(crate) struct Server {
    pub(crate) child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Server {
    /// Starts it and waits until it says that it serves.
    pub(crate) fn start(command: &mut Command) -> Server {
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut server = Server { child, stderr };
        let line = server.line();
        assert!(line.starts_with("lapwing: serving "), "{line:?}");
        server
    }

    /// The next line of its standard error.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stderr.read_line(&mut line).unwrap();
        line
    }

    /// Waits for its end: its exit code, and what else it said.
    pub(crate) fn end(&mut self) -> (Option<i32>, String) {
        let code = wait(&mut self.child);
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).unwrap();
        (code, rest)
    }

    /// Waits until a call of it works in a thread of its own.
    pub(crate) fn until_busy(&self) {
        let tasks = format!("/proc/{}/task", self.child.id());
        eventually("a thread for blocking work", || fs::read_dir(&tasks).unwrap().count() > 1);
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether the tests run as root, whom no permission stops.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The command with these arguments as a user whom permissions stop: this one, or nobody for root.
pub(crate) fn unprivileged(folder: &Path, args: &[&str]) -> Command {
    if !is_root() {
        return command(args);
    }
    // Where this program is built nobody may not go.
    let program = folder.join("lapwing");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_lapwing"), &program).unwrap();
    }
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.uid(NOBODY).gid(NOBODY).current_dir("/");
    command
}
