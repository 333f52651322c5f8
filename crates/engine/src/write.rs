//! `fs.write`: a file as a whole, replaced in one step.

use lapwing::{CallOptions, Metadata};

use crate::REQUEST_KEY;
use crate::error::WorkspaceError;
use crate::replace::{Beside, Directories, MadeDirectories, sha256};
use crate::types::{WriteMode, WriteReply, WriteRequest};
use crate::workspace::Workspace;

impl Workspace {
    /// Writes a whole file: into a file of its own in the same directory, onto the disk, and then
    /// under the name. Whoever opens the name meanwhile finds the old content or the new, and a crash
    /// leaves one of them.
    ///
    /// The permissions of the old file are kept; hard links to it keep the old content, and its owner
    /// becomes the engine's user. A process that is killed between two system calls at the very end may leave
    /// a file whose name begins with a dot and holds `.lapwing-`; midway, only where the file system has no
    /// files without a name.
    ///
    /// With `expected_sha256`, calls to one workspace never overwrite what they have not seen. Of other
    /// programs a change is noticed up to the last moment before the name changes hands.
    ///
    /// # Errors
    ///
    /// [`ReadOnly`](WorkspaceError::ReadOnly) unless the workspace is [`writable`](Self::writable);
    /// [`Exists`](WorkspaceError::Exists) or [`NotFound`](WorkspaceError::NotFound) against `mode`;
    /// [`Changed`](WorkspaceError::Changed) against `expected_sha256`; and those of a path that is not a
    /// regular file inside the root. The file is as it was then.
    pub fn write(
        &self,
        request: &WriteRequest,
        content: &[u8],
    ) -> Result<WriteReply, WorkspaceError> {
        let _writing = self.begin_writing()?;
        let path = self.file_path(&request.path)?;
        let expected = request.expected_sha256.as_deref().map(checked).transpose()?;
        if expected.is_some() && request.mode == WriteMode::Create {
            let problem =
                "`mode` says \"create\", and `expected_sha256` is of a file that is there";
            return Err(WorkspaceError::BadRequest { problem: problem.to_owned() });
        }
        let must_exist = expected.is_some() || request.mode == WriteMode::Replace;
        let mut made = MadeDirectories::none(self);
        let directories = match request.create_directories && !must_exist {
            true => Directories::Make(&mut made),
            false => Directories::MustExist,
        };
        let place = self.place(&path, directories).map_err(|error| match error {
            // The file itself may be missing.
            WorkspaceError::NotFound { path } if !must_exist => {
                WorkspaceError::NoDirectory { path }
            }
            error => error,
        })?;
        let created = !place.exists();
        if created && must_exist {
            return Err(WorkspaceError::NotFound { path: path.text().to_owned() });
        }
        if !created && request.mode == WriteMode::Create {
            return Err(WorkspaceError::Exists { path: path.text().to_owned() });
        }
        if let Some(expected) = &expected {
            let found = place.sha256()?;
            if *expected != found {
                return Err(place.changed(Some(found)));
            }
        }
        let prepared = place.prepare(content, None, Beside::Unnamed)?;
        if expected.is_some() && !place.is_unchanged()? {
            return Err(place.changed(None));
        }
        prepared.commit()?;
        made.keep();
        if request.durable {
            place.sync_directory()?;
        }
        Ok(WriteReply {
            path: path.text().to_owned(),
            len_bytes: content.len() as u64,
            created,
            sha256: sha256(content),
        })
    }
}

fn checked(sha256: &str) -> Result<String, WorkspaceError> {
    if sha256.len() != 64 || !sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let problem = "`expected_sha256` must be 64 hexadecimal digits".to_owned();
        return Err(WorkspaceError::BadRequest { problem });
    }
    Ok(sha256.to_ascii_lowercase())
}

impl WriteRequest {
    /// The options of a call of [`FS_WRITE`](crate::FS_WRITE) that carry this request.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(client: lapwing::IpcClient) -> Result<(), lapwing::CallError> {
    /// use lapwing_engine::{FS_WRITE, WriteRequest};
    ///
    /// let options = WriteRequest::path("notes.txt").options();
    /// let reply = client.call_with(FS_WRITE, &b"remember".to_vec().into(), &options).await?;
    /// assert_eq!(reply.len_bytes, 8);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn options(&self) -> CallOptions {
        let json = serde_json::to_vec(self).unwrap_or_default();
        CallOptions::default().metadata(Metadata::from([(REQUEST_KEY, json)]))
    }
}
