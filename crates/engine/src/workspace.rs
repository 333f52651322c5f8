//! The root directory and the one way to open what is below it.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cap_fs_ext::{DirExt, MetadataExt, OpenOptionsSyncExt};
use cap_std::ambient_authority;
use cap_std::fs::{Dir, FileType, Metadata, OpenOptions};
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use tokio::sync::watch;

use crate::activity::{Activity, WorkspaceStats};
use crate::error::WorkspaceError;
use crate::path::{WorkspacePath, reply_path};
use crate::types::EntryKind;

/// A directory tree that may be listed, read, searched and watched, and where
/// [`writable`](Workspace::writable) changed; and nothing outside it.
///
/// It holds an open handle of its root: renaming the root keeps it working, and no later change to
/// the path that opened it moves it elsewhere. Cloning is cheap and shares the handle.
#[derive(Debug, Clone)]
pub struct Workspace {
    root: Arc<Dir>,
    global_ignore: Arc<OnceLock<Gitignore>>,
    activity: Arc<Activity>,
    /// True once streams without an end of their own are to end.
    closing: Arc<watch::Sender<bool>>,
    /// `None`: the workspace is read-only. Otherwise held from the look at what is there to its
    /// replacement, so that of two calls the second sees what the first wrote.
    writing: Option<Arc<Mutex<()>>>,
}

impl Workspace {
    /// Opens a directory as the root of a workspace.
    ///
    /// The user's global git ignore file (`core.excludesFile`) is read once, when it is first needed.
    /// Ignore files in directories above the root are not looked at.
    ///
    /// # Errors
    ///
    /// [`WorkspaceError::NotFound`], [`NotADirectory`](WorkspaceError::NotADirectory),
    /// [`PermissionDenied`](WorkspaceError::PermissionDenied) or [`Io`](WorkspaceError::Io), with
    /// the path as it was given.
    pub fn open(root: &Path) -> Result<Self, WorkspaceError> {
        let dir = Dir::open_ambient_dir(root, ambient_authority())
            .and_then(|dir| dir.entries().map(|_| dir))
            .map_err(|source| WorkspaceError::from_io(&root.to_string_lossy(), source))?;
        Ok(Self {
            root: Arc::new(dir),
            global_ignore: Arc::default(),
            activity: Arc::default(),
            closing: Arc::default(),
            writing: None,
        })
    }

    /// The same workspace with [`write`](Self::write) and [`apply_patch`](Self::apply_patch) allowed,
    /// which otherwise are refused with [`WorkspaceError::ReadOnly`].
    #[must_use]
    pub fn writable(mut self) -> Self {
        self.writing = Some(Arc::default());
        self
    }

    /// What this workspace and its clones have done, and are doing now.
    #[must_use]
    pub fn stats(&self) -> WorkspaceStats {
        self.activity.stats()
    }

    /// Ends every stream of `fs.watch` over this workspace and its clones, and refuses further ones, with
    /// `Unavailable`. For a server that is about to stop: a watch would never finish by itself.
    pub fn end_watches(&self) {
        self.closing.send_replace(true);
    }

