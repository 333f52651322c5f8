//! How replies are printed.

use crate::{json, output};

/// How JSON is printed on a terminal. Elsewhere it is one line.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    Indented,
    Line,
    /// Not even a line end is added: bytes are no JSON, whatever they look like.
    AsIs,
}

/// Prints a reply, or an item of one.
pub(super) fn print(reply: &[u8], layout: Layout) -> anyhow::Result<()> {
    if layout == Layout::AsIs && !output::is_terminal() {
        return Ok(output::raw(&[reply])?);
    }
    let text = std::str::from_utf8(reply).ok();
    let json = text.filter(|_| json::check(reply).is_ok());
    match (json, text) {
        (Some(json), _) if output::is_terminal() => {
            let text = match layout {
                Layout::Indented => json::pretty(json),
                Layout::Line | Layout::AsIs => json::escaped(json),
            };
            output::raw(&[text.as_bytes(), b"\n"])?;
        }
        (Some(json), _) => output::raw(&[json.as_bytes(), b"\n"])?,
        (None, _) if !output::is_terminal() => output::raw(&[reply])?,
        (None, Some(text)) => {
            // Line by line, so that nothing in it steers the terminal.
            let lines: Vec<_> = text.lines().map(output::plain).collect();
            output::raw(&[lines.join("\n").as_bytes(), b"\n"])?;
        }
        (None, None) => {
            let count = output::counted(reply.len() as u64, "byte", "bytes");
            let line =
                format!("({count} that are not text; send the output to a file to have them)");
            output::raw(&[line.as_bytes(), b"\n"])?;
        }
    }
    Ok(())
}
