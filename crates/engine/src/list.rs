//! `fs.list.page`: the names of a tree, a page at a time.

use crate::cursor::{self, Fingerprint, Method};
use crate::error::WorkspaceError;
use crate::page::{Page, json_bytes};
use crate::path::reply_path;
use crate::types::{Entry, EntryKind, ListReply, ListRequest};
use crate::walk::{Walk, WalkEntry, WalkOptions};
use crate::workspace::Workspace;

impl Workspace {
    /// Lists a directory, or the tree below it, in sorted order.
    ///
    /// Names that `.gitignore`, `.ignore`, `.git/info/exclude` or the user's global ignore file
    /// ignore are left out, whether or not the root is a git repository. The start is listed even
    /// if a rule ignores it. The reply takes at most `reply_bytes_max` bytes as compact JSON.
    ///
    /// # Errors
    ///
    /// [`WorkspaceError`] of a path that is not a directory inside the root, a cursor of another
    /// request, or a bound that not even one entry fits.
    pub fn list(
        &self,
        request: &ListRequest,
        reply_bytes_max: usize,
    ) -> Result<ListReply, WorkspaceError> {
        let (mut walk, fingerprint) = self.begin_list(request, &|| false)?;
        let limit = request.limit.map_or(u32::MAX, std::num::NonZeroU32::get);
        let mut page = Page::begin(envelope_bytes(), reply_bytes_max, limit);
        let mut reply = ListReply { entries: Vec::new(), next: None, skipped_directories: 0 };
        let mut last_cursor = String::new();
        while let Some(found) = walk.next_entry()? {
            let entry = self.describe(&found);
            let cursor = cursor::encode(Method::List, fingerprint, &found.path, 0);
            if !page.admit(json_bytes(&entry), cursor.len()) {
                if page.is_empty() {
                    return Err(WorkspaceError::ReplyTooSmall { reply_bytes_max });
                }
                reply.next = Some(last_cursor);
                break;
            }
            reply.entries.push(entry);
            last_cursor = cursor;
        }
        reply.skipped_directories = walk.skipped_directories();
        if page.is_empty() && json_bytes(&reply) > reply_bytes_max {
            return Err(WorkspaceError::ReplyTooSmall { reply_bytes_max });
        }
        Ok(reply)
    }

    /// Lists as [`list`](Self::list) and gives every entry to `give` as it is found: `limit` and
    /// `cursor` do not count. When `give` returns false the listing ends as cancelled.
    ///
    /// `stop` is asked before each name; once it returns true the call ends with
    /// [`WorkspaceError::Cancelled`].
    ///
    /// # Errors
    ///
    /// As [`list`](Self::list).
    pub fn list_each(
        &self,
        request: &ListRequest,
        give: &mut dyn FnMut(Entry) -> bool,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), WorkspaceError> {
        let request = ListRequest { cursor: None, ..request.clone() };
        let mut walk = self.begin_list(&request, stop)?.0;
        while let Some(found) = walk.next_entry()? {
            if !give(self.describe(&found)) {
                return Err(WorkspaceError::Cancelled);
            }
        }
        Ok(())
    }

    fn begin_list<'a>(
        &'a self,
        request: &ListRequest,
        stop: &'a dyn Fn() -> bool,
    ) -> Result<(Walk<'a>, Fingerprint), WorkspaceError> {
        let start = self.path(&request.path)?;
        let flags = [u8::from(request.recursive), u8::from(request.hidden)];
        let fingerprint = Fingerprint::of(&[start.text().as_bytes(), &flags]);
        let from = match &request.cursor {
            None => None,
            Some(cursor) => Some(cursor::decode(Method::List, fingerprint, cursor)?),
        };
        let options =
            WalkOptions { recursive: request.recursive, hidden: request.hidden, inclusive: false };
        Ok((Walk::begin(self, &start, from.as_ref(), options, stop)?, fingerprint))
    }

    fn describe(&self, found: &WalkEntry) -> Entry {
        let (path, path_lossy) = reply_path(&found.path);
        let len_bytes = match found.kind {
            EntryKind::File => self.file_len_bytes(&found.path),
            EntryKind::Directory | EntryKind::Symlink | EntryKind::Other => None,
        };
        Entry { path, kind: found.kind, len_bytes, path_lossy }
    }
}

/// What a reply takes without entries and with an empty cursor, at most.
fn envelope_bytes() -> usize {
    json_bytes(&ListReply {
        entries: Vec::new(),
        next: Some(String::new()),
        skipped_directories: u64::MAX,
    })
}