    /// Completes after [`end_watches`](Self::end_watches).
    pub(crate) fn watches_ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut closing = self.closing.subscribe();
        async move { drop(closing.wait_for(|closing| *closing).await) }
    }

    pub(crate) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    pub(crate) fn root(&self) -> &Dir {
        &self.root
    }

    /// The path of a request, in a root that is there. An open directory that was removed reads as an empty
    /// one.
    pub(crate) fn path(&self, given: &str) -> Result<WorkspacePath, WorkspaceError> {
        self.check_root()?;
        WorkspacePath::parse(given)
    }

    /// As [`path`](Self::path), of a path that is a file's.
    pub(crate) fn file_path(&self, given: &str) -> Result<WorkspacePath, WorkspaceError> {
        self.check_root()?;
        WorkspacePath::parse_file(given)
    }

    /// Names what is no directory on the way to a path that could not be opened therefore.
    pub(crate) fn name_the_file(&self, path: &Path, error: WorkspaceError) -> WorkspaceError {
        let WorkspaceError::NotADirectory { path: text } = error else {
            return error;
        };
        let mut above = path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty());
        let file = above.find(|a| self.root.metadata(a).is_ok_and(|metadata| !metadata.is_dir()));
        match file.map(|file| reply_path(file).0) {
            Some(file) => WorkspaceError::BelowFile { path: text, file },
            None => WorkspaceError::NotADirectory { path: text },
        }
    }

    /// Fails when the root was removed. It may have been renamed: its handle is what counts.
    pub(crate) fn check_root(&self) -> Result<(), WorkspaceError> {
        match self.root.dir_metadata().map_err(|e| WorkspaceError::from_io(".", e))?.nlink() {
            0 => Err(WorkspaceError::RootRemoved),
            _ => Ok(()),
        }
    }

    /// Waits for other calls that write; refused where the workspace is read-only.
    pub(crate) fn begin_writing(&self) -> Result<MutexGuard<'_, ()>, WorkspaceError> {
        // It guards no memory, so a panic of another call leaves nothing half done.
        Ok(self.must_be_writable()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Refuses where the workspace is read-only.
    pub(crate) fn must_be_writable(&self) -> Result<&Mutex<()>, WorkspaceError> {
        self.writing.as_deref().ok_or(WorkspaceError::ReadOnly)
    }

    pub(crate) fn global_ignore(&self) -> &Gitignore {
        self.global_ignore.get_or_init(|| GitignoreBuilder::new("").build_global().0)
    }

    /// Opens a regular file for reading and returns its length; `name` is for the error.
    ///
    /// Nothing else is ever opened for reading: a device may act on being opened. A FIFO that takes
    /// the file's place between the two steps is opened without blocking and then refused.
    pub(crate) fn open_file(&self, path: &Path, name: &str) -> Result<(File, u64), WorkspaceError> {
        let failed = |source| self.name_the_file(path, WorkspaceError::from_io(name, source));
        let must_be_file = |file_type| match kind_of(file_type) {
            EntryKind::File => Ok(()),
            kind => Err(WorkspaceError::NotAFile { path: name.to_owned(), kind }),
        };
        must_be_file(self.root.metadata(path).map_err(failed)?.file_type())?;
        let options = OpenOptions::new().read(true).nonblock(true).to_owned();
        let file = self.root.open_with(path, &options).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        must_be_file(metadata.file_type())?;
        Ok((file.into_std(), metadata.len()))
    }

    /// Opens a directory; `name` is for the error.
    pub(crate) fn open_directory(
        &self,
        path: &Path,
        name: &str,
        follow: Follow,
    ) -> Result<Dir, WorkspaceError> {
        match follow {
            Follow::InsideRoot => self.root.open_dir(path),
            Follow::Never => self.root.open_dir_nofollow(path),
        }
        .map_err(|source| self.name_the_file(path, WorkspaceError::from_io(name, source)))
    }

    /// What a path is, symlinks followed; `name` is for the error.
    pub(crate) fn kind(&self, path: &Path, name: &str) -> Result<EntryKind, WorkspaceError> {
        let metadata = self.root.metadata(path);
        metadata
            .map(|metadata| kind_of(metadata.file_type()))
            .map_err(|source| self.name_the_file(path, WorkspaceError::from_io(name, source)))
    }

    /// The length of a regular file that a walk found, in bytes; nothing if it went or changed.
    pub(crate) fn file_len_bytes(&self, path: &Path) -> Option<u64> {
        let metadata = self.root.symlink_metadata(path).ok()?;
        metadata.is_file().then(|| metadata.len())
    }

    /// Whether the last name of a path is a symlink.
    pub(crate) fn is_symlink(&self, path: &Path) -> bool {
        self.root.symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink())
    }

    /// Whether anything has this name, be it a dangling symlink.
    pub(crate) fn has(&self, path: &Path) -> bool {
        self.root.symlink_metadata(path).is_ok()
    }
}

/// What to do when the last name of a path is a symlink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Follow {
    /// Go where it points, if that is inside the root.
    InsideRoot,
    /// Fail.
    Never,
}

/// Device and number of a file or directory: what has them is the same one, as long as it is there.
pub(crate) type Identity = (u64, u64);

pub(crate) fn identity(metadata: &Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

pub(crate) fn kind_of(file_type: FileType) -> EntryKind {
    if file_type.is_file() {
        EntryKind::File
    } else if file_type.is_dir() {
        EntryKind::Directory
    } else if file_type.is_symlink() {
        EntryKind::Symlink
    } else {
        EntryKind::Other
    }
}
