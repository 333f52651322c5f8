//! The directories that a watch is on, and what the system's events about them mean.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use notify::event::{EventKind, ModifyKind, RenameMode};
use notify::{Config, Event, RecommendedWatcher, RecursiveMode, Watcher};

use crate::activity::Counted;
use crate::error::WorkspaceError;
use crate::held::HeldDirectories;
use crate::limits::WATCHED_DIRECTORIES_MAX;
use crate::path::{WorkspacePath, reply_path};
use crate::rules::{Rules, Verdict};
use crate::types::{Change, ChangeKind, EntryKind, WatchRequest};
use crate::walk::{Walk, WalkOptions};
use crate::watch::Heard;
use crate::workspace::{Follow, Identity, Workspace, identity};

/// A watch on the directories that a listing of the same request enters.
///
/// Each directory is opened through the root's handle and watched through that open handle, so no watch is
/// ever on a directory outside, whatever is swapped for what. `notify` watches none by itself below it.
pub(crate) struct Watched {
    workspace: Workspace,
    start: WorkspacePath,
    /// Of the start: what is there later may be another one.
    start_identity: Identity,
    recursive: bool,
    hidden: bool,
    heard: Heard,
    watcher: RecommendedWatcher,
    held: HeldDirectories,
    /// Makes the paths that the watcher is given differ: descriptors return under the same number.
    next: u64,
    /// A name stood for another directory than the one that was held under it, and no event says why.
    lost_track: bool,
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
        let start = workspace.path(&request.path)?;
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
            held: HeldDirectories::default(),
            next: 0,
            lost_track: false,
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

