//! The tree in sorted order, from any position, through the root's handle alone.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use cap_std::fs::{Dir, DirEntry};

use crate::cursor::Position;
use crate::error::WorkspaceError;
use crate::limits::DEPTH_MAX;
use crate::path::{WorkspacePath, reply_path};
use crate::rules::{Rules, SpecialNames, Verdict};
use crate::types::EntryKind;
use crate::workspace::{Follow, Identity, Workspace, identity, kind_of};

/// What a walk yields.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WalkOptions {
    /// Whether to go below the directories of the start.
    pub(crate) recursive: bool,
    /// Whether to yield names that begin with a dot.
    pub(crate) hidden: bool,
    /// Whether the position to start from is itself yielded again.
    pub(crate) inclusive: bool,
}

/// A walk over the names below a directory.
///
/// Names are sorted by their bytes within each directory and a directory comes before its contents,
/// so paths are in the order of their lists of names, and a position is just a path: on the way to
/// it, smaller names are dropped before anything of them is opened. One directory is open at a
/// time, and the names of the directories on the way down are held in memory.
pub(crate) struct Walk<'a> {
    workspace: &'a Workspace,
    options: WalkOptions,
    stop: &'a dyn Fn() -> bool,
    rules: Rules<'a>,
    frames: Vec<Frame>,
    /// The directory yielded last, to be entered before the next name is looked at.
    pending: Option<Pending>,
    entered: Option<Identity>,
    skipped_directories: u64,
}

/// A name that a walk found.
#[derive(Debug)]
pub(crate) struct WalkEntry {
    /// Relative to the root.
    pub(crate) path: PathBuf,
    pub(crate) kind: EntryKind,
}

/// A directory whose names are being yielded.
struct Frame {
    path: PathBuf,
    /// Smallest first. A heap and not a sorted list: its work is done in small parts, with looks at
    /// `stop` between them, however many names there are.
    names: BinaryHeap<Name>,
    /// The rest of the position to start from, if this directory is on the way to it.
    resume: Vec<Vec<u8>>,
}

struct Name {
    name: OsString,
    kind: EntryKind,
}

impl Ord for Name {
    /// The smaller name is the greater one here: a heap gives its greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.name.as_encoded_bytes().cmp(self.name.as_encoded_bytes())
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Name {}

struct Pending {
    path: PathBuf,
    resume: Vec<Vec<u8>>,
    /// Whether an earlier page yielded it, and counted it if it could not be entered.
    seen: bool,
}

impl<'a> Walk<'a> {
    /// Starts at a directory, behind (or at) a position below it.
    pub(crate) fn begin(
        workspace: &'a Workspace,
        start: &WorkspacePath,
        from: Option<&Position>,
        options: WalkOptions,
        stop: &'a dyn Fn() -> bool,
    ) -> Result<Self, WorkspaceError> {
        let resume = match from {
            None => Vec::new(),
            Some(position) => below(start, position)?,
        };
        let dir = workspace.open_directory(start.as_path(), start.text(), Follow::InsideRoot)?;
        let rules = Rules::of(workspace, &start.ancestors());
        let frames = Vec::new();
        let (pending, entered, skipped_directories) = (None, None, 0);
        let mut walk =
            Self { workspace, options, stop, rules, frames, pending, entered, skipped_directories };
        let path = start.names().collect();
        walk.enter(&dir, path, resume, start.text())?;
        Ok(walk)
    }

    /// The next name, or nothing at the end.
    ///
    /// # Errors
    ///
    /// `Cancelled` once `stop` says so, and failures of the machine. Directories that may not be
    /// read are counted and passed over.
    pub(crate) fn next_entry(&mut self) -> Result<Option<WalkEntry>, WorkspaceError> {
        loop {
            self.check_stop()?;
            if let Some(pending) = self.pending.take() {
                self.descend(pending)?;
            }
            let Some(frame) = self.frames.last_mut() else {
                return Ok(None);
            };
            let Some(name) = frame.names.pop() else {
                self.frames.pop();
                self.rules.leave();
                continue;
            };
            self.workspace.activity().name_visited();
            let path = frame.path.join(&name.name);
            let is_on_way =
                frame.resume.first().is_some_and(|next| *next == name.name.as_encoded_bytes());
            let mut resume = std::mem::take(&mut frame.resume);
            if is_on_way {
                resume.remove(0);
            } else {
                resume.clear();
            }
            if self.is_passed_over(&path, &name) {
                continue;
            }
            let seen = is_on_way && !(resume.is_empty() && self.options.inclusive);
            if name.kind == EntryKind::Directory && self.options.recursive {
                self.pending = Some(Pending { path: path.clone(), resume, seen });
            }
            if !seen {
                return Ok(Some(WalkEntry { path, kind: name.kind }));
            }
        }
    }

