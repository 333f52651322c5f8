//! The place of a file that is to be written, and its replacement in one step.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use cap_fs_ext::OpenOptionsSyncExt;
use cap_std::fs::{Dir, File, Metadata, OpenOptions, Permissions};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat};
use sha2::{Digest, Sha256};

use crate::error::WorkspaceError;
use crate::path::WorkspacePath;
use crate::types::EntryKind;
use crate::workspace::{Workspace, kind_of};

/// Where a file is, or will be: an open directory and a name in it that is no symlink.
#[derive(Debug)]
pub(crate) struct Place {
    directory: Dir,
    name: OsString,
    /// For errors.
    text: String,
    old: Option<Metadata>,
}

/// What all names of one place have in common, however symlinks lead there: a directory that exists, and
/// the rest of the way. Hard links are places of their own, because each is replaced without the other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    directory: (u64, u64),
    rest: PathBuf,
}

/// Whether to make the directories on the way to a file.
#[derive(Debug)]
pub(crate) enum Directories<'a, 'w> {
    Make(&'a mut MadeDirectories<'w>),
    MustExist,
}

/// Directories that were made for files. Dropped before they are kept, those of them that are empty are
/// removed.
#[derive(Debug)]
pub(crate) struct MadeDirectories<'w> {
    workspace: &'w Workspace,
    /// A directory behind the one that it is in.
    paths: Vec<PathBuf>,
}

/// Whether content that waits for its name has one until then. Where it has none, nothing is left of it if
/// the process is killed. But it takes a descriptor, and not every file system has such files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beside {
    Unnamed,
    Named,
}

impl Workspace {
    /// Finds the place of a file. A symlink stands for what it names, if that is a file in the root.
    pub(crate) fn place(
        &self,
        path: &WorkspacePath,
        directories: Directories<'_, '_>,
    ) -> Result<Place, WorkspaceError> {
        let text = path.text().to_owned();
        let failed = |source| {
            let error = WorkspaceError::from_write(path.text(), source);
            self.name_the_file(path.as_path(), error)
        };
        let not_a_file =
            |kind| WorkspaceError::NotReplaceable { path: path.text().to_owned(), kind };
        let found = match self.root().symlink_metadata(path.as_path()) {
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        let mut real = path.as_path().to_owned();
        if found.as_ref().is_some_and(Metadata::is_symlink) {
            real = match self.root().canonicalize(path.as_path()) {
                Ok(real) => real,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(WorkspaceError::DanglingLink { path: text });
                }
                Err(error) => return Err(failed(error)),
            };
        }
        self.must_not_be_part_of_git(&real, path)?;
        let Some(name) = real.file_name().filter(|_| path.names().next().is_some()) else {
            return Err(not_a_file(EntryKind::Directory));
        };
        let parent = real.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let mut opened = self.root().open_dir(parent);
        let is_missing = opened.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
        if is_missing && let Directories::Make(made) = directories {
            made.make(parent).map_err(failed)?;
            opened = self.root().open_dir(parent);
        }
        let directory = opened.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                WorkspaceError::NotFound { path: parent.to_string_lossy().into_owned() }
            }
            _ => failed(error),
        })?;
        let mut place = Place { directory, name: name.to_owned(), text, old: None };
        place.old = place.look()?;
        match &place.old {
            Some(old) if !old.is_file() => Err(not_a_file(kind_of(old.file_type()))),
            _ => Ok(place),
        }
    }
}

impl Workspace {
    /// Refuses to write `.git` and what is in it, also through symlinks: who may write files there has git
    /// run programs, as its user. `real` is the way with its last name resolved.
    pub(crate) fn must_not_be_part_of_git(
        &self,
        real: &Path,
        path: &WorkspacePath,
    ) -> Result<(), WorkspaceError> {
        // Some file systems take `.GIT` for the same name.
        let is_git = |name: &OsStr| name.as_encoded_bytes().eq_ignore_ascii_case(b".git");
        // Directories that are missing may be made behind the last that exists.
        let exists = |above: &Path| self.root().canonicalize(above).ok();
        let resolved = real.ancestors().skip(1).find_map(exists).unwrap_or_default();
        if real.iter().chain(&resolved).any(is_git) {
            return Err(WorkspaceError::PartOfGit { path: path.text().to_owned() });
        }
        Ok(())
    }

