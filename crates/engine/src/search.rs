//! `fs.search.page`: the lines of a tree that match a regular expression, a page at a time.

use std::cell::Cell;
use std::io::{self, Read};
use std::path::Path;

use grep_matcher::LineTerminator;
use grep_regex::RegexMatcher;
use grep_searcher::{BinaryDetection, Searcher, SearcherBuilder};

use crate::activity::Activity;
use crate::cursor::{self, Fingerprint, Method, Position};
use crate::error::WorkspaceError;
use crate::interrupt::StopMatcher;
use crate::limits::{LINE_BYTES_MAX, MATCHES_MAX};
use crate::page::{Page, json_bytes};
use crate::path::{WorkspacePath, reply_path};
use crate::pattern;
use crate::sink::PageSink;
use crate::types::{EntryKind, Match, SearchReply, SearchRequest};
use crate::walk::{Walk, WalkOptions};
use crate::workspace::Workspace;

impl Workspace {
    /// Searches a file, or the files of a tree in the order of a listing.
    ///
    /// The files are those that [`list`](Self::list) lists as regular files. Binary files are
    /// skipped as ripgrep skips them: a file is left at its first NUL byte. Files that begin with a
    /// UTF-16 byte order mark are searched as text. A line may end with `\n` or `\r\n`. The reply
    /// takes at most `reply_bytes_max` bytes as compact JSON.
    ///
    /// `stop` is asked before each name, each read of a file (64 KiB) and within it about every
    /// millisecond, but not within a line; once it returns true the call ends with [`WorkspaceError::Cancelled`].
    ///
    /// # Errors
    ///
    /// [`WorkspaceError`] of a pattern that cannot be used, a path that is not inside the root, a
    /// cursor of another request, a bound that not even one match fits, or a cancelled call.
    pub fn search(
        &self,
        request: &SearchRequest,
        reply_bytes_max: usize,
        stop: &dyn Fn() -> bool,
    ) -> Result<SearchReply, WorkspaceError> {
        let matches_max = request.max_matches.get().min(MATCHES_MAX);
        let page = Page::begin(envelope_bytes(), reply_bytes_max, matches_max);
        let mut matches = Vec::new();
        let mut keep = |found| {
            matches.push(found);
            true
        };
        let search = self.begin_search(request, page, stop, &mut keep)?.run(request)?;
        let mut reply = search.finish(reply_bytes_max)?;
        reply.matches = matches;
        Ok(reply)
    }

    /// Searches as [`search`](Self::search) and gives every match to `give` as it is found, without a bound on
    /// their number: `max_matches` and `cursor` do not count. When `give` returns
    /// false the search ends as cancelled.
    ///
    /// # Errors
    ///
    /// As [`search`](Self::search).
    pub fn search_each(
        &self,
        request: &SearchRequest,
        give: &mut dyn FnMut(Match) -> bool,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), WorkspaceError> {
        let request = SearchRequest { cursor: None, ..request.clone() };
        self.begin_search(&request, Page::unbounded(), stop, give)?.run(&request).map(drop)
    }

    fn begin_search<'a>(
        &'a self,
        request: &SearchRequest,
        page: Page,
        stop: &'a dyn Fn() -> bool,
        give: &'a mut dyn FnMut(Match) -> bool,
    ) -> Result<Search<'a>, WorkspaceError> {
        let start = self.path(&request.path)?;
        let fingerprint = fingerprint(request, &start);
        Ok(Search {
            workspace: self,
            matcher: pattern::compile(request)?,
            searcher: searcher(),
            stop,
            give,
            start,
            fingerprint,
            page,
            reply: empty_reply(),
            last_cursor: String::new(),
        })
    }
}

/// One call of `fs.search.page` at work.
struct Search<'a> {
    workspace: &'a Workspace,
    matcher: RegexMatcher,
    searcher: Searcher,
    stop: &'a dyn Fn() -> bool,
    /// Takes a match; false when nobody wants more.
    give: &'a mut dyn FnMut(Match) -> bool,
    start: WorkspacePath,
    fingerprint: Fingerprint,
    page: Page,
    reply: SearchReply,
    /// Behind the last match of the page.
    last_cursor: String,
}

/// Who named a file that is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    /// The request: that it cannot be opened is an error.
    ByRequest,
    /// The walk: if it cannot be opened, it is skipped.
    ByWalk,
}

