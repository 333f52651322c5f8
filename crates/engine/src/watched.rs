//! The directories that a watch is on, and what the system's events about them mean.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use cap_fs_ext::MetadataExt;
use cap_std::fs::Metadata;
use notify::event::{EventKind, ModifyKind, RenameMode};
use notify::{Config, Event, RecommendedWatcher, RecursiveMode, Watcher};

use crate::activity::Counted;
use crate::error::WorkspaceError;
use crate::limits::WATCHED_DIRECTORIES_MAX;
use crate::path::{WorkspacePath, reply_path};
use crate::rules::{Rules, Verdict};
use crate::types::{Change, ChangeKind, EntryKind, WatchRequest};
use crate::walk::{Walk, WalkOptions};
use crate::watch::Heard;
use crate::workspace::{Follow, Workspace};

/// A watch on the directories that a listing of the same request enters.
///
/// Each directory is opened through the root's handle and watched through that open handle, so no watch is
/// ever on a directory outside, whatever is swapped for what. `notify` watches none by itself below it.
pub(crate) struct Watched {
    workspace: Workspace,
    start: WorkspacePath,
    /// Device and number of the start: what is there later may be another one.
    start_identity: (u64, u64),
    recursive: bool,
    hidden: bool,
    heard: Heard,
    watcher: RecommendedWatcher,
    /// From the paths that the watcher was given, which its events repeat, to paths in the workspace.
    directories: HashMap<PathBuf, PathBuf>,
    /// The other way round, in order, so that what is below a directory stands together.
    handles: BTreeMap<PathBuf, PathBuf>,
    /// Makes the paths that the watcher is given differ: descriptors return under the same number.
    next: u64,
    half_rename: Option<HalfRename>,
    _counted: Counted,
}

/// A name that went, and may come back as another.
struct HalfRename {
    tracker: Option<usize>,
    path: PathBuf,
}

impl Watched {
    pub(crate) fn begin(
        workspace: &Workspace,
        request: &WatchRequest,
        heard: Heard,
        counted: Counted,
        stop: &dyn Fn() -> bool,
    ) -> Result<Self, WorkspaceError> {
        let start = WorkspacePath::parse(&request.path)?;
        let found = workspace.root().metadata(start.as_path());
        let found = found.map_err(|e| WorkspaceError::from_io(start.text(), e))?;
        let mut watched = Self {
            workspace: workspace.clone(),
            start_identity: identity(&found),
            recursive: request.recursive,
            hidden: request.hidden,
            watcher: watcher(&heard, start.text())?,
            start,
            heard,
            directories: HashMap::new(),
            handles: BTreeMap::new(),
            next: 0,
            half_rename: None,
            _counted: counted,
        };
        watched.add_all(stop)?;
        Ok(watched)
    }

    /// Whether a batch, even an empty one, is due soon.
    pub(crate) fn has_half_rename(&self) -> bool {
        self.half_rename.is_some()
    }

    pub(crate) fn is_of_root(&self) -> bool {
        self.start.names().next().is_none()
    }

    /// Fails when the root was removed. It may have been renamed: its handle is what counts.
    pub(crate) fn check_root(&self) -> Result<(), WorkspaceError> {
        let root = self.workspace.root().dir_metadata();
        match root.map_err(|e| WorkspaceError::from_io(".", e))?.nlink() {
            0 => Err(self.removed()),
            _ => Ok(()),
        }
    }

