//! Where a server listens: a socket path, its directory, its modes and its lock.

use std::env;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{BindError, ConnectError, EndpointError};
use crate::platform::{self, SOCKET_PATH_BYTES};

/// The path of the endpoint called `name`: `$XDG_RUNTIME_DIR/lapwing/NAME.sock`, or, where that
/// variable is not set to an absolute path, `/run/user/UID/lapwing/NAME.sock` if that directory of the user's exists, else
/// `lapwing-UID/NAME.sock` in the system's folder for temporary files. Nothing is made: where the last directory is
/// missing, a server makes it with mode 0700 when it binds, and for a client nothing listens there.
///
/// # Errors
///
/// [`EndpointError`] when the name is no file name, or when the directory is there and not this user's alone.
pub fn endpoint_path(name: &str) -> Result<PathBuf, EndpointError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
        return Err(EndpointError::BadName(name.to_owned()));
    }
    let (directory, variable) = runtime_directory();
    match check_private(&directory, variable) {
        // Who binds or connects there finds what is in the way, and says it.
        Ok(()) | Err(EndpointError::Io { .. }) => Ok(directory.join(format!("{name}.sock"))),
        Err(error) => Err(error),
    }
}

/// Makes the directory that `path` lies in, if it is the one for sockets and missing. Whatever a name was
/// worked out from, that directory is private when it is used.
fn make_directory_of(path: &Path) -> Result<(), EndpointError> {
    let (directory, variable) = runtime_directory();
    if path.parent() != Some(&directory) {
        return Ok(());
    }
    match DirBuilder::new().mode(0o700).create(&directory) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(source) => return Err(EndpointError::Io { path: directory, source, variable }),
    }
    check_private(&directory, variable)
}

/// Refuses what listens on `path` if that lies in the directory for sockets and others can enter it: it may have been
/// missing when the name was worked out, and somebody else have made it since. One that is found to be this user's own
/// cannot be exchanged by others afterwards.
fn check_directory_of(path: &Path) -> Result<(), EndpointError> {
    let (directory, variable) = runtime_directory();
    match path.parent() == Some(&directory) {
        true => check_private(&directory, variable),
        false => Ok(()),
    }
}

/// The directory for sockets, and the environment variable that it was taken from.
fn runtime_directory() -> (PathBuf, Option<&'static str>) {
    const RUNTIME: &str = "XDG_RUNTIME_DIR";
    const TEMPORARY: &str = "TMPDIR";
    let uid = platform::own_uid();
    if let Some(directory) = env::var_os(RUNTIME).map(PathBuf::from)
        && directory.is_absolute()
    {
        return (directory.join("lapwing"), Some(RUNTIME));
    }
    let of_login = PathBuf::from(format!("/run/user/{uid}"));
    if fs::symlink_metadata(&of_login).is_ok_and(|found| found.is_dir() && found.uid() == uid) {
        return (of_login.join("lapwing"), None);
    }
    let variable = env::var_os(TEMPORARY).map(|_| TEMPORARY);
    (env::temp_dir().join(format!("lapwing-{uid}")), variable)
}

fn check_private(directory: &Path, variable: Option<&'static str>) -> Result<(), EndpointError> {
    let path = directory.to_owned();
    let found = match fs::symlink_metadata(directory) {
        Ok(found) => found,
        Err(source) => return Err(EndpointError::Io { path, source, variable }),
    };
    let (is_directory, uid, mode) = (found.is_dir(), found.uid(), found.mode() & 0o7777);
    if is_directory && uid == platform::own_uid() && mode & 0o077 == 0 {
        return Ok(());
    }
    Err(EndpointError::NotPrivate { path, uid, mode, is_directory, variable })
}

/// A bound socket with the lock that says its server lives.
///
/// Invariant E: whoever holds the lock `PATH.lock` owns the socket file `PATH`; it is removed and made
/// only under the lock. The kernel frees the lock when the holder dies, so a lock that can be had means
/// that the socket file beside it is stale. The lock's file has a byte from after the socket was made until before
/// it is removed, and is empty otherwise; so others see, without waiting, whether a holder that has no socket begins or
/// ends, or has lost it.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket file this listener made.
    identity: (u64, u64),
    lock: File,
}

impl Listener {
    /// Listens on `path`: refuses a live server's socket and anything that is no socket, takes the
    /// place of a dead server's.
    pub(crate) fn bind(path: &Path) -> Result<Listener, BindError> {
        let length = path.as_os_str().len();
        if length > SOCKET_PATH_BYTES {
            return Err(BindError::PathTooLong { path: path.to_owned(), length });
        }
        make_directory_of(path)?;
        let lock = take_lock(path)?;
        match bind_locked(path, &lock) {
            Ok((socket, identity)) => {
                Ok(Listener { socket, path: path.to_owned(), identity, lock })
            }
            Err(error) => {
                // A refusal leaves no file behind. Under the lock still, as in drop.
                let _ = fs::remove_file(lock_path(path));
                Err(error)
            }
        }
    }

    pub(crate) fn socket(&self) -> &UnixListener {
        &self.socket
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // One that stays full says at most that the socket was removed.
        let _ = self.lock.set_len(0);
        // Under the lock still (fields drop after this), so nobody else's file is removed.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
        let _ = fs::remove_file(lock_path(&self.path));
    }
}

/// With the lock held: the listening socket, and the device and inode of its file.
fn bind_locked(path: &Path, lock: &File) -> Result<(UnixListener, (u64, u64)), BindError> {
    // Of a server that was killed.
    lock.set_len(0).map_err(|error| bind_error(path, error))?;
    clear_stale(path)?;
    let socket = platform::bind_private(path).map_err(|error| bind_error(path, error))?;
    let made = fs::symlink_metadata(path).map_err(|error| bind_error(path, error))?;
    // A disk without room for it costs others the better sentence.
    let _ = lock.set_len(1);
    Ok((socket, identity(&made)))
}

