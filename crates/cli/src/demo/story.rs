//! What an editor does with its engine: lists, reads, searches, and is refused.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lapwing::{CallError, ClientOptions, Code, IpcClient};
use lapwing_engine::{
    Encoding, Entry, EntryKind, FS_LIST_PAGE, FS_READ, FS_SEARCH_PAGE, ListReply, ListRequest,
    ReadReply, ReadRequest, SearchReply, SearchRequest,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Screen;
use crate::exit::CallFailed;
use crate::output::{counted, duration, grouped, plain};

/// How long listing and searching may take: the directory may be a whole disk.
const STEP_BOUND: Duration = Duration::from_secs(3);

/// The largest file that is read, in bytes.
const READ_BYTES_MAX: u64 = 1024 * 1024;

/// Matching lines that are shown.
const MATCHES_SHOWN: usize = 3;

/// Letters of a matching line that are shown.
const TEXT_SHOWN: usize = 56;

/// Does it all, one line or two for each step.
pub(super) async fn tell(
    screen: &mut Screen,
    socket: &Path,
    root: &Path,
    pattern: &str,
) -> anyhow::Result<()> {
    let options = ClientOptions { drain: Duration::from_millis(500), ..ClientOptions::default() };
    let client = IpcClient::connect_with(socket, options).await?;
    let agreed = client.agreement();
    let way = if agreed.shared_memory { "shared memory" } else { "the socket" };
    screen.line(
        "editor",
        format_args!(
            "process {} is connected through {way}, each frame guarded by {}",
            std::process::id(),
            agreed.checksum
        ),
    )?;
    let editor = Editor { client, root };
    let entries = editor.list(screen).await?;
    editor.read(screen, &entries).await?;
    editor.search(screen, pattern).await?;
    editor.leave_root(screen).await?;
    editor.client.disconnect().await;
    Ok(())
}

struct Editor<'a> {
    client: IpcClient,
    root: &'a Path,
}

