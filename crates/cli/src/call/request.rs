//! Where a request comes from: the command line, a file, standard input.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read};

use super::expected::Expected;
use crate::exit::InputError;
use crate::json;

/// The longest request that is read, in bytes: no server can be set to take a longer one.
const REQUEST_BYTES_MAX: u64 = 1 << 30;

/// What a request, or an item of one, must be.
pub(super) enum Form {
    /// One JSON value.
    Json(Json),
    /// Anything.
    Bytes,
}

/// What is known of a request in JSON.
pub(super) struct Json {
    /// Whether it is the method's own codec.
    pub(super) own: bool,
    /// What the method takes, where its server says it.
    pub(super) expected: Option<Expected>,
}

impl Json {
    /// Refuses what is not of the method's type. What is longer than `bytes_max` is not sent anyway.
    fn check_type(&self, value: &[u8], bytes_max: usize, from: &str) -> Result<(), InputError> {
        let expected = self.expected.as_ref().filter(|_| value.len() <= bytes_max);
        match expected.and_then(|expected| expected.mismatch(value)) {
            Some(mismatch) => Err(InputError(format!("{from} {mismatch}"))),
            None => Ok(()),
        }
    }
}

/// What the command line says the request is.
pub(super) enum Source {
    Nothing,
    StandardInput,
    File(String),
    Text(String),
}

impl Source {
    pub(super) fn of(request: Option<&str>) -> Source {
        match request {
            None => Source::Nothing,
            Some("-") => Source::StandardInput,
            Some(text) => match text.strip_prefix('@') {
                Some(file) => Source::File(file.to_owned()),
                None => Source::Text(text.to_owned()),
            },
        }
    }

    fn name(&self) -> &str {
        match self {
            Source::Nothing | Source::StandardInput => "standard input",
            Source::File(file) => file,
            Source::Text(_) => "the request",
        }
    }

    /// Whether a shell may have taken quotes away: in JSON names and strings have some.
    fn lost_its_quotes(&self) -> bool {
        matches!(self, Source::Text(text) if text.contains(char::is_alphabetic) && !text.contains('"'))
    }

    /// All of it as one request, of at most `bytes_max` bytes if it is to be sent. Bytes have to be given: an
    /// empty file is not written by mistake.
    pub(super) fn whole(&self, form: &Form, bytes_max: usize) -> Result<Vec<u8>, InputError> {
        let bytes = match self {
            Source::Nothing if matches!(form, Form::Bytes) => {
                let message = "no request is given, and it is bytes: give it, @FILE, - for standard input, or '' \
                               for an empty one";
                return Err(InputError(message.to_owned()));
            }
            Source::Nothing => return Ok(Vec::new()),
            Source::StandardInput => read(io::stdin().lock()),
            Source::File(file) => open(file).map(read)?,
            Source::Text(text) => Ok(text.as_bytes().to_vec()),
        };
        let bytes = bytes.map_err(|error| unreadable(self.name(), &error))?;
        if let Form::Json(json) = form
            && !bytes.is_empty()
        {
            json::check(&bytes).map_err(|error| {
                let (source, field) = (self.name(), field_of(&bytes, &error));
                let mend = match json.own {
                    _ if self.lost_its_quotes() => {
                        "a shell takes quotes away: put the request in single quotes, as in '{\"a\": \"b\"}'"
                    }
                    _ if error.to_string().starts_with("key must be a string") => {
                        "put names in double quotes, as in {\"a\": 1}"
                    }
                    true => "mend it",
                    false => "mend it, or send bytes of the method's own codec with --raw",
                };
                InputError(format!("{source} is not JSON: {error}{field}; {mend}"))
            })?;
            json.check_type(&bytes, bytes_max, self.name())?;
        }
        Ok(bytes)
    }

    /// Each line of it as an item of at most `bytes_max` bytes. Without a source that is standard input.
    pub(super) fn items(self, form: Form, bytes_max: usize) -> anyhow::Result<Items> {
        let name = self.name().to_owned();
        let lines: Box<dyn BufRead + Send> = match self {
            Source::Nothing | Source::StandardInput => Box::new(BufReader::new(io::stdin())),
            Source::File(file) => Box::new(BufReader::new(open(&file)?)),
            Source::Text(text) => Box::new(Cursor::new(text.into_bytes())),
        };
        Ok(Items { lines, name, form, bytes_max, line: 0 })
    }
}

/// Which field a fault is in, as a part of a sentence.
fn field_of(text: &[u8], error: &serde_json::Error) -> String {
    json::field_of(text, error).map(|field| format!(", in {field}")).unwrap_or_default()
}

fn open(file: &str) -> Result<File, InputError> {
    if file.is_empty() {
        let message = "no file is named behind the @: give @FILE, or - for standard input";
        return Err(InputError(message.to_owned()));
    }
    File::open(file).map_err(|error| unreadable(file, &error))
}

fn unreadable(source: &str, error: &io::Error) -> InputError {
    let why = match error.kind() {
        ErrorKind::NotFound => "there is no such file; check the path behind the @".to_owned(),
        ErrorKind::IsADirectory => "it is a directory; name a file".to_owned(),
        ErrorKind::PermissionDenied => "you have no permission; change its modes".to_owned(),
        _ => error.to_string(),
    };
    InputError(format!("cannot read {source}: {why}"))
}

