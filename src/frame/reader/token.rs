//! The pieces of a row of JSON: members, elements, scalars. Flat and free of recursion; nested values are stepped over and named as such.
//! Not here: where a row begins and ends in a longer text.

use std::borrow::Cow;

use memchr::memchr2;

use crate::frame::infer::{self, CellKind};

/// Deepest nesting that is stepped over.
pub(super) const DEEPEST: usize = 128;

/// A scalar.
#[derive(Debug)]
pub(super) enum Token<'t> {
    Null,
    Boolean(bool),
    /// Its digits, by the grammar of JSON.
    Number(&'t [u8]),
    Text(Cow<'t, str>),
}

impl Token<'_> {
    /// The scalar as text: what a text column holds of it.
    pub(super) fn text(&self) -> &[u8] {
        match self {
            Token::Null => b"null",
            Token::Boolean(true) => b"true",
            Token::Boolean(false) => b"false",
            Token::Number(digits) => digits,
            Token::Text(text) => text.as_bytes(),
        }
    }

    /// What it speaks for.
    pub(super) fn kind(&self) -> CellKind {
        match self {
            Token::Null => CellKind::Missing,
            Token::Boolean(_) => CellKind::Boolean,
            Token::Number(digits) if infer::whole_number(digits).is_some() => CellKind::Integer,
            Token::Number(_) => CellKind::Number,
            Token::Text(text) if infer::instant(text.as_bytes()).is_some() => CellKind::Timestamp,
            Token::Text(_) => CellKind::Text,
        }
    }
}

/// What stands where a cell is expected.
#[derive(Debug)]
pub(super) enum Item<'t> {
    Scalar(Token<'t>),
    /// A list or an object.
    Nested,
}

/// Text that is not JSON, in words.
pub(super) type Mistake = &'static str;

const MISTAKE: Mistake = "this is not valid JSON";
const TOO_DEEP: Mistake = "lists and objects are nested too deeply";

/// Finds the end of a list or an object in a text that grows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Nesting {
    at: usize,
    depth: usize,
    in_string: bool,
}

impl Nesting {
    /// The end of the value that `text` begins with, or none when it has not ended yet; call again with the same text, longer.
    pub(super) fn end(&mut self, text: &[u8]) -> Result<Option<usize>, Mistake> {
        while self.at < text.len() {
            if self.in_string {
                let Some(found) = memchr2(b'"', b'\\', &text[self.at..]) else {
                    self.at = text.len();
                    break;
                };
                let place = self.at + found;
                if text[place] == b'"' {
                    self.in_string = false;
                    self.at = place + 1;
                } else if place + 1 < text.len() {
                    self.at = place + 2;
                } else {
                    self.at = place; // what is escaped comes with the next piece
                    break;
                }
                continue;
            }
            let byte = text[self.at];
            self.at += 1;
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' if self.depth == DEEPEST => return Err(TOO_DEEP),
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Ok(Some(self.at));
                    }
                }
                _ => {}
            }
        }
        Ok(None)
    }
}

/// Calls `visit` with each member of the object that `text` is.
pub(super) fn members<'t>(text: &'t [u8], mut visit: impl FnMut(Cow<'t, str>, Item<'t>)) -> Result<(), Mistake> {
    let mut cursor = Cursor { text, at: 0 };
    cursor.expect(b'{')?;
    if !cursor.accept(b'}') {
        loop {
            cursor.skip_space();
            let key = cursor.string()?;
            cursor.expect(b':')?;
            let item = cursor.item()?;
            visit(key, item);
            if !cursor.accept(b',') {
                break;
            }
        }
        cursor.expect(b'}')?;
    }
    cursor.end()
}

/// Calls `visit` with each element of the list that `text` is.
pub(super) fn elements<'t>(text: &'t [u8], mut visit: impl FnMut(Item<'t>)) -> Result<(), Mistake> {
    let mut cursor = Cursor { text, at: 0 };
    cursor.expect(b'[')?;
    if !cursor.accept(b']') {
        loop {
            let item = cursor.item()?;
            visit(item);
            if !cursor.accept(b',') {
                break;
            }
        }
        cursor.expect(b']')?;
    }
    cursor.end()
}

