//! From the lines that the searcher finds to the matches of a page.

use std::io;
use std::path::Path;

use grep_matcher::Matcher;
use grep_regex::RegexMatcher;
use grep_searcher::{Searcher, Sink, SinkMatch};

use crate::cursor::{self, Fingerprint, Method};
use crate::excerpt::excerpt;
use crate::limits::TEXT_BYTES_MAX;
use crate::page::{Page, json_bytes};
use crate::types::Match;

/// Puts the matches of one file on the page until it is full.
pub(crate) struct PageSink<'a> {
    pub(crate) matcher: &'a RegexMatcher,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) path: &'a Path,
    pub(crate) name: &'a str,
    pub(crate) path_lossy: bool,
    pub(crate) behind_line: u64,
    pub(crate) page: &'a mut Page,
    pub(crate) give: &'a mut dyn FnMut(Match) -> bool,
    pub(crate) last_cursor: &'a mut String,
    pub(crate) is_full: bool,
    pub(crate) is_binary: bool,
    /// Nobody wants the matches any more.
    pub(crate) is_unwanted: bool,
}

impl PageSink<'_> {
    fn describe(&self, line: &[u8], line_number: u64, text_bytes_max: usize) -> Match {
        // The searcher's answer is for the line; a fresh search finds where in it.
        let (start, end) = match self.matcher.find(line) {
            Ok(Some(found)) => (found.start(), found.end()),
            Ok(None) | Err(_) => (0, 0),
        };
        let excerpt = excerpt(line, start, text_bytes_max);
        Match {
            path: self.name.to_owned(),
            line_number,
            column: start as u64 + 1,
            match_len_bytes: (end - start) as u64,
            text: excerpt.text,
            text_column: excerpt.begin as u64 + 1,
            text_cut: excerpt.cut,
            path_lossy: self.path_lossy,
        }
    }
}

impl Sink for PageSink<'_> {
    type Error = io::Error;

    fn matched(&mut self, _: &Searcher, found: &SinkMatch<'_>) -> Result<bool, io::Error> {
        let line_number = found.line_number().unwrap_or(0);
        if line_number <= self.behind_line {
            return Ok(true);
        }
        let line = without_terminator(found.bytes());
        let cursor = cursor::encode(Method::Search, self.fingerprint, self.path, line_number);
        let mut text_bytes_max = TEXT_BYTES_MAX;
        loop {
            let item = self.describe(line, line_number, text_bytes_max);
            if self.page.admit(json_bytes(&item), cursor.len()) {
                *self.last_cursor = cursor;
                self.is_unwanted = !(self.give)(item);
                return Ok(!self.is_unwanted);
            }
            // Alone on a page, a match gives up its text rather than not be found.
            if !self.page.is_empty() || text_bytes_max == 0 {
                self.is_full = true;
                return Ok(false);
            }
            text_bytes_max /= 2;
        }
    }

    fn binary_data(&mut self, _: &Searcher, _: u64) -> Result<bool, io::Error> {
        self.is_binary = true;
        Ok(true)
    }
}

fn without_terminator(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}
