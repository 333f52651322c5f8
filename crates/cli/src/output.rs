//! Standard output: errors of its own type, colours on a terminal alone, nothing that a terminal obeys.

use std::fmt::{self, Write as _};
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::{panic, thread};

use anstream::AutoStream;
use anyhow::Context;
use clap::builder::styling::{AnsiColor, Style};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Writing to standard output failed. A broken pipe is one of its kinds, and no failure.
#[derive(Debug, thiserror::Error)]
#[error("could not write the output: {0}")]
pub(crate) struct StdoutError(pub(crate) io::Error);

/// What the headings of a table look like.
pub(crate) const HEADING: Style = Style::new().bold();
/// What is beside the point looks like.
pub(crate) const DIM: Style = Style::new().dimmed();
/// What went well.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// What names something.
pub(crate) const NAME: Style = AnsiColor::Cyan.on_default();

/// Standard output, locked and buffered. Styles are dropped unless it is a terminal that shows them.
pub(crate) struct Out(BufWriter<AutoStream<StdoutLock<'static>>>);

impl Out {
    pub(crate) fn lock() -> Out {
        Out(BufWriter::new(AutoStream::auto(io::stdout().lock())))
    }

    /// Writes a line and shows it at once.
    pub(crate) fn line(&mut self, line: impl fmt::Display) -> Result<(), StdoutError> {
        writeln!(self.0, "{line}").and_then(|()| self.0.flush()).map_err(StdoutError)
    }
}

/// Writes bytes to standard output as they are.
pub(crate) fn raw(parts: &[&[u8]]) -> Result<(), StdoutError> {
    let mut out = io::stdout().lock();
    parts.iter().try_for_each(|part| out.write_all(part)).map_err(StdoutError)?;
    out.flush().map_err(StdoutError)
}

/// Writes a line to standard error in one piece: several processes may share it. Nobody may be reading it.
pub(crate) fn say(line: &str) {
    let _ = io::stderr().write_all(format!("lapwing: {line}\n").as_bytes());
}

/// Whether standard output is a terminal.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Does work that may wait long between two writes, and leaves it where it is when the reader of standard output goes
/// away: a write would tell that, but none may come.
pub(crate) fn while_read(
    work: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<()> {
    let (ended, working) = io::pipe().context("could not make a pipe")?;
    let worker = thread::spawn(move || {
        // Closed when the work is over, however it ends.
        let _working = working;
        work()
    });
    let stdout = io::stdout();
    loop {
        // That nobody reads is told without being asked for.
        let mut watched =
            [PollFd::new(&ended, PollFlags::IN), PollFd::new(&stdout, PollFlags::empty())];
        match poll(&mut watched, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error).context("could not wait for the output's reader"),
        }
        if !watched[0].revents().is_empty() {
            return worker.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked));
        }
        if !watched[1].revents().is_empty() {
            return Err(StdoutError(io::ErrorKind::BrokenPipe.into()).into());
        }
    }
}

/// A style around a text.
pub(crate) fn styled(style: Style, text: impl fmt::Display) -> String {
    format!("{style}{text}{style:#}")
}

/// The text with its control characters escaped, so that it stays on one line and a terminal obeys
/// none of it.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            let _ = write!(plain, "{}", c.escape_default());
        } else {
            plain.push(c);
        }
    }
    plain
}

/// A time in the unit that suits it, three digits of it: `231 ns`, `4.56 us`, `1.20 ms`.
pub(crate) fn duration(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "us"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    let digits = match value {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

/// Digits in groups of three: `1 234 567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}

/// A count and its noun: `1 file`, `1 204 files`.
pub(crate) fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(number), if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits_and_a_unit() {
        for (ns, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_000, "1.00 us"),
            (12_345, "12.3 us"),
            (123_456, "123 us"),
            (9_996, "10.0 us"),
            (1_200_000, "1.20 ms"),
            (3_000_000_000, "3.00 s"),
        ] {
            assert_eq!(duration(ns), text);
        }
    }

    #[test]
    fn numbers_are_grouped_and_counted() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1 000");
        assert_eq!(grouped(1_234_567), "1 234 567");
        assert_eq!(counted(1, "file", "files"), "1 file");
        assert_eq!(counted(2, "file", "files"), "2 files");
    }

    #[test]
    fn plain_text_keeps_letters_and_escapes_what_a_terminal_obeys() {
        assert_eq!(plain("größe 猫"), "größe 猫");
        assert_eq!(plain("a\tb\u{1b}]0;x\u{7}\u{9b}"), r"a\tb\u{1b}]0;x\u{7}\u{9b}");
    }
}