fn read(source: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(REQUEST_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > REQUEST_BYTES_MAX {
        return Err(io::Error::other("it is longer than 1 GiB, which no server takes"));
    }
    Ok(bytes)
}

/// The lines of a source, as the items of a request. Blank ones are none where items are JSON. Items of bytes are
/// lines with their ends, and parts of what is longer, so that together they are the source as it is.
pub(super) struct Items {
    lines: Box<dyn BufRead + Send>,
    name: String,
    form: Form,
    bytes_max: usize,
    /// How many lines were read.
    line: u64,
}

impl Items {
    /// The next item, or `None` after the last.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        loop {
            if matches!(self.form, Form::Bytes) {
                let mut item = Vec::new();
                self.read_line(self.bytes_max as u64, &mut item)?;
                return Ok(Some(item).filter(|item| !item.is_empty()));
            }
            let Some(item) = self.next_line()? else { return Ok(None) };
            if item.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            json::check(&item).map_err(|error| self.not_json(&item, &error))?;
            if let Form::Json(json) = &self.form {
                let from = format!("line {} of {}", self.line, self.name);
                json.check_type(&item, self.bytes_max, &from)?;
            }
            return Ok(Some(item));
        }
    }

    fn next_line(&mut self) -> Result<Option<Vec<u8>>, InputError> {
        let mut line = Vec::new();
        // With its end a line may be two bytes longer than what is sent of it.
        let limit = self.bytes_max as u64 + 2;
        if self.read_line(limit + 1, &mut line)? == 0 {
            return Ok(None);
        }
        self.line += 1;
        if line.ends_with(b"\n") {
            line.pop();
            if line.ends_with(b"\r") {
                line.pop();
            }
        }
        if line.len() > self.bytes_max {
            let (line, name, max) = (self.line, &self.name, self.bytes_max);
            let message =
                format!("line {line} of {name} is longer than this connection takes ({max} bytes)");
            return Err(InputError(message));
        }
        Ok(Some(line))
    }

    /// Up to a line's end, and `limit` bytes at most.
    fn read_line(&mut self, limit: u64, line: &mut Vec<u8>) -> Result<usize, InputError> {
        let read = (&mut self.lines).take(limit).read_until(b'\n', line);
        read.map_err(|error| unreadable(&self.name, &error))
    }

    /// The fault's place in the line; the line itself is the input's.
    fn not_json(&self, item: &[u8], error: &serde_json::Error) -> InputError {
        let field = field_of(item, error);
        let (line, name, column) = (self.line, &self.name, error.column());
        let what = error.to_string();
        let place = format!(" at line {} column {column}", error.line());
        let what = what.strip_suffix(&place).unwrap_or(&what);
        InputError(format!(
            "line {line} of {name} is not JSON: {what} at column {column}{field}; each line is one item"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: Form = Form::Json(Json { own: true, expected: None });

    fn items(text: &str, form: Form, bytes_max: usize) -> Items {
        Source::of(Some(text)).items(form, bytes_max).unwrap()
    }

    #[test]
    fn lines_are_items_and_blank_ones_are_none() {
        let mut json = items("1\n\n {\"a\": 2} \r\n\"three\"", JSON, 100);
        let mut next = || json.next().unwrap().map(|item| String::from_utf8(item).unwrap());
        assert_eq!(next().as_deref(), Some("1"));
        assert_eq!(next().as_deref(), Some(" {\"a\": 2} "));
        assert_eq!(next().as_deref(), Some("\"three\""));
        assert_eq!(next(), None);
    }

    #[test]
    fn items_of_bytes_are_the_source_as_it_is() {
        let mut bytes = items("a\r\n\n12345678\nb", Form::Bytes, 8);
        let all = std::iter::from_fn(|| bytes.next().unwrap());
        let all: Vec<_> = all.map(|item| String::from_utf8(item).unwrap()).collect();
        assert_eq!(all, ["a\r\n", "\n", "12345678", "\n", "b"]);
        assert!(items("", Form::Bytes, 8).next().unwrap().is_none());
    }

    #[test]
    fn line_that_is_not_json_is_told_by_line_and_column() {
        let mut items = items("1\n\n{\"a\": x}\n", JSON, 100);
        items.next().unwrap();
        assert_eq!(
            items.next().unwrap_err().to_string(),
            "line 3 of the request is not JSON: expected value at column 7, in a; each line is one item"
        );
    }

    #[test]
    fn line_longer_than_the_connection_takes_is_refused_and_one_as_long_is_not() {
        let mut lines = items("12345678\r\n12345678\n123456789\n1", JSON, 8);
        assert_eq!(lines.next().unwrap().unwrap(), b"12345678");
        assert_eq!(lines.next().unwrap().unwrap(), b"12345678");
        let error = lines.next().unwrap_err().to_string();
        assert_eq!(error, "line 3 of the request is longer than this connection takes (8 bytes)");
        // What comes of one that never ends is bounded, too.
        let endless = Box::new(BufReader::new(io::repeat(b'1')));
        let mut endless = Items { lines: endless, ..items("", JSON, 1 << 20) };
        assert!(endless.next().unwrap_err().to_string().contains("line 1 of"));
    }
}
