//! A matcher that looks whether it is still wanted, every millisecond or so.
//!
//! The searcher gives its matcher a whole buffer at a time, 64 KiB or a long line, and a slow pattern
//! may take long over one. [`StopMatcher`] goes through a buffer in pieces that end where lines end.
//! As a match lies within one line, that changes no answer.

use std::cell::Cell;
use std::time::{Duration, Instant};

use grep_matcher::{LineMatchKind, LineTerminator, Match, Matcher, NoCaptures};
use grep_regex::RegexMatcher;

/// The shortest and the longest piece, in bytes. A line that is longer is a piece of its own.
const PIECE_BYTES: std::ops::RangeInclusive<usize> = 256..=64 * 1024;

/// A piece that takes longer is followed by a shorter one, and one that takes a tenth of it by a
/// longer one.
const PIECE_TIME: Duration = Duration::from_millis(1);

/// The matcher of a search that can be stopped.
#[derive(Debug)]
pub(crate) struct StopMatcher<'a, S: ?Sized> {
    inner: &'a RegexMatcher,
    stop: &'a S,
    stopped: &'a Cell<bool>,
    piece_bytes: Cell<usize>,
}

/// The search is not wanted any more.
#[derive(Debug, thiserror::Error)]
#[error("the search was cancelled")]
pub(crate) struct Stopped;

impl<'a, S: Fn() -> bool + ?Sized> StopMatcher<'a, S> {
    /// Sets `stopped` when `stop` says that the search is not wanted any more.
    pub(crate) fn new(inner: &'a RegexMatcher, stop: &'a S, stopped: &'a Cell<bool>) -> Self {
        Self { inner, stop, stopped, piece_bytes: Cell::new(4096) }
    }

    fn check(&self) -> Result<(), Stopped> {
        if (self.stop)() {
            self.stopped.set(true);
            return Err(Stopped);
        }
        Ok(())
    }

    fn adapt(&self, took: Duration) {
        let piece = self.piece_bytes.get();
        if took > PIECE_TIME {
            self.piece_bytes.set((piece / 2).max(*PIECE_BYTES.start()));
        } else if took < PIECE_TIME / 10 {
            self.piece_bytes.set((piece * 2).min(*PIECE_BYTES.end()));
        }
    }
}

impl<S: Fn() -> bool + ?Sized> Matcher for StopMatcher<'_, S> {
    type Captures = NoCaptures;
    type Error = Stopped;

    fn find_at(&self, haystack: &[u8], at: usize) -> Result<Option<Match>, Stopped> {
        self.check()?;
        never_fails(self.inner.find_at(haystack, at))
    }

    fn new_captures(&self) -> Result<NoCaptures, Stopped> {
        Ok(NoCaptures::new())
    }

    fn line_terminator(&self) -> Option<LineTerminator> {
        self.inner.line_terminator()
    }

    fn non_matching_bytes(&self) -> Option<&grep_matcher::ByteSet> {
        self.inner.non_matching_bytes()
    }

    fn shortest_match_at(&self, haystack: &[u8], at: usize) -> Result<Option<usize>, Stopped> {
        self.check()?;
        never_fails(self.inner.shortest_match_at(haystack, at))
    }

    fn find_candidate_line(&self, haystack: &[u8]) -> Result<Option<LineMatchKind>, Stopped> {
        let mut begin = 0;
        while begin < haystack.len() {
            self.check()?;
            let begun = Instant::now();
            let end = line_end(haystack, begin + self.piece_bytes.get());
            // Without the last terminator: behind it an empty match would belong to the next line.
            let piece = without_terminator(&haystack[begin..end]);
            if let Some(found) = never_fails(self.inner.find_candidate_line(piece))? {
                return Ok(Some(match found {
                    LineMatchKind::Confirmed(at) => LineMatchKind::Confirmed(begin + at),
                    LineMatchKind::Candidate(at) => LineMatchKind::Candidate(begin + at),
                }));
            }
            self.adapt(begun.elapsed());
            begin = end;
        }
        Ok(None)
    }
}

fn never_fails<T>(answer: Result<T, grep_matcher::NoError>) -> Result<T, Stopped> {
    answer.map_err(|_| Stopped)
}

/// Behind the line that holds the byte before `least`, or the end.
fn line_end(haystack: &[u8], least: usize) -> usize {
    let Some(rest) = haystack.get(least - 1..) else {
        return haystack.len();
    };
    rest.iter().position(|byte| *byte == b'\n').map_or(haystack.len(), |index| least + index)
}

fn without_terminator(lines: &[u8]) -> &[u8] {
    let lines = lines.strip_suffix(b"\n").unwrap_or(lines);
    lines.strip_suffix(b"\r").unwrap_or(lines)
}

#[cfg(test)]
mod tests {
    use grep_regex::RegexMatcherBuilder;

    use super::*;

    fn matcher(pattern: &str) -> RegexMatcher {
        let mut builder = RegexMatcherBuilder::new();
        builder.multi_line(true).crlf(true).build(pattern).unwrap()
    }

    /// The lines that a search one line at a time finds.
    fn lines_of(matcher: &RegexMatcher, text: &[u8]) -> Vec<usize> {
        let lines = text.split_inclusive(|byte| *byte == b'\n').enumerate();
        let found = lines.filter(|(_, line)| matcher.is_match(without_terminator(line)).unwrap());
        found.map(|(number, _)| number).collect()
    }

    #[test]
    fn pieces_find_the_lines_that_a_search_line_by_line_finds() {
        let text = "one\r\n\r\ntwo three\n\n\nfour\nthree".repeat(60);
        for pattern in ["^$", "three", "^two", "e$", "", r"\bfour\b", "o.*e", "zzz"] {
            let inner = matcher(pattern);
            let stopped = Cell::new(false);
            for piece_bytes in [1, 2, 3, 7, 100] {
                let stop = StopMatcher::new(&inner, &|| false, &stopped);
                let (mut at, mut found) = (0, Vec::new());
                while at < text.len() {
                    stop.piece_bytes.set(piece_bytes);
                    let Some(LineMatchKind::Confirmed(index) | LineMatchKind::Candidate(index)) =
                        stop.find_candidate_line(&text.as_bytes()[at..]).unwrap()
                    else {
                        break;
                    };
                    let number = text[..at + index].matches('\n').count();
                    // A candidate is a line that may match.
                    let line = text.split_inclusive('\n').nth(number).unwrap();
                    if inner.is_match(without_terminator(line.as_bytes())).unwrap() {
                        found.push(number);
                    }
                    at = line_end(text.as_bytes(), at + index + 1);
                }
                assert_eq!(found, lines_of(&inner, text.as_bytes()), "{pattern:?} {piece_bytes}");
            }
        }
    }

    #[test]
    fn stop_ends_a_search_within_a_buffer() {
        let inner = matcher("zzz");
        let (stopped, looks) = (Cell::new(false), Cell::new(0));
        let stop = || {
            looks.set(looks.get() + 1);
            looks.get() > 3
        };
        let text = "a line of text\n".repeat(10_000);
        assert!(
            StopMatcher::new(&inner, &stop, &stopped).find_candidate_line(text.as_bytes()).is_err()
        );
        assert!(stopped.get());
        assert_eq!(looks.get(), 4);
    }
}
