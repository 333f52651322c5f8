//! The directories that a watch is on, by the names under which they were told.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use crate::workspace::Identity;

/// Which directories are watched, what each is called, and of which the reader knows what is in them.
///
/// Names are those of the events up to now, not those of the tree: a directory that an event says was
/// renamed is held on under its next name, with its watch, and so what happened in it before and since is
/// told under the right names. A walk may meet a directory under its next name before; it is held twice
/// then, until the event comes.
#[derive(Debug, Default)]
pub(crate) struct HeldDirectories {
    /// From the handles, which the events repeat, to paths in the workspace.
    handles: HashMap<PathBuf, PathBuf>,
    /// In order, so that what is below a directory stands together.
    held: BTreeMap<PathBuf, Held>,
    /// The system has one watch of a directory, whatever it was asked for, and tells of it through the
    /// handle that it was given last.
    names: HashMap<Identity, Vec<PathBuf>>,
}

#[derive(Debug)]
struct Held {
    identity: Identity,
    /// More than one where the watch was asked for again.
    handles: Vec<PathBuf>,
    /// Whether a walk has read this very directory since it is watched: then the reader was told of what
    /// is in it, or lists it after the first item.
    is_read: bool,
}

impl HeldDirectories {
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    /// The path of the directory that was watched through this handle.
    pub(crate) fn path_of_handle(&self, handle: &Path) -> Option<&Path> {
        self.handles.get(handle).map(PathBuf::as_path)
    }

    pub(crate) fn identity_at(&self, path: &Path) -> Option<Identity> {
        self.held.get(path).map(|held| held.identity)
    }

    pub(crate) fn is_read(&self, path: &Path) -> bool {
        self.held.get(path).is_some_and(|held| held.is_read)
    }

    pub(crate) fn set_read(&mut self, path: &Path) {
        if let Some(held) = self.held.get_mut(path) {
            held.is_read = true;
        }
    }

    /// What is in the directories at and below a path is to be told anew.
    pub(crate) fn set_unread(&mut self, path: &Path) {
        for below in self.at_and_below(path) {
            if let Some(held) = self.held.get_mut(&below) {
                held.is_read = false;
            }
        }
    }

    /// Holds a directory under a path, where no other is held, through one more handle. It is unread then.
    pub(crate) fn hold(&mut self, path: &Path, identity: Identity, handle: PathBuf) {
        self.handles.insert(handle.clone(), path.to_owned());
        let held = self.held.entry(path.to_owned()).or_insert_with(|| {
            self.names.entry(identity).or_default().push(path.to_owned());
            Held { identity, handles: Vec::new(), is_read: false }
        });
        held.handles.push(handle);
        held.is_read = false;
    }

    /// Holds what is held at and below a path under another. The reader knows there what it knew here.
    /// Where a name is held for another directory already, that one stays: false then, and it is not clear
    /// which events are about which.
    pub(crate) fn rename(&mut self, from: &Path, to: &Path) -> bool {
        let mut is_clear = true;
        for before in self.at_and_below(from) {
            let (Some(moved), Ok(rest)) = (self.held.remove(&before), before.strip_prefix(from))
            else {
                continue;
            };
            let path = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
            for handle in &moved.handles {
                self.handles.insert(handle.clone(), path.clone());
            }
            let names = self.names.entry(moved.identity).or_default();
            names.retain(|name| *name != before);
            if let Some(there) = self.held.get_mut(&path) {
                is_clear &= there.identity == moved.identity;
                there.is_read = moved.is_read;
                there.handles.extend(moved.handles);
            } else {
                names.push(path.clone());
                self.held.insert(path, moved);
            }
        }
        is_clear
    }

    /// Holds nothing at and below a path any more. The handles whose watches are to end.
    pub(crate) fn remove(&mut self, path: &Path) -> Vec<PathBuf> {
        let mut ended = Vec::new();
        for below in self.at_and_below(path) {
            let Some(held) = self.held.remove(&below) else { continue };
            let mut names = self.names.remove(&held.identity).unwrap_or_default();
            names.retain(|name| *name != below);
            let other = names.first().and_then(|other| self.held.get_mut(other).zip(Some(other)));
            if let Some((other, name)) = other {
                for handle in &held.handles {
                    self.handles.insert(handle.clone(), name.clone());
                }
                other.handles.extend(held.handles);
                self.names.insert(held.identity, names);
            } else {
                for handle in &held.handles {
                    self.handles.remove(handle);
                }
                ended.extend(held.handles);
            }
        }
        ended
    }

    fn at_and_below(&self, path: &Path) -> Vec<PathBuf> {
        let below = self.held.range(path.to_owned()..).map(|(below, _)| below);
        below.take_while(|below| below.starts_with(path)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(paths: &[&str]) -> HeldDirectories {
        let mut held = HeldDirectories::default();
        for (number, path) in paths.iter().enumerate() {
            let handle = PathBuf::from(format!("handle {path}"));
            held.hold(Path::new(path), (0, number as u64), handle);
            held.set_read(Path::new(path));
        }
        held
    }

    #[test]
    fn renamed_directory_takes_its_watch_and_all_below_along() {
        let mut held = held(&["p", "p/q", "pq"]);
        assert!(held.rename(Path::new("p"), Path::new("z")));
        assert_eq!(held.path_of_handle(Path::new("handle p/q")), Some(Path::new("z/q")));
        assert!(held.is_read(Path::new("z/q")) && held.identity_at(Path::new("p")).is_none());
        assert_eq!(held.path_of_handle(Path::new("handle pq")), Some(Path::new("pq")));
        held.set_unread(Path::new("z"));
        assert!(!held.is_read(Path::new("z/q")) && held.is_read(Path::new("pq")));
        assert_eq!(held.remove(Path::new("z")).len(), 2);
        assert_eq!((held.len(), held.handles.len(), held.names.len()), (1, 1, 1));
    }

    #[test]
    fn directory_that_is_held_twice_keeps_its_watch_until_it_is_held_no_more() {
        let paths = |held: &HeldDirectories| {
            let path = |handle| held.path_of_handle(Path::new(handle)).map(Path::to_owned);
            [path("handle p"), path("second")]
        };
        let mut met_before = held(&["p", "n"]);
        met_before.hold(Path::new("n/p"), (0, 0), PathBuf::from("second"));
        assert_eq!(paths(&met_before), [Some("p".into()), Some("n/p".into())]);
        assert!(!met_before.is_read(Path::new("n/p")));
        assert!(met_before.rename(Path::new("p"), Path::new("n/p")));
        assert_eq!(paths(&met_before), [Some("n/p".into()), Some("n/p".into())]);
        assert!(met_before.is_read(Path::new("n/p")), "the reader moves what it knew");
        assert_eq!(met_before.remove(Path::new("n/p")).len(), 2);

        let mut left = held(&["p", "n"]);
        left.hold(Path::new("n/p"), (0, 0), PathBuf::from("second"));
        assert_eq!(left.remove(Path::new("p")), Vec::<PathBuf>::new());
        assert_eq!(paths(&left), [Some("n/p".into()), Some("n/p".into())]);
        assert_eq!(left.remove(Path::new("n/p")).len(), 2);

        let mut unclear = held(&["p", "p/q", "z/q"]);
        assert!(!unclear.rename(Path::new("p"), Path::new("z")));
    }
}