    /// The identity of a file that is to be made, whose directories may have to be made, too.
    pub(crate) fn identity_of_missing(
        &self,
        path: &WorkspacePath,
    ) -> Result<Identity, WorkspaceError> {
        let failed = |source| {
            let error = WorkspaceError::from_write(path.text(), source);
            self.name_the_file(path.as_path(), error)
        };
        for above in path.ancestors().iter().rev() {
            let name = if above.as_os_str().is_empty() { Path::new(".") } else { above };
            match self.root().open_dir(name) {
                Ok(directory) => {
                    let rest = path.as_path().strip_prefix(above).unwrap_or(path.as_path());
                    return Identity::of(&directory, rest).map_err(failed);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let path = path.text().to_owned();
        Err(WorkspaceError::NotReplaceable { path, kind: EntryKind::Directory })
    }
}

impl<'w> MadeDirectories<'w> {
    pub(crate) fn none(workspace: &'w Workspace) -> Self {
        Self { workspace, paths: Vec::new() }
    }

    /// Makes a directory, and those on the way to it.
    fn make(&mut self, path: &Path) -> io::Result<()> {
        let above: Vec<&Path> = path.ancestors().filter(|a| !a.as_os_str().is_empty()).collect();
        for directory in above.into_iter().rev() {
            match self.workspace.root().create_dir(directory) {
                Ok(()) => self.paths.push(directory.to_owned()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(crate) fn keep(mut self) {
        self.paths.clear();
    }
}

impl Drop for MadeDirectories<'_> {
    fn drop(&mut self) {
        for path in self.paths.iter().rev() {
            // One that is not empty is somebody else's by now.
            let _ = self.workspace.root().remove_dir(path);
        }
    }
}

impl Identity {
    fn of(directory: &Dir, rest: &Path) -> io::Result<Identity> {
        use cap_fs_ext::MetadataExt;
        let metadata = directory.dir_metadata()?;
        Ok(Identity { directory: (metadata.dev(), metadata.ino()), rest: rest.to_owned() })
    }
}

impl Place {
    pub(crate) fn identity(&self) -> Result<Identity, WorkspaceError> {
        Identity::of(&self.directory, Path::new(&self.name)).map_err(|e| self.failed(e))
    }

    /// Whether a file is there.
    pub(crate) fn exists(&self) -> bool {
        self.old.is_some()
    }

    /// The length of the file that is there, in bytes.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.old.as_ref().map_or(0, Metadata::len)
    }

    /// The content of the file that is there.
    pub(crate) fn read(&self) -> Result<Vec<u8>, WorkspaceError> {
        let mut content = Vec::new();
        self.open(OpenOptions::new().read(true))
            .and_then(|mut file| file.read_to_end(&mut content))
            .map_err(|source| self.failed(source))?;
        Ok(content)
    }

    /// The SHA-256 of the file that is there.
    pub(crate) fn sha256(&self) -> Result<String, WorkspaceError> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 64 * 1024];
        let mut file = self.open(OpenOptions::new().read(true)).map_err(|e| self.failed(e))?;
        loop {
            match file.read(&mut buffer).map_err(|e| self.failed(e))? {
                0 => return Ok(hex(&hasher.finalize())),
                read => hasher.update(&buffer[..read]),
            }
        }
    }

    /// Writes `content` beside the file and onto the disk, with the old file's permissions. The file
    /// itself is as it was until [`Prepared::commit`].
    pub(crate) fn prepare(
        &self,
        content: &[u8],
        permissions: Option<Permissions>,
        beside: Beside,
    ) -> Result<Prepared<'_>, WorkspaceError> {
        if self.old.is_some() {
            // A rename asks nobody: a file that is write-protected stays so.
            self.open(OpenOptions::new().write(true)).map_err(|e| self.failed(e))?;
        }
        self.write_beside(content, permissions, beside)
    }

    /// As [`prepare`](Self::prepare), of content that goes back where it was.
    pub(crate) fn prepare_again(&self, content: &[u8]) -> Result<Prepared<'_>, WorkspaceError> {
        self.write_beside(content, None, Beside::Unnamed)
    }

    /// Whether what was found is still there, as far as length, time and identity tell.
    pub(crate) fn is_unchanged(&self) -> Result<bool, WorkspaceError> {
        use cap_fs_ext::MetadataExt;
        Ok(match (&self.old, &self.look()?) {
            (None, None) => true,
            (Some(old), Some(new)) => {
                let same_file = (old.dev(), old.ino()) == (new.dev(), new.ino());
                same_file && old.len() == new.len() && old.modified().ok() == new.modified().ok()
            }
            _ => false,
        })
    }

    pub(crate) fn remove(&self) -> Result<(), WorkspaceError> {
        self.directory.remove_file(&self.name).map_err(|e| self.failed(e))
    }

    /// Puts the directory itself onto the disk.
    pub(crate) fn sync_directory(&self) -> Result<(), WorkspaceError> {
        let opened = self.directory.open(".");
        opened.and_then(|directory| directory.sync_all()).map_err(|e| self.failed(e))
    }

    pub(crate) fn changed(&self, sha256: Option<String>) -> WorkspaceError {
        WorkspaceError::Changed { path: self.text.clone(), sha256 }
    }

    fn look(&self) -> Result<Option<Metadata>, WorkspaceError> {
        match self.directory.symlink_metadata(&self.name) {
            Ok(metadata) => Ok(Some(metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Opens the file that is there. What has taken its place is refused, without blocking on it.
    fn open(&self, options: &mut OpenOptions) -> io::Result<File> {
        let file = self.directory.open_with(&self.name, options.nonblock(true))?;
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn write_beside(
        &self,
        content: &[u8],
        permissions: Option<Permissions>,
        beside: Beside,
    ) -> Result<Prepared<'_>, WorkspaceError> {
        let unnamed = match beside {
            Beside::Unnamed => self.create_unnamed(),
            Beside::Named => None,
        };
        let (mut file, name) = match unnamed {
            Some(file) => (file, None),
            None => {
                let named = |name: &OsStr| {
                    let options = OpenOptions::new().write(true).create_new(true).to_owned();
                    self.directory.open_with(name, &options)
                };
                let (file, name) = self.under_a_free_name(named).map_err(|e| self.failed(e))?;
                (file, Some(name))
            }
        };
        let mut prepared = Prepared { place: self, name, unnamed: None };
        let old = self.old.as_ref().map(Metadata::permissions);
        let permitted = match old.or(permissions) {
            // Before the content: nobody may read it who might not before.
            Some(permissions) => file.set_permissions(permissions),
            None => Ok(()),
        };
        permitted
            .and_then(|()| file.write_all(content))
            .and_then(|()| file.sync_all())
            .map_err(|e| self.failed(e))?;
        if prepared.name.is_none() {
            prepared.unnamed = Some(file);
        }
        Ok(prepared)
    }

    /// A file in the directory that has no name, or nothing where that cannot be.
    fn create_unnamed(&self) -> Option<File> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        // The user's mask takes from it, as from any file that is made.
        let file =
            File::from(openat(&self.directory, ".", flags, Mode::from_raw_mode(0o666)).ok()?);
        // Its name comes through there.
        std::fs::metadata(path_of_open(&file)).ok()?;
        Some(file)
    }

    /// Makes something under a name that nothing has.
    fn under_a_free_name<T>(
        &self,
        mut make: impl FnMut(&OsStr) -> io::Result<T>,
    ) -> io::Result<(T, OsString)> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let mut name = OsString::from(".");
            // A name may be as long as names can be; its start is for people.
            name.push(start_of(&self.name));
            name.push(format!(".lapwing-{}-{number}", process::id()));
            match make(&name) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => return Ok((made?, name)),
            }
        }
    }

    fn failed(&self, source: io::Error) -> WorkspaceError {
        WorkspaceError::from_write(&self.text, source)
    }
}

fn path_of_open(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn start_of(name: &OsStr) -> String {
    name.to_string_lossy().chars().take(40).collect()
}

/// A file that waits to take another's name, in one of two ways. Dropped, it is removed.
#[derive(Debug)]
#[must_use = "it is removed if it is not committed"]
pub(crate) struct Prepared<'a> {
    place: &'a Place,
    name: Option<OsString>,
    unnamed: Option<File>,
}

impl Prepared<'_> {
    /// Takes the file's name. Where nothing was, nothing is replaced.
    pub(crate) fn commit(mut self) -> Result<(), WorkspaceError> {
        if let Some(file) = self.unnamed.take() {
            let failed = |source| self.place.failed(source);
            let link = |name: &OsStr| {
                let (path, directory) = (path_of_open(&file), &self.place.directory);
                Ok(linkat(CWD, path, directory, name, AtFlags::SYMLINK_FOLLOW)?)
            };
            if self.place.old.is_none() {
                return link(&self.place.name).map_err(failed);
            }
            // Only a rename replaces, and it needs a name.
            self.name = Some(self.place.under_a_free_name(link).map_err(failed)?.1);
        }
        let Some(name) = &self.name else { return Ok(()) };
        let Place { directory, name: target, old, .. } = self.place;
        if old.is_none() {
            match directory.hard_link(name, directory, target) {
                // The drop removes the other name.
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(self.place.failed(error));
                }
                // Not every file system has hard links.
                Err(_) if self.place.look()?.is_some() => {
                    return Err(self.place.failed(io::ErrorKind::AlreadyExists.into()));
                }
                Err(_) => {}
            }
        }
        directory.rename(name, directory, target).map_err(|e| self.place.failed(e))?;
        self.name = None;
        Ok(())
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // Whoever reads the error cannot do more about it than this.
            let _ = self.place.directory.remove_file(name);
        }
    }
}

