//! How values become payloads: raw bytes, postcard, JSON.

mod bounds;

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_path_to_error::{Path, Segment};

use crate::codec::bounds::Bounds;
use crate::payload::Payload;

/// Writes values of `T` as payloads.
pub trait Encode<T> {
    /// Appends `value` to `into`.
    ///
    /// # Errors
    ///
    /// [`CodecError`] for a value that this format cannot say.
    fn encode(value: &T, into: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Appends `value` to `into` as JSON, for a [call in JSON](crate::CallOptions::json). A codec that has
    /// no such form writes its own, as this does unless it is said otherwise.
    ///
    /// # Errors
    ///
    /// As [`Encode::encode`].
    fn encode_json(value: &T, into: &mut Vec<u8>) -> Result<(), CodecError> {
        Self::encode(value, into)
    }
}

/// Reads values of `T` from payloads.
pub trait Decode<T> {
    /// The value that `payload` says.
    ///
    /// # Errors
    ///
    /// [`CodecError`] names the field where there is one.
    fn decode(payload: Payload) -> Result<T, CodecError>;

    /// The value that `payload` says in JSON, in a [call in JSON](crate::CallOptions::json). A codec that
    /// has no such form reads its own, as this does unless it is said otherwise.
    ///
    /// # Errors
    ///
    /// As [`Decode::decode`].
    fn decode_json(payload: Payload) -> Result<T, CodecError> {
        Self::decode(payload)
    }
}

/// How the payloads of one call are written.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) enum Form {
    /// As the method's codec does.
    #[default]
    Own,
    /// As JSON, where that codec can.
    Json,
}

impl Form {
    #[inline]
    pub(crate) fn encode<T, C: Encode<T>>(
        self,
        value: &T,
        into: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        match self {
            Form::Own => C::encode(value, into),
            Form::Json => C::encode_json(value, into),
        }
    }

    #[inline]
    pub(crate) fn decode<T, C: Decode<T>>(self, payload: Payload) -> Result<T, CodecError> {
        match self {
            Form::Own => C::decode(payload),
            Form::Json => C::decode_json(payload),
        }
    }
}

/// A codec's name, as `describe` prints it.
pub trait Codec: 'static {
    /// `raw`, `postcard`, `json`, or another of at most 32 letters, digits, `.`, `_` and `-`.
    const NAME: &'static str;
}

/// A payload that cannot be read as its type, or a value that cannot be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CodecError {
    /// The field, as `matches[3].line`, or in postcard, which writes no names, the fields' places, as
    /// `[0][3][1]`; empty for the whole.
    pub path: String,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "at {}: ", self.path)?;
        }
        f.write_str(&self.what)
    }
}

impl std::error::Error for CodecError {}

/// The longest [`CodecError::path`] and [`CodecError::what`], in characters: the one may hold keys of a
/// map, the other repeat the value that is wrong.
const TEXT_CHARS: usize = 200;

fn clip(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(TEXT_CHARS) {
        text.truncate(end);
        text.push('…');
    }
    text
}

impl CodecError {
    fn new(path: String, what: impl fmt::Display) -> CodecError {
        CodecError { path: clip(path), what: clip(what.to_string()) }
    }

    fn whole(what: impl fmt::Display) -> CodecError {
        CodecError::new(String::new(), what)
    }

    fn at<E: fmt::Display>(error: &serde_path_to_error::Error<E>) -> CodecError {
        CodecError::new(place(error.path()), error.inner())
    }
}

/// The path to the last part that has a name. A key that is no text, or cannot be read, has none.
fn place(path: &Path) -> String {
    let nameless = path.iter().rev().take_while(|part| matches!(part, Segment::Unknown)).count();
    if nameless == path.iter().len() {
        return String::new();
    }
    let mut place = path.to_string();
    // Each is a question mark, with a dot before it.
    place.truncate(place.len() - nameless * ".?".len());
    place
}

/// Bytes as they are.
#[derive(Clone, Copy, Debug)]
pub enum Raw {}

/// [postcard](https://postcard.jamesmunns.com): compact, for Rust on both sides. The default.
///
/// What is read may be nested 128 levels deep: each option, newtype, sequence, tuple, struct, map and enum is
/// one, or as many as its value has 512 bytes in memory, up to 8. So what is read of a type that contains itself fits the
/// stack of a thread, 2 MiB, also without optimization, if its values have 4 KiB at most; keep what is longer in a box of
/// its own. Its sequences and maps may have 4096 elements more than the payload has bytes: those of a `Vec<()>`
/// take none.
#[derive(Clone, Copy, Debug)]
pub enum Postcard {}

/// JSON, for bridges, scripts and people. An empty payload is read as `{}`, or as `null` where that is no
/// value of the type.
#[derive(Clone, Copy, Debug)]
pub enum Json {}