/// Nanoseconds since then.
fn since(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

impl Editor<'_> {
    async fn call<R: DeserializeOwned>(
        &self,
        (kind, name): (u16, &str),
        request: &impl Serialize,
    ) -> anyhow::Result<R> {
        let request = serde_json::to_vec(request).context("the request is no JSON")?;
        let reply = self.client.call_raw(kind, &request).await;
        let reply = reply.map_err(|source| CallFailed {
            method: name.to_owned(),
            source,
            is_described: false,
        })?;
        serde_json::from_slice(&reply).with_context(|| format!("the reply of {name} is no JSON"))
    }

    async fn list(&self, screen: &mut Screen) -> anyhow::Result<Vec<Entry>> {
        let begun = Instant::now();
        let (mut entries, mut replies, mut more) = (Vec::new(), 0, true);
        let mut request = ListRequest::default();
        while more && begun.elapsed() < STEP_BOUND {
            let left = STEP_BOUND.saturating_sub(begun.elapsed());
            let reply = tokio::time::timeout(left, self.call(FS_LIST_PAGE, &request)).await;
            let Ok(reply) = reply else { break };
            let ListReply { entries: page, next, .. } = reply?;
            entries.extend(page);
            replies += 1;
            more = next.is_some();
            request.cursor = next;
        }
        let of = |kind| entries.iter().filter(|entry| entry.kind == kind).count() as u64;
        let bytes = entries.iter().filter_map(|entry| entry.len_bytes).sum::<u64>();
        screen.line(
            "list",
            format_args!(
                "fs.list.page: {} in {}, {} bytes; {}, {}{}",
                counted(of(EntryKind::File), "file", "files"),
                counted(of(EntryKind::Directory), "directory", "directories"),
                grouped(bytes),
                counted(replies, "reply", "replies"),
                duration(since(begun)),
                if more { ", stopped there: there are more" } else { "" }
            ),
        )?;
        Ok(entries)
    }

    /// Reads the largest file that is not too large, and compares it with what is on the disk.
    async fn read(&self, screen: &mut Screen, entries: &[Entry]) -> anyhow::Result<()> {
        let readable = entries.iter().filter(|entry| {
            entry.kind == EntryKind::File
                && !entry.path_lossy
                && entry.len_bytes.is_some_and(|len| len <= READ_BYTES_MAX)
        });
        let Some(file) = readable.max_by_key(|entry| entry.len_bytes) else {
            screen.line("read", "fs.read: there is no file here to read")?;
            return Ok(());
        };
        // A file that is being written may change between the two looks: then look again.
        for _ in 0..3 {
            let begun = Instant::now();
            let (bytes, replies) = self.read_whole(&file.path).await?;
            let took = since(begun);
            let direct = fs::read(self.root.join(&file.path))
                .with_context(|| format!("could not read {} directly", plain(&file.path)))?;
            if crc32(&bytes) != crc32(&direct) || bytes.len() != direct.len() {
                continue;
            }
            screen.line("read", format_args!("fs.read {}", plain(&file.path)))?;
            screen.more(format_args!(
                "{}, CRC-32 {:08x}; {}, {}",
                counted(bytes.len() as u64, "byte", "bytes"),
                crc32(&bytes),
                counted(replies, "reply", "replies"),
                duration(took)
            ))?;
            screen.more(format_args!(
                "read directly by the editor: {}, CRC-32 {:08x}, the same",
                counted(direct.len() as u64, "byte", "bytes"),
                crc32(&direct)
            ))?;
            return Ok(());
        }
        bail!("the engine's bytes of {} are not the file's", plain(&file.path))
    }

    async fn read_whole(&self, path: &str) -> anyhow::Result<(Vec<u8>, u64)> {
        let (mut bytes, mut replies) = (Vec::new(), 0);
        loop {
            let request = ReadRequest {
                path: path.to_owned(),
                offset_bytes: bytes.len() as u64,
                len_bytes: None,
            };
            let reply: ReadReply = self.call(FS_READ, &request).await?;
            match reply.encoding {
                Encoding::Utf8 => bytes.extend_from_slice(reply.content.as_bytes()),
                Encoding::Base64 => bytes.extend(STANDARD.decode(&reply.content)?),
            }
            replies += 1;
            if reply.end {
                return Ok((bytes, replies));
            }
            ensure!(reply.len_bytes > 0, "the engine's answer to fs.read makes no progress");
        }
    }

    async fn search(&self, screen: &mut Screen, pattern: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        let request = SearchRequest::pattern(pattern);
        let reply = tokio::time::timeout(STEP_BOUND, self.call(FS_SEARCH_PAGE, &request)).await;
        let pattern = plain(pattern);
        let Ok(reply) = reply else {
            screen.line(
                "search",
                format_args!("fs.search.page {pattern}: given up after {}", duration(since(begun))),
            )?;
            return Ok(());
        };
        let reply: SearchReply = reply?;
        let files: BTreeSet<_> = reply.matches.iter().map(|found| &found.path).collect();
        screen.line(
            "search",
            format_args!(
                "fs.search.page {pattern}: {}{} in {} of {} searched, {}",
                if reply.truncated { "the first " } else { "" },
                counted(reply.matches.len() as u64, "line", "lines"),
                counted(files.len() as u64, "file", "files"),
                grouped(reply.files_searched),
                duration(since(begun))
            ),
        )?;
        for found in reply.matches.iter().take(MATCHES_SHOWN) {
            let text: String = plain(found.text.trim()).chars().take(TEXT_SHOWN).collect();
            screen.more(format_args!("{}:{}: {text}", plain(&found.path), found.line_number))?;
        }
        Ok(())
    }

    /// Asks for something that the engine must refuse.
    async fn leave_root(&self, screen: &mut Screen) -> anyhow::Result<()> {
        let request = r#"{"path": "../secret"}"#;
        match self.client.call_raw(FS_READ.0, request.as_bytes()).await {
            Err(CallError::Status(status)) if status.code == Code::PermissionDenied => {
                screen.line("refuse", format_args!("fs.read ../secret: {}", status.code))?;
                screen.more(plain(&status.message))?;
                Ok(())
            }
            Err(source) => {
                bail!(CallFailed { method: FS_READ.1.to_owned(), source, is_described: false })
            }
            Ok(_) => bail!("the engine read a file outside its root"),
        }
    }
}

/// The CRC-32 of zip, gzip and zlib.
fn crc32(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, bytes)
}