impl Search<'_> {
    fn run(mut self, request: &SearchRequest) -> Result<Self, WorkspaceError> {
        let from = match &request.cursor {
            None => None,
            Some(cursor) => Some(cursor::decode(Method::Search, self.fingerprint, cursor)?),
        };
        let start = self.start.clone();
        match self.workspace.kind(start.as_path(), start.text())? {
            EntryKind::Directory => self.tree(&start, from.as_ref(), request.hidden)?,
            _ => {
                let behind_line = from.as_ref().map_or(0, |position| position.line_number);
                self.file(start.as_path(), behind_line, Named::ByRequest)?;
            }
        }
        Ok(self)
    }

    fn tree(
        &mut self,
        start: &WorkspacePath,
        from: Option<&Position>,
        hidden: bool,
    ) -> Result<(), WorkspaceError> {
        let options = WalkOptions { recursive: true, hidden, inclusive: true };
        let mut walk = Walk::begin(self.workspace, start, from, options, self.stop)?;
        // The file of the position is the first file that the walk yields, if it is still there.
        let mut resumed = from.map(|position| (position.names.join(&b'/'), position.line_number));
        while let Some(found) = walk.next_entry()? {
            if found.kind != EntryKind::File {
                continue;
            }
            let behind_line = match resumed.take() {
                Some((path, line)) if path == encoded(&found.path) => line,
                _ => 0,
            };
            self.file(&found.path, behind_line, Named::ByWalk)?;
            if self.reply.truncated {
                break;
            }
        }
        self.reply.skipped_directories = walk.skipped_directories();
        Ok(())
    }

    /// Searches one file behind a line.
    fn file(&mut self, path: &Path, behind_line: u64, named: Named) -> Result<(), WorkspaceError> {
        let (name, path_lossy) = reply_path(path);
        let file = match self.workspace.open_file(path, &name) {
            Ok((file, _)) => file,
            Err(error) if named == Named::ByWalk && error.is_local() => {
                self.reply.files_skipped += 1;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let stopped = Cell::new(false);
        let activity = self.workspace.activity();
        let reader = StopReader { inner: file, stop: self.stop, stopped: &stopped, activity };
        let matcher = StopMatcher::new(&self.matcher, self.stop, &stopped);
        let mut sink = PageSink {
            matcher: &self.matcher,
            fingerprint: self.fingerprint,
            path,
            name: &name,
            path_lossy,
            behind_line,
            page: &mut self.page,
            give: &mut *self.give,
            last_cursor: &mut self.last_cursor,
            is_full: false,
            is_binary: false,
            is_unwanted: false,
        };
        let searched = self.searcher.search_reader(&matcher, reader, &mut sink);
        let (is_full, is_binary) = (sink.is_full, sink.is_binary);
        if stopped.get() || sink.is_unwanted {
            return Err(WorkspaceError::Cancelled);
        }
        if is_full {
            self.reply.truncated = true;
        } else if searched.is_err() || is_binary {
            self.reply.files_skipped += 1;
        } else {
            self.reply.files_searched += 1;
        }
        Ok(())
    }

    fn finish(mut self, reply_bytes_max: usize) -> Result<SearchReply, WorkspaceError> {
        if self.reply.truncated {
            if self.page.is_empty() {
                return Err(WorkspaceError::ReplyTooSmall { reply_bytes_max });
            }
            self.reply.next = Some(self.last_cursor);
        } else if self.page.is_empty() && json_bytes(&self.reply) > reply_bytes_max {
            return Err(WorkspaceError::ReplyTooSmall { reply_bytes_max });
        }
        Ok(self.reply)
    }
}

/// Fails the next read once the caller wants to stop.
struct StopReader<'a, R> {
    inner: R,
    stop: &'a dyn Fn() -> bool,
    stopped: &'a Cell<bool>,
    activity: &'a Activity,
}

impl<R: Read> Read for StopReader<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if (self.stop)() {
            self.stopped.set(true);
            return Err(io::Error::other("the search was cancelled"));
        }
        let read = self.inner.read(bytes)?;
        self.activity.searched(read);
        Ok(read)
    }
}

fn searcher() -> Searcher {
    SearcherBuilder::new()
        .binary_detection(BinaryDetection::quit(b'\0'))
        .line_terminator(LineTerminator::crlf())
        .line_number(true)
        .heap_limit(Some(LINE_BYTES_MAX))
        .build()
}

fn fingerprint(request: &SearchRequest, start: &WorkspacePath) -> Fingerprint {
    let flags = [request.case_insensitive, request.fixed_strings, request.hidden].map(u8::from);
    Fingerprint::of(&[start.text().as_bytes(), request.pattern.as_bytes(), &flags])
}

fn encoded(path: &Path) -> Vec<u8> {
    let names: Vec<&[u8]> = path.iter().map(std::ffi::OsStr::as_encoded_bytes).collect();
    names.join(&b'/')
}

fn empty_reply() -> SearchReply {
    SearchReply {
        matches: Vec::new(),
        next: None,
        truncated: false,
        files_searched: 0,
        files_skipped: 0,
        skipped_directories: 0,
    }
}

/// What a reply takes without matches and with an empty cursor, at most.
fn envelope_bytes() -> usize {
    json_bytes(&SearchReply {
        next: Some(String::new()),
        files_searched: u64::MAX,
        files_skipped: u64::MAX,
        skipped_directories: u64::MAX,
        ..empty_reply()
    })
}