/// The string that `text` is, quotes and all.
pub(super) fn whole_string(text: &[u8]) -> Result<Cow<'_, str>, Mistake> {
    let mut cursor = Cursor { text, at: 0 };
    let string = cursor.string()?;
    cursor.end()?;
    Ok(string)
}

struct Cursor<'t> {
    text: &'t [u8],
    at: usize,
}

impl<'t> Cursor<'t> {
    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.text.get(self.at) {
            self.at += 1;
        }
    }

    fn accept(&mut self, byte: u8) -> bool {
        self.skip_space();
        let found = self.text.get(self.at) == Some(&byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8) -> Result<(), Mistake> {
        if self.accept(byte) { Ok(()) } else { Err(MISTAKE) }
    }

    fn end(&mut self) -> Result<(), Mistake> {
        self.skip_space();
        if self.at == self.text.len() { Ok(()) } else { Err(MISTAKE) }
    }

    fn item(&mut self) -> Result<Item<'t>, Mistake> {
        self.skip_space();
        let rest = &self.text[self.at..];
        let literal = |word: &[u8], token| if rest.starts_with(word) { Ok((word.len(), token)) } else { Err(MISTAKE) };
        let (length, token) = match rest.first() {
            Some(b'"') => return Ok(Item::Scalar(Token::Text(self.string()?))),
            Some(b'{' | b'[') => {
                self.at += Nesting::default().end(rest)?.ok_or(MISTAKE)?;
                return Ok(Item::Nested);
            }
            Some(b'n') => literal(b"null", Token::Null)?,
            Some(b't') => literal(b"true", Token::Boolean(true))?,
            Some(b'f') => literal(b"false", Token::Boolean(false))?,
            Some(b'-' | b'0'..=b'9') => {
                let length = number_length(rest).ok_or(MISTAKE)?;
                (length, Token::Number(&rest[..length]))
            }
            _ => return Err(MISTAKE),
        };
        self.at += length;
        Ok(Item::Scalar(token))
    }

    fn string(&mut self) -> Result<Cow<'t, str>, Mistake> {
        if self.text.get(self.at) != Some(&b'"') {
            return Err(MISTAKE);
        }
        self.at += 1;
        let mut owned: Option<Vec<u8>> = None;
        loop {
            let rest = &self.text[self.at..];
            let length = memchr2(b'"', b'\\', rest).ok_or(MISTAKE)?;
            let plain = &rest[..length];
            if plain.iter().any(|byte| *byte < 0x20) {
                return Err(MISTAKE);
            }
            self.at += length + 1;
            if rest[length] == b'"' {
                return match owned {
                    None => std::str::from_utf8(plain).map(Cow::Borrowed).map_err(|_| "a text is not valid UTF-8"),
                    Some(mut bytes) => {
                        bytes.extend_from_slice(plain);
                        String::from_utf8(bytes).map(Cow::Owned).map_err(|_| "a text is not valid UTF-8")
                    }
                };
            }
            let bytes = owned.get_or_insert_default();
            bytes.extend_from_slice(plain);
            let mut buffer = [0; 4];
            let character = self.escaped()?;
            bytes.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes());
        }
    }

    /// The character of the escape whose backslash was just read.
    fn escaped(&mut self) -> Result<char, Mistake> {
        let escape = *self.text.get(self.at).ok_or(MISTAKE)?;
        self.at += 1;
        Ok(match escape {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let first = self.hexadecimal()?;
                let code = if (0xd800..0xdc00).contains(&first) {
                    if !self.text[self.at..].starts_with(b"\\u") {
                        return Err(MISTAKE);
                    }
                    self.at += 2;
                    let second = self.hexadecimal()?;
                    if !(0xdc00..0xe000).contains(&second) {
                        return Err(MISTAKE);
                    }
                    0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)
                } else {
                    first
                };
                char::from_u32(code).ok_or(MISTAKE)?
            }
            _ => return Err(MISTAKE),
        })
    }

    fn hexadecimal(&mut self) -> Result<u32, Mistake> {
        let digits = self.text.get(self.at..self.at + 4).ok_or(MISTAKE)?;
        self.at += 4;
        digits.iter().try_fold(0, |code, digit| char::from(*digit).to_digit(16).map(|digit| code * 16 + digit)).ok_or(MISTAKE)
    }
}