    /// The directory that was entered since the last time this was asked. Asked after each name, it is the
    /// directory that was yielded before that name, or the start; nothing if it could not be entered.
    pub(crate) fn take_entered(&mut self) -> Option<Identity> {
        self.entered.take()
    }

    /// How many directories could not be entered so far.
    pub(crate) fn skipped_directories(&self) -> u64 {
        self.skipped_directories
    }

    fn check_stop(&self) -> Result<(), WorkspaceError> {
        if (self.stop)() { Err(WorkspaceError::Cancelled) } else { Ok(()) }
    }

    fn is_passed_over(&self, path: &Path, name: &Name) -> bool {
        match self.rules.verdict(path, name.kind == EntryKind::Directory) {
            Verdict::Ignored => true,
            Verdict::Kept => false,
            Verdict::Unmentioned => {
                !self.options.hidden && name.name.as_encoded_bytes().starts_with(b".")
            }
        }
    }

    fn descend(&mut self, directory: Pending) -> Result<(), WorkspaceError> {
        let Pending { path, resume, seen } = directory;
        let (name, _) = reply_path(&path);
        let entered = if self.frames.len() >= DEPTH_MAX {
            Ok(false)
        } else {
            self.workspace
                .open_directory(&path, &name, Follow::Never)
                .and_then(|dir| self.enter(&dir, path, resume, &name))
                .map(|()| true)
        };
        match entered {
            Ok(true) => Ok(()),
            Err(error) if !error.is_local() => Err(error),
            Ok(false) | Err(_) => {
                self.skipped_directories += u64::from(!seen);
                Ok(())
            }
        }
    }

    /// Reads the names of a directory from the position on, and makes its rules count.
    fn enter(
        &mut self,
        dir: &Dir,
        path: PathBuf,
        resume: Vec<Vec<u8>>,
        name: &str,
    ) -> Result<(), WorkspaceError> {
        let failed = |source| WorkspaceError::from_io(name, source);
        let mut names = BinaryHeap::new();
        let mut special = SpecialNames::default();
        for entry in dir.entries().map_err(failed)? {
            self.check_stop()?;
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let bytes = name.as_encoded_bytes();
            special.note(bytes);
            let is_behind = resume.first().is_some_and(|first| bytes < first.as_slice());
            if !is_behind && bytes != b".git" {
                let kind = entry_kind(&entry);
                names.push(Name { name, kind });
            }
        }
        self.entered = dir.dir_metadata().ok().map(|metadata| identity(&metadata));
        self.rules.enter(&path, special);
        self.frames.push(Frame { path, names, resume });
        Ok(())
    }
}

/// What a name is, by the directory itself where the file system says it there.
fn entry_kind(entry: &DirEntry) -> EntryKind {
    match entry.file_type().map(kind_of) {
        Ok(EntryKind::Other) | Err(_) => {
            entry.metadata().map_or(EntryKind::Other, |metadata| kind_of(metadata.file_type()))
        }
        Ok(kind) => kind,
    }
}

/// The names of a position below the start; a position elsewhere is of another request.
fn below(start: &WorkspacePath, position: &Position) -> Result<Vec<Vec<u8>>, WorkspaceError> {
    let mut rest = position.names.as_slice();
    for name in start.names() {
        match rest.split_first() {
            Some((first, others)) if first == name.as_bytes() => rest = others,
            _ => return Err(WorkspaceError::BadCursor),
        }
    }
    if rest.is_empty() { Err(WorkspaceError::BadCursor) } else { Ok(rest.to_vec()) }
}
