//! Just enough of Rust's lexical structure to see words and punctuation without comments, strings and
//! characters.

/// A word (identifier, keyword or number) or one character of punctuation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token<'a> {
    pub(crate) text: &'a str,
    pub(crate) line: usize,
}

pub(crate) fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut lexer = Lexer { source, at: 0, line: 1 };
    let mut tokens = Vec::new();
    while let Some(next) = lexer.peek() {
        let (start, line) = (lexer.at, lexer.line);
        if next.is_whitespace() {
            lexer.advance(next.len_utf8());
        } else if lexer.rest().starts_with("//") {
            let length = lexer.rest().find('\n').unwrap_or(lexer.rest().len());
            lexer.advance(length);
        } else if lexer.rest().starts_with("/*") {
            lexer.block_comment();
        } else if next == '"' {
            lexer.string();
        } else if next == '\'' {
            lexer.character_or_lifetime();
        } else if is_word(next) {
            let length = lexer.rest().find(|c| !is_word(c)).unwrap_or(lexer.rest().len());
            let text = &source[start..start + length];
            lexer.advance(length);
            if !lexer.literal_after(text) {
                tokens.push(Token { text, line });
            }
        } else {
            lexer.advance(next.len_utf8());
            tokens.push(Token { text: &source[start..lexer.at], line });
        }
    }
    tokens
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: usize,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn advance(&mut self, bytes: usize) {
        let passed = &self.rest()[..bytes];
        self.line += passed.matches('\n').count();
        self.at += bytes;
    }

    /// Block comments nest.
    fn block_comment(&mut self) {
        let mut depth = 0;
        while let Some(next) = self.peek() {
            if self.rest().starts_with("/*") {
                depth += 1;
                self.advance(2);
            } else if self.rest().starts_with("*/") {
                depth -= 1;
                self.advance(2);
                if depth == 0 {
                    return;
                }
            } else {
                self.advance(next.len_utf8());
            }
        }
    }

    /// From the opening quote to past the closing one.
    fn string(&mut self) {
        self.advance(1);
        while let Some(next) = self.peek() {
            self.advance(next.len_utf8());
            match next {
                '\\' => self.advance(self.peek().map_or(0, char::len_utf8)),
                '"' => return,
                _ => {}
            }
        }
    }

    /// `'x'`, `'\n'` and `'\u{1F426}'` are characters; `'a` in `&'a str` is a lifetime, whose word is
    /// skipped too.
    fn character_or_lifetime(&mut self) {
        self.advance(1);
        match self.peek() {
            Some('\\') => {
                let escaped = self.rest()[1..].chars().next().map_or(0, char::len_utf8);
                self.advance(1 + escaped);
                let length = self.rest().find('\'').map_or(self.rest().len(), |index| index + 1);
                self.advance(length);
            }
            Some(c) if self.rest()[c.len_utf8()..].starts_with('\'') => {
                self.advance(c.len_utf8() + 1);
            }
            _ => {
                let length = self.rest().find(|c| !is_word(c)).unwrap_or(self.rest().len());
                self.advance(length);
            }
        }
    }

    /// Passes over the literal that `prefix` begins, if it does: `b"…"`, `b'x'`, `c"…"`, `r"…"`,
    /// `br#"…"#`. A raw identifier (`r#match`) loses its prefix only.
    fn literal_after(&mut self, prefix: &str) -> bool {
        match (prefix, self.peek()) {
            ("b" | "c", Some('"')) => {
                self.string();
                true
            }
            ("b", Some('\'')) => {
                self.character_or_lifetime();
                true
            }
            ("r" | "br" | "cr", Some('"' | '#')) => {
                let hashes = self.rest().len() - self.rest().trim_start_matches('#').len();
                if self.rest()[hashes..].starts_with('"') {
                    let closing = format!("\"{}", "#".repeat(hashes));
                    self.advance(hashes + 1);
                    let end = self.rest().find(&closing);
                    self.advance(end.map_or(self.rest().len(), |index| index + closing.len()));
                } else {
                    self.advance(hashes);
                }
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(source: &str) -> Vec<&str> {
        tokens(source).iter().map(|token| token.text).collect()
    }

    #[test]
    fn comments_of_every_kind_are_not_tokens() {
        assert_eq!(words("a // unsafe\n/// unsafe\n//! unsafe\nb"), ["a", "b"]);
        assert_eq!(words("a /* unsafe /* unsafe */ unsafe */ b"), ["a", "b"]);
        assert_eq!(words("a /* unsafe"), ["a"]);
        assert_eq!(words("a / b"), ["a", "/", "b"]);
    }

    #[test]
    fn strings_of_every_kind_are_not_tokens() {
        assert_eq!(words(r#"a("unsafe \" unsafe \\") b"#), ["a", "(", ")", "b"]);
        assert_eq!(words(r##"a(r#"unsafe " // unsafe"#) b"##), ["a", "(", ")", "b"]);
        assert_eq!(
            words(r#"(b"unsafe", c"unsafe", r"unsafe\", br"x")"#),
            ["(", ",", ",", ",", ")"]
        );
        assert_eq!(words("a \"unsafe"), ["a"]);
    }

    #[test]
    fn characters_and_lifetimes_do_not_open_strings() {
        assert_eq!(words(r#"x('"') y"#), ["x", "(", ")", "y"]);
        assert_eq!(
            words(r#"x('\'', '\\', b'"', '\u{22}') y"#),
            ["x", "(", ",", ",", ",", ")", "y"]
        );
        assert_eq!(
            words("fn f<'a>(x: &'a str) unsafe"),
            ["fn", "f", "<", ">", "(", "x", ":", "&", "str", ")", "unsafe"]
        );
        assert_eq!(words("'outer: loop { break 'outer }"), [":", "loop", "{", "break", "}"]);
    }

    #[test]
    fn words_are_whole_and_raw_identifiers_lose_their_prefix() {
        assert_eq!(
            words("forbid(unsafe_code) r#unsafe"),
            ["forbid", "(", "unsafe_code", ")", "unsafe"]
        );
        assert_eq!(words("bar rb br"), ["bar", "rb", "br"]);
    }

    #[test]
    fn lines_are_counted_through_comments_and_strings() {
        let found = tokens("/*\n\n*/ a \"\n\n\" b\n// x\nc");
        let lines: Vec<usize> = found.iter().map(|token| token.line).collect();
        assert_eq!(lines, [3, 5, 7]);
    }
}