/// The SHA-256 of these bytes, in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn names(folder: &Path) -> Vec<OsString> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn content_that_waits_has_no_name_where_there_are_such_files() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("old"), "old").unwrap();
        let workspace = Workspace::open(folder.path()).unwrap().writable();
        for (name, is_new) in [("new", true), ("old", false)] {
            let path = WorkspacePath::parse(name).unwrap();
            let place = workspace.place(&path, Directories::MustExist).unwrap();
            if place.create_unnamed().is_none() {
                return;
            }
            let before = names(folder.path());
            let killed = place.prepare(b"killed", None, Beside::Unnamed).unwrap();
            assert_eq!(names(folder.path()), before);
            std::mem::forget(killed);
            place.prepare(b"content", None, Beside::Unnamed).unwrap().commit().unwrap();
            assert_eq!(fs::read(folder.path().join(name)).unwrap(), b"content");
            assert_eq!(names(folder.path()).len(), before.len() + usize::from(is_new));
            if is_new {
                let again = place.prepare(b"again", None, Beside::Unnamed).unwrap().commit();
                assert!(matches!(again, Err(WorkspaceError::Exists { .. })), "{again:?}");
            }
        }
    }

    #[test]
    fn content_that_waits_under_a_name_takes_the_file_s_or_goes() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("old"), "old").unwrap();
        let workspace = Workspace::open(folder.path()).unwrap().writable();
        for name in ["new", "old"] {
            let path = WorkspacePath::parse(name).unwrap();
            let place = workspace.place(&path, Directories::MustExist).unwrap();
            let before = names(folder.path());
            let given_up = place.prepare(b"given up", None, Beside::Named).unwrap();
            assert_eq!(names(folder.path()).len(), before.len() + 1);
            drop(given_up);
            assert_eq!(names(folder.path()), before);
            place.prepare(b"content", None, Beside::Named).unwrap().commit().unwrap();
            assert_eq!(fs::read(folder.path().join(name)).unwrap(), b"content");
        }
        assert_eq!(names(folder.path()), ["new", "old"]);
    }
}