/// Bytes of the number that the text begins with, by the grammar of JSON.
fn number_length(text: &[u8]) -> Option<usize> {
    let digits = |from: usize| text[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut at = usize::from(text.first() == Some(&b'-'));
    let whole = digits(at);
    if whole == 0 || (whole > 1 && text[at] == b'0') {
        return None;
    }
    at += whole;
    if text.get(at) == Some(&b'.') {
        let fraction = digits(at + 1);
        if fraction == 0 {
            return None;
        }
        at += 1 + fraction;
    }
    if let Some(b'e' | b'E') = text.get(at) {
        at += 1 + usize::from(matches!(text.get(at + 1), Some(b'+' | b'-')));
        let exponent = digits(at);
        if exponent == 0 {
            return None;
        }
        at += exponent;
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn texts(object: &str) -> Result<Vec<String>, Mistake> {
        let mut found = Vec::new();
        members(object.as_bytes(), |key, item| {
            found.push(match item {
                Item::Nested => format!("{key}=…"),
                Item::Scalar(token) => format!("{key}={}", String::from_utf8_lossy(token.text())),
            });
        })?;
        Ok(found)
    }

    #[test]
    fn members_are_what_serde_json_says_they_are() {
        for text in [
            r#"{}"#,
            r#" { "a" : 1 , "b":-0.5e+3,"c":null,"d":true,"e":false} "#,
            r#"{"a\"\\\/\b\f\n\r\té\ud83d\ude00":"\u0041x"}"#,
            r#"{"a":[1,{"b":"]}"}],"c":{}}"#,
            r#"{"a":01}"#,
            r#"{"a":1.}"#,
            r#"{"a":.5}"#,
            r#"{"a":+1}"#,
            r#"{"a":1e}"#,
            r#"{"a":NaN}"#,
            r#"{"a":"\ud800"}"#,
            r#"{"a":"\udc00"}"#,
            r#"{"a":"\x"}"#,
            r#"{"a":1,}"#,
            r#"{"a" 1}"#,
            r#"{"a":1"b":2}"#,
            r#"{"a":nul}"#,
            r#"{"a":1}x"#,
            r#"{"a":"#,
            r#"{a:1}"#,
            "{\"a\":\"\n\"}",
        ] {
            let ours = texts(text);
            let theirs = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text);
            assert_eq!(ours.is_ok(), theirs.is_ok(), "{text}");
            if let (Ok(ours), Ok(theirs)) = (ours, theirs) {
                assert_eq!(ours.len(), theirs.len(), "{text}");
                for (ours, key) in ours.iter().zip(theirs.keys()) {
                    assert!(ours.starts_with(key.as_str()), "{text}");
                }
            }
        }
    }

    #[test]
    fn bad_utf8_is_an_error() {
        assert!(members(b"{\"a\":\"\xff\"}", |_, _| {}).is_err());
    }

    #[test]
    fn the_end_is_found_wherever_the_text_is_cut() {
        let text = br#"{"a":["}\"",{"b\\":"]"}],"c":1} tail"#;
        for cut in 0..text.len() {
            let mut nesting = Nesting::default();
            let end = nesting.end(&text[..cut]).unwrap();
            let end = end.or_else(|| nesting.end(text).unwrap());
            assert_eq!(end, Some(text.len() - 5), "cut {cut}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_and_overflows_nothing() {
        let deep = format!("{{\"a\":{}", "[".repeat(1_000_000));
        assert!(members(deep.as_bytes(), |_, _| {}).is_err());
        assert_eq!(Nesting::default().end(deep.as_bytes()), Err(TOO_DEEP));
    }
}