fn identity(found: &fs::Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}

/// How often a lock is taken anew, at most, because the file it was on has lost its name.
const TRIES: u32 = 50;

/// Never waits: `bind` is called in async tasks, too.
fn take_lock(path: &Path) -> Result<File, BindError> {
    let lock_path = lock_path(path);
    let failed = |error| bind_error(path, error);
    for _ in 0..TRIES {
        let file = platform::open_lock_file(&lock_path).map_err(|error| lock_error(path, error))?;
        if !platform::try_lock(&file).map_err(failed)? {
            return Err(held(path, &file).unwrap_or_else(failed));
        }
        let held = file.metadata().map_err(failed)?;
        // A holder that ends removes the file: then the lock just taken is on a file without a name, and
        // the next try makes a fresh one.
        if fs::symlink_metadata(&lock_path).is_ok_and(|named| identity(&named) == identity(&held)) {
            return Ok(file);
        }
    }
    // So many have come and gone meanwhile.
    Err(BindError::InUse { path: path.to_owned() })
}

/// What it means that another process holds the lock.
fn held(path: &Path, lock: &File) -> io::Result<BindError> {
    let is_full = || Ok::<_, io::Error>(lock.metadata()?.len() > 0);
    // Full before and after: so the socket was not only not made yet, or removed by its server already.
    if !is_full()? || fs::symlink_metadata(path).is_ok() || !is_full()? {
        return Ok(BindError::InUse { path: path.to_owned() });
    }
    let process = platform::holder_of_lock(&lock.metadata()?);
    Ok(BindError::SocketRemoved { path: path.to_owned(), lock: lock_path(path), process })
}

/// With the lock held: removes a dead server's socket, refuses anything else that is there.
fn clear_stale(path: &Path) -> Result<(), BindError> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(bind_error(path, error)),
        Ok(found) => found,
    };
    if !found.file_type().is_socket() {
        return Err(BindError::FileInTheWay { path: path.to_owned() });
    }
    // A server of another kind may listen there without knowing the lock.
    match platform::connect(path) {
        Ok(_) => Err(BindError::InUse { path: path.to_owned() }),
        // Somebody listens there and is behind with accepting.
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            Err(BindError::InUse { path: path.to_owned() })
        }
        // A socket, but none that a server of ours has left.
        Err(error) if platform::is_other_socket_type(&error) => {
            Err(BindError::FileInTheWay { path: path.to_owned() })
        }
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| bind_error(path, error))
        }
        Err(error) => Err(bind_error(path, error)),
    }
}

/// Why the lock beside the socket could not be opened.
fn lock_error(path: &Path, source: io::Error) -> BindError {
    let lock = lock_path(path);
    // A link, a directory, or whatever else is not the file that a server makes.
    match fs::symlink_metadata(&lock) {
        Ok(found) if !found.file_type().is_file() => BindError::FileInTheWay { path: lock },
        _ => bind_error(path, source),
    }
}

fn bind_error(path: &Path, source: io::Error) -> BindError {
    let path = path.to_owned();
    match source.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
            BindError::NoDirectory { path: directory }
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            BindError::NotPermitted { path }
        }
        ErrorKind::AddrInUse => BindError::InUse { path },
        _ => BindError::Io { path, source },
    }
}

/// Refuses a path that no socket address can hold, before the system is asked.
pub(crate) fn check_connect_path(path: &Path) -> Result<(), ConnectError> {
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_BYTES {
        return Err(ConnectError::PathTooLong { path: path.to_owned(), length });
    }
    Ok(())
}

/// How long a client waits before it asks again whether the server accepts: the kernel tells nobody
/// that a queue of connections has room again.
pub(crate) const CONNECT_AGAIN: Duration = Duration::from_millis(2);

/// A connection to the server at `path`, or `None` while the queue of those it has not accepted yet is
/// full.
pub(crate) fn try_connect(path: &Path) -> Result<Option<UnixStream>, ConnectError> {
    let checked = check_directory_of(path);
    // One that cannot be looked at is mostly missing, as the socket in it: connecting says so.
    let checked = match checked {
        Err(EndpointError::Io { .. }) | Ok(()) => checked,
        Err(refused) => return Err(refused.into()),
    };
    match platform::connect(path) {
        Ok(socket) => {
            checked?;
            Ok(Some(socket))
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(connect_error(path, error)),
    }
}

/// Says what a failed `connect` to `path` means.
fn connect_error(path: &Path, source: io::Error) -> ConnectError {
    let is_socket = || fs::metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let path_buf = path.to_owned();
    match source.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => ConnectError::NotFound { path: path_buf },
        ErrorKind::PermissionDenied => ConnectError::NotPermitted { path: path_buf },
        _ if platform::is_other_socket_type(&source) => ConnectError::NotAStream { path: path_buf },
        ErrorKind::ConnectionRefused if is_socket() => ConnectError::Stale { path: path_buf },
        ErrorKind::ConnectionRefused => {
            ConnectError::NotASocket { path: path_buf, found: what_is(path) }
        }
        _ => ConnectError::Io(source),
    }
}

/// What stands at a path that is no socket, with its article.
fn what_is(path: &Path) -> &'static str {
    match fs::metadata(path).map(|found| found.file_type()) {
        Ok(kind) if kind.is_file() => "a regular file",
        Ok(kind) if kind.is_dir() => "a directory",
        Ok(kind) if kind.is_fifo() => "a FIFO",
        Ok(_) => "a device",
        Err(_) => "something else",
    }
}