    /// What a batch of events means. An empty batch ends the wait for the second half of a rename.
    ///
    /// # Errors
    ///
    /// [`WatchedRemoved`](WorkspaceError::WatchedRemoved), a failure of the machine, or `Cancelled`.
    pub(crate) fn take(
        &mut self,
        events: &[Event],
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<Change>, WorkspaceError> {
        self.check_start()?;
        if self.heard.take_lost() {
            return self.rescan(stop);
        }
        let workspace = self.workspace.clone();
        let mut batch = Batch {
            workspace: &workspace,
            hidden: self.hidden,
            rules: HashMap::new(),
            told: Vec::new(),
            rules_changed: false,
            stop,
        };
        if events.is_empty() {
            self.end_half_rename(&mut batch);
        }
        for event in events {
            self.event(event, &mut batch)?;
        }
        if batch.rules_changed {
            let mut told = batch.told;
            told.extend(self.rescan(stop)?);
            return Ok(told);
        }
        Ok(batch.told)
    }

    fn event(&mut self, event: &Event, batch: &mut Batch<'_>) -> Result<(), WorkspaceError> {
        let Some(path) = event.paths.first().and_then(|path| self.locate(path)) else {
            // It is about a watched directory itself, which its parent tells too, or too late.
            return Ok(());
        };
        let name = path.file_name().map(std::ffi::OsStr::as_encoded_bytes);
        batch.rules_changed |= matches!(name, Some(b".gitignore" | b".ignore"));
        if let EventKind::Modify(ModifyKind::Name(mode)) = event.kind {
            let half = self
                .half_rename
                .take_if(|half| mode == RenameMode::To && half.tracker == event.tracker());
            match (mode, half) {
                // It repeats the two before it.
                (RenameMode::Both, _) => return Ok(()),
                (RenameMode::From, _) => {
                    self.end_half_rename(batch);
                    self.half_rename = Some(HalfRename { tracker: event.tracker(), path });
                    return Ok(());
                }
                (_, Some(half)) => return self.renamed(&half.path, &path, batch),
                (_, None) => {}
            }
        }
        self.end_half_rename(batch);
        match event.kind {
            EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(_)) => {
                self.appeared(&path, Told::Wanted, batch)
            }
            EventKind::Remove(_) => {
                self.vanished(&path, batch);
                Ok(())
            }
            EventKind::Modify(_) => {
                if batch.shows(&path, batch.is_directory(&path)) {
                    batch.modified(&path);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The workspace's path for one of the watcher's.
    fn locate(&self, path: &Path) -> Option<PathBuf> {
        Some(self.directories.get(path.parent()?)?.join(path.file_name()?))
    }

    fn appeared(
        &mut self,
        path: &Path,
        told: Told,
        batch: &mut Batch<'_>,
    ) -> Result<(), WorkspaceError> {
        let is_directory = batch.is_directory(path);
        if !batch.shows(path, is_directory) {
            return Ok(());
        }
        if told == Told::Wanted {
            batch.tell(ChangeKind::Created, path);
        }
        if !is_directory || !self.recursive {
            return Ok(());
        }
        match self.enter(path, told, batch) {
            // It went again, or may not be read.
            Err(error) if error.is_local() => Ok(()),
            entered => entered,
        }
    }

    /// Watches a directory and what is below it, and tells of what was there before the watch was.
    fn enter(
        &mut self,
        path: &Path,
        told: Told,
        batch: &mut Batch<'_>,
    ) -> Result<(), WorkspaceError> {
        let Some(start) = path.to_str().and_then(|path| WorkspacePath::parse(path).ok()) else {
            // A walk begins at names that a request can say; from further up it comes by here, too.
            batch.rules_changed = true;
            return Ok(());
        };
        self.add(path, Follow::Never)?;
        let options = WalkOptions { recursive: true, hidden: self.hidden, inclusive: false };
        let mut walk = Walk::begin(batch.workspace, &start, None, options, batch.stop)?;
        while let Some(found) = walk.next_entry()? {
            if told == Told::Wanted {
                batch.tell(ChangeKind::Created, &found.path);
            }
            if found.kind == EntryKind::Directory {
                self.add_if_there(&found.path)?;
            }
        }
        Ok(())
    }

    fn vanished(&mut self, path: &Path, batch: &mut Batch<'_>) {
        let was_directory = self.remove(path);
        if batch.shows(path, was_directory) {
            batch.tell(ChangeKind::Removed, path);
        }
    }

    fn renamed(
        &mut self,
        from: &Path,
        to: &Path,
        batch: &mut Batch<'_>,
    ) -> Result<(), WorkspaceError> {
        // What is watched below is watched under its old name.
        self.remove(from);
        let is_directory = batch.is_directory(to);
        if !batch.shows(from, is_directory) {
            return self.appeared(to, Told::Wanted, batch);
        }
        if !batch.shows(to, is_directory) {
            batch.tell(ChangeKind::Removed, from);
            return Ok(());
        }
        batch.tell_renamed(from, to);
        self.appeared(to, Told::Already, batch)
    }

    fn end_half_rename(&mut self, batch: &mut Batch<'_>) {
        if let Some(half) = self.half_rename.take() {
            self.vanished(&half.path, batch);
        }
    }

    /// Begins anew. What is left in the queue is about watches that are no more, and is not understood.
    fn rescan(&mut self, stop: &dyn Fn() -> bool) -> Result<Vec<Change>, WorkspaceError> {
        self.half_rename = None;
        self.directories.clear();
        self.handles.clear();
        self.watcher = watcher(&self.heard, self.start.text())?;
        self.add_all(stop)?;
        Ok(vec![Change::about_all(ChangeKind::Rescan)])
    }

    fn add_all(&mut self, stop: &dyn Fn() -> bool) -> Result<(), WorkspaceError> {
        let (workspace, start) = (self.workspace.clone(), self.start.clone());
        let path: PathBuf = start.names().collect();
        self.add(&path, Follow::InsideRoot)?;
        if !self.recursive {
            return Ok(());
        }
        let options = WalkOptions { recursive: true, hidden: self.hidden, inclusive: false };
        // A directory is yielded before it is read, so nothing comes into it unseen.
        let mut walk = Walk::begin(&workspace, &start, None, options, stop)?;
        while let Some(found) = walk.next_entry()? {
            if found.kind == EntryKind::Directory {
                self.add_if_there(&found.path)?;
            }
        }
        Ok(())
    }

    fn add_if_there(&mut self, path: &Path) -> Result<(), WorkspaceError> {
        match self.add(path, Follow::Never) {
            Err(error) if error.is_local() => Ok(()),
            added => added,
        }
    }

    /// Watches one directory.
    fn add(&mut self, path: &Path, follow: Follow) -> Result<(), WorkspaceError> {
        let text = if path.as_os_str().is_empty() { ".".into() } else { reply_path(path).0 };
        if self.handles.len() >= WATCHED_DIRECTORIES_MAX {
            let problem = format!("it has more than {WATCHED_DIRECTORIES_MAX} directories");
            return Err(WorkspaceError::NoWatch { path: text, problem });
        }
        // First: two watches on one directory are one to the system, and end together.
        if let Some(handle) = self.handles.remove(path) {
            self.forget(&handle);
        }
        let open_path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let directory = self.workspace.open_directory(open_path, &text, follow)?;
        let handle = handle_path(directory.as_raw_fd(), self.next);
        self.next += 1;
        self.watcher
            .watch(&handle, RecursiveMode::NonRecursive)
            .map_err(|error| refused(&text, error))?;
        self.directories.insert(handle.clone(), path.to_owned());
        self.handles.insert(path.to_owned(), handle);
        Ok(())
    }

    /// Ends the watches at and below a path; whether there was one at it.
    fn remove(&mut self, path: &Path) -> bool {
        let below = self.handles.range(path.to_owned()..).map(|(below, _)| below);
        let below: Vec<PathBuf> = below.take_while(|b| b.starts_with(path)).cloned().collect();
        for path in &below {
            if let Some(handle) = self.handles.remove(path) {
                self.forget(&handle);
            }
        }
        below.first().is_some_and(|first| first == path)
    }

    fn forget(&mut self, handle: &Path) {
        self.directories.remove(handle);
        // The watch of a directory that was removed has gone by itself.
        let _ = self.watcher.unwatch(handle);
    }

    fn check_start(&self) -> Result<(), WorkspaceError> {
        if self.is_of_root() {
            return self.check_root();
        }
        match self.workspace.root().metadata(self.start.as_path()) {
            Ok(found) if identity(&found) == self.start_identity => Ok(()),
            _ => Err(self.removed()),
        }
    }

    fn removed(&self) -> WorkspaceError {
        WorkspaceError::WatchedRemoved { path: self.start.text().to_owned() }
    }
}

/// Whether the reader is to be told of what appears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Wanted,
    /// It knows it under another name.
    Already,
}

/// Events that are looked at in one go, and what the reader is told of them.
struct Batch<'a> {
    workspace: &'a Workspace,
    hidden: bool,
    /// The rules of directories that were asked for.
    rules: HashMap<PathBuf, Rules<'a>>,
    told: Vec<Change>,
    /// The rules themselves have changed: which names count may be different now.
    rules_changed: bool,
    stop: &'a dyn Fn() -> bool,
}

impl Batch<'_> {
    fn is_directory(&self, path: &Path) -> bool {
        self.workspace.root().symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
    }

    /// Whether a listing shows this name.
    fn shows(&mut self, path: &Path, is_directory: bool) -> bool {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        if name == b".git" {
            return false;
        }
        let parent = path.parent().unwrap_or(Path::new("")).to_owned();
        let rules = self.rules.entry(parent).or_insert_with(|| {
            let mut ancestors: Vec<PathBuf> =
                path.ancestors().skip(1).map(Path::to_owned).collect();
            ancestors.reverse();
            Rules::of(self.workspace, &ancestors)
        });
        match rules.verdict(path, is_directory) {
            Verdict::Ignored => false,
            Verdict::Kept => true,
            Verdict::Unmentioned => self.hidden || !name.starts_with(b"."),
        }
    }

    fn tell(&mut self, change: ChangeKind, path: &Path) {
        let (path, path_lossy) = reply_path(path);
        self.told.push(Change { change, path: Some(path), from: None, path_lossy });
    }

    fn tell_renamed(&mut self, from: &Path, to: &Path) {
        let ((from, from_lossy), (to, to_lossy)) = (reply_path(from), reply_path(to));
        let (path, path_lossy) = (Some(to), from_lossy || to_lossy);
        self.told.push(Change { change: ChangeKind::Renamed, path, from: Some(from), path_lossy });
    }

    /// Tells that a file was modified, unless that is the last that was told of it: one save is several
    /// events.
    fn modified(&mut self, path: &Path) {
        let text = reply_path(path).0;
        let last = self.told.iter().rev().find(|told| told.path.as_deref() == Some(&text));
        let is_known =
            last.is_some_and(|l| matches!(l.change, ChangeKind::Created | ChangeKind::Modified));
        if !is_known {
            self.tell(ChangeKind::Modified, path);
        }
    }
}

impl Change {
    /// A change that is about everything below the directory.
    pub(crate) fn about_all(change: ChangeKind) -> Change {
        Change { change, path: None, from: None, path_lossy: false }
    }
}

fn watcher(heard: &Heard, path: &str) -> Result<RecommendedWatcher, WorkspaceError> {
    RecommendedWatcher::new(heard.clone(), Config::default().with_follow_symlinks(false))
        .map_err(|error| refused(path, error))
}

fn refused(path: &str, error: notify::Error) -> WorkspaceError {
    /// Too many open files, of this process or of the system; so inotify says that it has no instance left.
    const NO_DESCRIPTOR: [i32; 2] = [24, 23];
    let used_up = |problem: &str| WorkspaceError::NoWatch {
        path: path.to_owned(),
        problem: problem.to_owned(),
    };
    match error.kind {
        notify::ErrorKind::MaxFilesWatch => used_up(
            "the system has no watch left: raise fs.inotify.max_user_watches, or watch fewer \
             directories",
        ),
        notify::ErrorKind::Io(source)
            if source.raw_os_error().is_some_and(|code| NO_DESCRIPTOR.contains(&code)) =>
        {
            used_up("there is no descriptor left: raise fs.inotify.max_user_instances or ulimit -n")
        }
        notify::ErrorKind::Io(source) => WorkspaceError::from_io(path, source),
        notify::ErrorKind::PathNotFound => WorkspaceError::NotFound { path: path.to_owned() },
        other => used_up(&format!("{other:?}")),
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// A path to an open directory that was not given before, whatever numbers descriptors have.
///
/// The detours spell `number` in binary. The watcher tells watches from each other by the text of their
/// paths, and does not keep the descriptor open.
fn handle_path(descriptor: i32, number: u64) -> PathBuf {
    let mut path = PathBuf::from("/proc/self");
    for bit in 0..u64::BITS - number.leading_zeros() {
        path.push(if number >> bit & 1 == 1 { "fd/.." } else { "ns/.." });
    }
    path.push("fd");
    path.push(descriptor.to_string());
    path
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn handle_paths_differ_and_lead_to_the_descriptor() {
        let folder = tempfile::tempdir().unwrap();
        let open = std::fs::File::open(folder.path()).unwrap();
        let paths: HashSet<PathBuf> = (0..300).map(|n| handle_path(open.as_raw_fd(), n)).collect();
        assert_eq!(paths.len(), 300);
        for path in paths {
            assert_eq!(std::fs::canonicalize(path).unwrap(), folder.path().canonicalize().unwrap());
        }
    }
}
