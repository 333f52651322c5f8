//! A test's other roles, each in a process of its own.
//!
//! The test binary runs itself again for the one test that asks, with the role in the environment. The
//! test function asks [`role`] first and plays it. The two talk in lines: the parent over the child's
//! standard input, the child in marked lines on its output, among what the test harness prints there.
//! When the parent dies its child reads the end of input and goes, too.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use crate::{PATIENCE, eventually};

const ROLE: &str = "LAPWING_TEST_ROLE";

/// Begins each line that is for the parent.
const MARK: &str = "@lapwing ";

/// The role this process was started for, if it was.
#[must_use]
pub fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// Runs `body` in a process of its own, where no other test opens and closes descriptors meanwhile:
/// the test called `test` does nothing else.
///
/// # Panics
///
/// If `body` does, there.
pub fn alone(test: &str, body: impl FnOnce()) {
    if role().is_some() {
        ready();
        body();
        tell("done");
        let _ = told();
    } else {
        let process = RoleProcess::start(test, "alone", &[]);
        assert_eq!(process.hear(), "done");
        process.finish();
    }
}

/// What the parent set for this role.
///
/// # Panics
///
/// If it did not.
#[must_use]
pub fn setting(name: &str) -> OsString {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set"))
}

/// Says a line to the parent.
pub fn tell(line: &str) {
    // At once and whole; the mark begins a line although the harness has left one open.
    let text = format!("\n{MARK}{line}\n");
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Waits for a line of the parent's; `None` when it has gone or is done.
#[must_use]
pub fn told() -> Option<String> {
    let mut line = String::new();
    match io::stdin().lock().read_line(&mut line) {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(line.trim_end().to_owned()),
    }
}

/// A role in a process of its own. Dropping it kills the process.
#[derive(Debug)]
pub struct RoleProcess {
    child: Child,
    lines: Receiver<String>,
    /// The role's own process: a wrapper such as strace has another.
    pid: u32,
}

impl RoleProcess {
    /// Runs `test` again in the role `role`, with these settings.
    ///
    /// # Panics
    ///
    /// If the process does not come up.
    #[must_use]
    pub fn start(test: &str, role: &str, settings: &[(&str, &OsStr)]) -> RoleProcess {
        RoleProcess::start_under(&[], test, role, settings)
    }

    /// As [`RoleProcess::start`], with a command in front, such as strace and its options.
    ///
    /// # Panics
    ///
    /// As [`RoleProcess::start`].
    #[must_use]
    pub fn start_under(
        wrapper: &[&OsStr],
        test: &str,
        role: &str,
        settings: &[(&str, &OsStr)],
    ) -> RoleProcess {
        let own = std::env::current_exe().expect("a test knows its program");
        let mut words = wrapper.iter().map(|word| (*word).to_owned()).chain([own.into_os_string()]);
        let mut command = Command::new(words.next().expect("at least the program"));
        command
            .args(words)
            .args(["--exact", test, "--nocapture", "--test-threads", "1"])
            .env(ROLE, role)
            // A backtrace maps the program's debug sections, which is no leak of the library's.
            .env("RUST_BACKTRACE", "0")
            .envs(settings.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("the test program runs");
        let lines = marked_lines(child.stdout.take().expect("piped"));
        let mut process = RoleProcess { pid: child.id(), child, lines };
        let pid = process.hear_from(test);
        process.pid = pid.strip_prefix("pid ").and_then(|pid| pid.parse().ok()).expect("a pid");
        process
    }

    /// The role's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The next line from the role.
    ///
    /// # Panics
    ///
    /// If none comes.
    pub fn hear(&self) -> String {
        self.hear_from("the role")
    }

    fn hear_from(&self, whom: &str) -> String {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => panic!("{whom} says nothing in its process"),
            Err(RecvTimeoutError::Disconnected) => panic!("the process of {whom} has ended"),
        }
    }

    /// Says a line to the role.
    ///
    /// # Panics
    ///
    /// If it is gone.
    pub fn say(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().expect("piped");
        writeln!(input, "{line}").expect("the role listens");
    }

    /// Says a line and waits for the answer.
    ///
    /// # Panics
    ///
    /// If it is gone or does not answer.
    pub fn ask(&mut self, line: &str) -> String {
        self.say(line);
        self.hear()
    }

    /// Kills it at once, as `kill -9`, and waits until it is gone.
    ///
    /// # Panics
    ///
    /// If it cannot be killed.
    pub fn kill(&mut self) {
        self.child.kill().expect("an own child can be killed");
        self.child.wait().expect("and waited for");
    }

    /// Tells it that this is all, and waits for its orderly end.
    ///
    /// # Panics
    ///
    /// If it fails or does not end.
    pub fn finish(mut self) {
        drop(self.child.stdin.take());
        let status = eventually("the role ends", || self.child.try_wait().expect("an own child"));
        assert!(status.success(), "the role failed: {status}");
    }
}

impl Drop for RoleProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says to the parent that this role is up.
pub fn ready() {
    tell(&format!("pid {}", std::process::id()));
}

/// Reads on so that the child never waits for its output to be taken.
fn marked_lines(output: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if let Some(marked) = line.strip_prefix(MARK) {
                let _ = sender.send(marked.to_owned());
            }
        }
    });
    lines
}