impl Codec for Raw {
    const NAME: &'static str = "raw";
}

impl Codec for Postcard {
    const NAME: &'static str = "postcard";
}

impl Codec for Json {
    const NAME: &'static str = "json";
}

impl<T: AsRef<[u8]>> Encode<T> for Raw {
    #[inline]
    fn encode(value: &T, into: &mut Vec<u8>) -> Result<(), CodecError> {
        into.extend_from_slice(value.as_ref());
        Ok(())
    }
}

impl<T: From<Payload>> Decode<T> for Raw {
    #[inline]
    fn decode(payload: Payload) -> Result<T, CodecError> {
        Ok(T::from(payload))
    }
}

impl<T: Serialize> Encode<T> for Postcard {
    fn encode(value: &T, into: &mut Vec<u8>) -> Result<(), CodecError> {
        let begun = std::mem::take(into);
        *into = postcard::to_extend(value, begun).map_err(CodecError::whole)?;
        Ok(())
    }

    fn encode_json(value: &T, into: &mut Vec<u8>) -> Result<(), CodecError> {
        Json::encode(value, into)
    }
}

impl<T: DeserializeOwned> Decode<T> for Postcard {
    fn decode(payload: Payload) -> Result<T, CodecError> {
        let bounds = Bounds::of(payload.len());
        let mut reader = postcard::Deserializer::from_bytes(&payload);
        if let Ok(value) = T::deserialize(bounds.around(&mut reader)) {
            let rest = reader.finalize().map_err(CodecError::whole)?;
            return if rest.is_empty() {
                Ok(value)
            } else {
                Err(CodecError::whole(format_args!("{} bytes follow the value", rest.len())))
            };
        }
        // Read again to find out where: that costs what good payloads need not pay.
        let bounds = Bounds::of(payload.len());
        let mut reader = postcard::Deserializer::from_bytes(&payload);
        match serde_path_to_error::deserialize::<_, T>(bounds.around(&mut reader)) {
            Ok(_) => Err(CodecError::whole("it reads differently the second time")),
            Err(error) => {
                Err(bounds.exceeded().map_or_else(|| CodecError::at(&error), CodecError::whole))
            }
        }
    }

    fn decode_json(payload: Payload) -> Result<T, CodecError> {
        Json::decode(payload)
    }
}

impl<T: Serialize> Encode<T> for Json {
    fn encode(value: &T, into: &mut Vec<u8>) -> Result<(), CodecError> {
        serde_json::to_writer(into, value).map_err(CodecError::whole)
    }
}

impl<T: DeserializeOwned> Decode<T> for Json {
    fn decode(payload: Payload) -> Result<T, CodecError> {
        if payload.is_empty() {
            return read_json(b"{}").or_else(|error| {
                // Who sent nothing wonders at a column of it.
                let CodecError { path, what } = error;
                let what = format!("{what}; it is empty, which stands for {{}}");
                read_json(b"null").map_err(|_| CodecError { path, what })
            });
        }
        read_json(&payload)
    }
}