    pub(crate) fn check_root(&self) -> Result<(), WorkspaceError> {
        self.workspace.check_root()
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
        if batch.rules_changed || self.lost_track {
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
                self.appeared(&path, batch)
            }
            EventKind::Remove(_) => {
                self.vanished(&path, batch);
                Ok(())
            }
            EventKind::Modify(_) => {
                let is_nameless = is_kernels(&path) && !batch.workspace.has(&path);
                if !is_nameless && batch.shows(&path, batch.directory_at(&path).is_some()) {
                    batch.modified(&path);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The workspace's path for one of the watcher's.
    fn locate(&self, path: &Path) -> Option<PathBuf> {
        Some(self.held.path_of_handle(path.parent()?)?.join(path.file_name()?))
    }

    fn appeared(&mut self, path: &Path, batch: &mut Batch<'_>) -> Result<(), WorkspaceError> {
        let found = batch.directory_at(path);
        if !batch.shows(path, found.is_some()) {
            return Ok(());
        }
        batch.tell(ChangeKind::Created, path);
        self.held.set_unread(path);
        self.enter(path, found, batch)
    }

    /// Watches the directory that was found at a path and what is below it, and tells of what the reader
    /// does not know.
    fn enter(
        &mut self,
        path: &Path,
        found: Option<Identity>,
        batch: &mut Batch<'_>,
    ) -> Result<(), WorkspaceError> {
        let Some(found) = found.filter(|_| self.recursive) else {
            return Ok(());
        };
        if self.held.identity_at(path).is_some_and(|held| held != found) {
            self.lost_track = true;
            return Ok(());
        }
        let Some(start) = path.to_str().and_then(|path| WorkspacePath::parse(path).ok()) else {
            // A walk begins at names that a request can say; from further up it comes by here, too.
            batch.rules_changed = true;
            return Ok(());
        };
        let (workspace, stop) = (batch.workspace, batch.stop);
        let entered = self.add(path, Follow::Never).and_then(|()| {
            self.walk(workspace, &start, stop, &mut |path| batch.tell(ChangeKind::Created, path))
        });
        match entered {
            // It went again, or may not be read. If it comes back it is not read, and told.
            Err(error) if error.is_local() => Ok(()),
            entered => entered,
        }
    }

    /// Watches all directories below one that is watched. Names in directories that are not read yet go
    /// to `tell`.
    fn walk(
        &mut self,
        workspace: &Workspace,
        start: &WorkspacePath,
        stop: &dyn Fn() -> bool,
        tell: &mut dyn FnMut(&Path),
    ) -> Result<(), WorkspaceError> {
        let options = WalkOptions { recursive: true, hidden: self.hidden, inclusive: false };
        let mut walk = Walk::begin(workspace, start, None, options, stop)?;
        let mut read = Vec::new();
        // A directory is yielded before it is read, so nothing comes into it unseen.
        let mut yielded = Some(start.names().collect::<PathBuf>());
        loop {
            let found = walk.next_entry()?;
            // What has another name by now was not read, even if something was read under its name.
            if let Some((path, identity)) = yielded.take().zip(walk.take_entered())
                && self.held.identity_at(&path) == Some(identity)
            {
                read.push(path);
            }
            let Some(found) = found else { break };
            if !self.held.is_read(found.path.parent().unwrap_or(Path::new(""))) {
                tell(&found.path);
            }
            if found.kind == EntryKind::Directory {
                self.add_if_there(&found.path)?;
                yielded = Some(found.path);
            }
        }
        // Not before the end: until then it says what the reader knew before.
        read.iter().for_each(|path| self.held.set_read(path));
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
        let found = batch.directory_at(to);
        if !batch.shows(from, found.is_some()) {
            self.remove(from);
            return self.appeared(to, batch);
        }
        if !batch.shows(to, found.is_some()) {
            self.remove(from);
            batch.tell(ChangeKind::Removed, from);
            return Ok(());
        }
        let held = self.held.identity_at(from);
        if held.is_some() && held != found && held == batch.directory_at(from) {
            // It came to the old name after what was moved, and the reader knows it there already: that
            // must not go along. Or the two took each other's name in one step.
            batch.tell(ChangeKind::Removed, from);
            self.appeared(to, batch)?;
            return self.appeared(from, batch);
        }
        batch.tell_renamed(from, to);
        // The reader takes what it knew there for gone, and moves here what it knew of the old name.
        self.held.set_unread(to);
        if held.is_some() {
            if self.held.identity_at(to).is_some_and(|there| Some(there) != held) {
                self.remove(to);
            }
            self.lost_track |= !self.held.rename(from, to);
            if held != found {
                // It has gone on already, and that will be told, too: unless something else is there.
                self.lost_track |= batch.workspace.has(to);
                return Ok(());
            }
        }
        self.enter(to, found, batch)
    }

    fn end_half_rename(&mut self, batch: &mut Batch<'_>) {
        if let Some(half) = self.half_rename.take() {
            self.vanished(&half.path, batch);
        }
    }

    /// Begins anew. What is left in the queue is about watches that are no more, and is not understood.
    fn rescan(&mut self, stop: &dyn Fn() -> bool) -> Result<Vec<Change>, WorkspaceError> {
        self.half_rename = None;
        self.lost_track = false;
        self.held = HeldDirectories::default();
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
        self.walk(&workspace, &start, stop, &mut |_| {})
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
        let failed = |source| WorkspaceError::from_io(&text, source);
        let open_path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let directory = self.workspace.open_directory(open_path, &text, follow)?;
        let found = identity(&directory.dir_metadata().map_err(failed)?);
        match self.held.identity_at(path) {
            Some(held) if held == found && self.held.is_read(path) => return Ok(()),
            Some(held) if held != found => {
                self.lost_track = true;
                self.remove(path);
            }
            _ => {}
        }
        if self.held.len() >= WATCHED_DIRECTORIES_MAX && self.held.identity_at(path).is_none() {
            let problem = format!("it has more than {WATCHED_DIRECTORIES_MAX} directories");
            return Err(WorkspaceError::NoWatch { path: text, problem });
        }
        let handle = handle_path(directory.as_raw_fd(), self.next);
        self.next += 1;
        // Also one that is held: the system gives its number again once it is removed, and the watch
        // ended then. Otherwise it is the same watch.
        self.watcher
            .watch(&handle, RecursiveMode::NonRecursive)
            .map_err(|error| refused(&text, error))?;
        self.held.hold(path, found, handle);
        Ok(())
    }

    /// Ends the watches at and below a path; whether there was one at it.
    fn remove(&mut self, path: &Path) -> bool {
        let was_held = self.held.identity_at(path).is_some();
        for handle in self.held.remove(path) {
            // The watch of a directory that was removed has gone by itself.
            let _ = self.watcher.unwatch(&handle);
        }
        was_held
    }

    fn check_start(&self) -> Result<(), WorkspaceError> {
        if self.is_of_root() {
            return self.check_root();
        }
        match self.workspace.root().metadata(self.start.as_path()) {
            Ok(found) if identity(&found) == self.start_identity => Ok(()),
            _ => Err(WorkspaceError::WatchedRemoved { path: self.start.text().to_owned() }),
        }
    }
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
    /// The directory that has this name now.
    fn directory_at(&self, path: &Path) -> Option<Identity> {
        let found = self.workspace.root().symlink_metadata(path).ok()?;
        found.is_dir().then(|| identity(&found))
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

/// Whether a name is like those by which the kernel tells of files that have none: `#` and a number.
fn is_kernels(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name.strip_prefix(b"#").is_some_and(|number| number.iter().all(u8::is_ascii_digit))
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