fn read_json<T: DeserializeOwned>(text: &[u8]) -> Result<T, CodecError> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut reader);
    let value = value.map_err(|error| CodecError::at(&error))?;
    reader.end().map_err(CodecError::whole)?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Line {
        number: u32,
        text: String,
    }

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Page {
        lines: Vec<Line>,
    }

    fn page() -> Page {
        Page { lines: vec![Line { number: 7, text: "seven".into() }] }
    }

    fn round<C: Encode<Page> + Decode<Page>>() {
        let mut bytes = Vec::new();
        C::encode(&page(), &mut bytes).unwrap();
        assert_eq!(C::decode(bytes.into()), Ok(page()));
    }

    #[test]
    fn values_return_from_both_formats() {
        round::<Json>();
        round::<Postcard>();
    }

    #[test]
    fn malformed_json_is_refused_with_the_field_s_path() {
        let json = br#"{"lines": [{"number": 1, "text": "a"}, {"number": "x", "text": "b"}]}"#;
        let error = <Json as Decode<Page>>::decode(json[..].into()).unwrap_err();
        assert_eq!(error.path, "lines[1].number");
        assert!(error.to_string().starts_with("at lines[1].number: invalid type"), "{error}");
        let long = format!(r#"{{"lines": "{}"}}"#, "x".repeat(10_000));
        let error = <Json as Decode<Page>>::decode(long.into_bytes().into()).unwrap_err();
        assert!(error.to_string().len() < 300, "{error}");
        let key = format!(r#"{{"{}": "x"}}"#, "k".repeat(10_000));
        let error = <Json as Decode<BTreeMap<String, u8>>>::decode(key.into_bytes().into());
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("at kkk") && error.len() < 500, "{error}");
        let trailing = <Json as Decode<Page>>::decode(b"{\"lines\": []} x"[..].into());
        assert!(trailing.unwrap_err().what.contains("trailing"));
    }

    #[test]
    fn fault_in_a_key_or_variant_is_told_by_what_it_belongs_to_and_never_by_a_question_mark() {
        #[derive(Deserialize, Debug)]
        #[expect(dead_code)]
        enum Kind {
            Plain,
            Long(u32),
        }
        type Kinds = BTreeMap<String, Vec<Kind>>;
        type Pairs = BTreeMap<String, BTreeMap<(u8, u8), bool>>;
        type Counts = BTreeMap<String, BTreeMap<u8, bool>>;

        fn path<C: Decode<T>, T: std::fmt::Debug>(payload: &[u8]) -> String {
            let error = C::decode(payload.into()).unwrap_err();
            assert!(!error.to_string().contains('?'), "{error}");
            error.path
        }
        for (text, expected) in [
            ("{", ""),
            ("{\"a\": 1", ""),
            ("{lines: []}", ""),
            ("{\"lines\": [{\"number\": 1, ", "lines[0]"),
            ("{\"lines\": [{\"number\": 1, text: \"\"}]}", "lines[0]"),
        ] {
            assert_eq!(path::<Json, Page>(text.as_bytes()), expected, "{text}");
        }
        assert_eq!(path::<Json, Kinds>(b"{\"a\": [{Long: 1}]}"), "a[0]");
        assert_eq!(path::<Json, Kinds>(b"{\"a\": [\"Plain\", \"Other\"]}"), "a[1]");
        assert_eq!(path::<Json, Counts>(b"{\"a\": {x: true}}"), "a");
        // The key is a pair, and its second number, or the value behind it, is missing.
        assert_eq!(path::<Postcard, Pairs>(&[1, 1, b'a', 1, 7]), "a");
        assert_eq!(path::<Postcard, Pairs>(&[1, 1, b'a', 1, 7, 7]), "a");
        // A variant, or what it holds, is missing.
        assert_eq!(path::<Postcard, Kinds>(&[1, 1, b'a', 1]), "a[0]");
        assert_eq!(path::<Postcard, Kinds>(&[1, 1, b'a', 1, 9]), "a[0]");
        assert!(path::<Postcard, Kinds>(&[1, 1, b'a', 1, 1]).starts_with("a[0]"));
        // Of a name that has one it is its own.
        let error = <Json as Decode<BTreeMap<String, u8>>>::decode(b"{\"?\": -1}"[..].into());
        assert!(error.unwrap_err().to_string().starts_with("at ?: invalid value"));
    }

    #[test]
    fn postcard_in_json_form_is_json_and_raw_stays_raw() {
        let mut text = Vec::new();
        <Postcard as Encode<Page>>::encode_json(&page(), &mut text).unwrap();
        assert_eq!(text, br#"{"lines":[{"number":7,"text":"seven"}]}"#);
        assert_eq!(<Postcard as Decode<Page>>::decode_json(text.into()), Ok(page()));
        let error = <Postcard as Decode<Page>>::decode_json(br#"{"lines": [{}]}"#[..].into());
        assert_eq!(error.unwrap_err().path, "lines[0]");
        let mut bytes = Vec::new();
        <Raw as Encode<[u8; 2]>>::encode_json(&[0xFF, 0], &mut bytes).unwrap();
        assert_eq!(<Raw as Decode<Payload>>::decode_json(bytes.into()).unwrap().bytes(), [0xFF, 0]);
    }

    #[test]
    fn empty_payload_is_an_empty_object_or_null() {
        let read = <Json as Decode<BTreeMap<String, u8>>>::decode;
        assert_eq!(read(Payload::empty()), Ok(Default::default()));
        assert_eq!(<Json as Decode<()>>::decode(Payload::empty()), Ok(()));
        let error = <Json as Decode<Page>>::decode(Payload::empty()).unwrap_err();
        assert!(error.what.contains("missing field `lines`"), "{error}");
    }

    #[test]
    fn malformed_postcard_is_refused_with_the_field_s_place() {
        let mut bytes = Vec::new();
        <Postcard as Encode<Page>>::encode(&page(), &mut bytes).unwrap();
        let short = <Postcard as Decode<Page>>::decode(bytes[..bytes.len() - 1].into());
        assert_eq!(short.unwrap_err().path, "[0][0][1]");
        bytes.push(9);
        let long = <Postcard as Decode<Page>>::decode(bytes.into()).unwrap_err();
        assert_eq!(long.to_string(), "1 bytes follow the value");
    }
}
