//! JSON text (RFC 8259) as tokens over a byte slice, without a tree and without recursion.
//!
//! A [`Scan`] is a position in the text. Each method takes one token and moves past it, or says where and why the text is not JSON; the
//! grammar is checked in full. [`plain_decimal`] reads the common numbers, here and in CSV. Not here: what the tokens mean.

use std::borrow::Cow;
use std::hint::select_unpredictable;

/// Arrays and objects open at once; text nested deeper is refused.
pub(crate) const DEEPEST: u32 = 128;

/// Why text is not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Something else belongs here.
    Unexpected,
    /// The text ends too early.
    End,
    /// `NaN`, `Infinity` and the like.
    NotFinite,
    /// A number such as `01`.
    LeadingZero,
    /// More than [`DEEPEST`] levels.
    Deep,
    /// A raw control character in a string.
    Control,
    /// A backslash before something that it does not escape.
    Escape,
    /// Half of a surrogate pair.
    Surrogate,
    /// Bytes that are not UTF-8.
    Encoding,
    /// Text after the value.
    Trailing,
}

impl Why {
    /// In words.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Unexpected => "something else belongs here",
            Self::End => "it ends too early",
            Self::NotFinite => "NaN and infinity are not JSON",
            Self::LeadingZero => "a number has no leading zeros",
            Self::Deep => "it is nested more than 128 levels deep",
            Self::Control => "a control character stands in a string",
            Self::Escape => "a string has an escape that JSON does not know",
            Self::Surrogate => "a string has half of a surrogate pair",
            Self::Encoding => "it is not UTF-8",
            Self::Trailing => "text follows the end",
        }
    }
}

/// Where text stops being JSON, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    /// Bytes before it.
    pub(crate) at: usize,
    /// The reason.
    pub(crate) why: Why,
}

impl Broken {
    /// The line and the column in characters, both from 1.
    pub(crate) fn line_and_column(self, text: &[u8]) -> (usize, usize) {
        let before = &text[..self.at.min(text.len())];
        let line = memchr::memchr_iter(b'\n', before).count() + 1;
        let start = memchr::memrchr(b'\n', before).map_or(0, |place| place + 1);
        // Bytes that continue a character do not count.
        let column = before[start..].iter().filter(|byte| **byte & 0xc0 != 0x80).count() + 1;
        (line, column)
    }
}

/// A word of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Literal {
    /// `true`
    True,
    /// `false`
    False,
    /// `null`
    Null,
}

/// A position in JSON text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    /// At the start of `text`.
    pub(crate) fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }

    /// Bytes before the position.
    #[inline]
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Moves to a position that [`Scan::at`] gave.
    pub(crate) fn return_to(&mut self, at: usize) {
        self.at = at;
    }

    /// What was passed since `start`.
    pub(crate) fn since(&self, start: usize) -> &'a [u8] {
        &self.text[start..self.at]
    }

    /// Bytes not yet passed.
    pub(crate) fn left(&self) -> usize {
        self.text.len() - self.at
    }

    /// The next byte.
    #[inline]
    pub(crate) fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// Passes `expected` if it comes next.
    #[inline]
    pub(crate) fn take(&mut self, expected: u8) -> bool {
        let found = self.peek() == Some(expected);
        self.at += usize::from(found);
        found
    }

    /// Passes `expected` if all of it comes next.
    #[inline]
    pub(crate) fn take_all(&mut self, expected: &[u8]) -> bool {
        let found = self.text[self.at..].starts_with(expected);
        if found {
            self.at += expected.len();
        }
        found
    }

    /// Passes `expected`, which must come next.
    ///
    /// # Errors
    /// Something else comes next.
    #[inline]
    pub(crate) fn expect(&mut self, expected: u8) -> Result<(), Broken> {
        if self.take(expected) { Ok(()) } else { Err(self.unexpected()) }
    }

    /// Passes whitespace.
    #[inline]
    pub(crate) fn skip_whitespace(&mut self) {
        while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    /// Passes whitespace, after which the text must end.
    ///
    /// # Errors
    /// The text goes on.
    pub(crate) fn end(&mut self) -> Result<(), Broken> {
        self.skip_whitespace();
        if self.at == self.text.len() { Ok(()) } else { Err(self.broken(Why::Trailing)) }
    }

    /// That the text breaks at the position.
    #[cold]
    pub(crate) fn broken(&self, why: Why) -> Broken {
        Broken { at: self.at, why }
    }

    /// That the next byte, or the end, does not belong at the position; NaN and infinity are told apart.
    #[cold]
    pub(crate) fn unexpected(&self) -> Broken {
        let rest = &self.text[self.at..];
        let word = rest.strip_prefix(b"-").or_else(|| rest.strip_prefix(b"+")).unwrap_or(rest);
        let starts = |name: &[u8]| word.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
        self.broken(match rest {
            [] => Why::End,
            _ if starts(b"nan") || starts(b"inf") => Why::NotFinite,
            _ => Why::Unexpected,
        })
    }

    /// Takes a number if it is a [`plain_decimal`], which is finite; the position stays otherwise.
    #[inline(always)]
    pub(crate) fn plain_number(&mut self) -> Option<f64> {
        let (value, length) = plain_decimal(&self.text[self.at..])?;
        self.at += length;
        Some(value)
    }

    /// Takes a number, correctly rounded; one past the range of f64 is infinite. What follows it is not looked at, and must be by the
    /// caller: of `1e` only the `1` is taken.
    ///
    /// # Errors
    /// No number stands here.
    pub(crate) fn number(&mut self) -> Result<f64, Broken> {
        if let Some(value) = self.plain_number() {
            return Ok(value);
        }
        let rest = &self.text[self.at..];
        let sign = usize::from(rest.first() == Some(&b'-'));
        let mut end = sign;
        let mut magnitude = 0_u64;
        while let Some(digit) = rest.get(end).map(|byte| byte.wrapping_sub(b'0')).filter(|digit| *digit < 10) {
            magnitude = magnitude.wrapping_mul(10).wrapping_add(u64::from(digit));
            end += 1;
        }
        let digits = end - sign;
        if digits == 0 || (digits > 1 && rest[sign] == b'0') {
            return Err(self.no_number(digits, end));
        }
        match rest.get(end) {
            // fast-float also takes `1.` and `1.e5`, which JSON does not.
            Some(b'.') if !rest.get(end + 1).is_some_and(u8::is_ascii_digit) => {
                return Err(Broken { at: self.at + end + 1, why: self.ended(end + 1) });
            }
            Some(b'.' | b'e' | b'E') => {}
            // 19 digits fit a u64, and its conversion rounds correctly.
            _ if digits <= 19 => {
                self.at += end;
                let value = magnitude as f64;
                return Ok(if sign == 1 { -value } else { value });
            }
            _ => {}
        }
        match fast_float2::parse_partial::<f64, _>(rest) {
            Ok((value, length)) => {
                self.at += length;
                Ok(value)
            }
            Err(_) => Err(self.unexpected()),
        }
    }

    #[cold]
    fn no_number(&self, digits: usize, end: usize) -> Broken {
        match digits {
            0 if self.text.len() == self.at + end => Broken { at: self.at + end, why: Why::End },
            0 => self.unexpected(),
            _ => self.broken(Why::LeadingZero),
        }
    }

    /// `End` if the text ends `offset` bytes on.
    fn ended(&self, offset: usize) -> Why {
        if self.at + offset >= self.text.len() { Why::End } else { Why::Unexpected }
    }

    /// Takes a string, which must begin here.
    ///
    /// # Errors
    /// No string, or one with a fault in it.
    pub(crate) fn string(&mut self) -> Result<Cow<'a, str>, Broken> {
        self.expect(b'"')?;
        let start = self.at;
        let mut end = start;
        let mut escaped = false;
        loop {
            match self.text.get(end) {
                Some(b'"') => break,
                // Whatever comes next is looked at when the escapes are.
                Some(b'\\') => {
                    escaped = true;
                    end += 2;
                }
                Some(0..0x20) => return Err(Broken { at: end, why: Why::Control }),
                Some(_) => end += 1,
                None => return Err(Broken { at: self.text.len(), why: Why::End }),
            }
        }
        let raw =
            std::str::from_utf8(&self.text[start..end]).map_err(|error| Broken { at: start + error.valid_up_to(), why: Why::Encoding })?;
        self.at = end + 1;
        if escaped { Ok(Cow::Owned(unescaped(raw, start)?)) } else { Ok(Cow::Borrowed(raw)) }
    }

    /// Takes `true`, `false` or `null`.
    ///
    /// # Errors
    /// None of them stands here.
    pub(crate) fn literal(&mut self) -> Result<Literal, Broken> {
        for (text, literal) in [(&b"true"[..], Literal::True), (b"false", Literal::False), (b"null", Literal::Null)] {
            if self.take_all(text) {
                return Ok(literal);
            }
        }
        Err(self.unexpected())
    }

    /// Passes a whole value; `open` arrays and objects are open around it.
    ///
    /// # Errors
    /// It is no value, or [`DEEPEST`] is passed.
    pub(crate) fn skip_value(&mut self, open: u32) -> Result<(), Broken> {
        // Bit d: whether the d-th container opened here is an object.
        let mut objects = 0_u128;
        let mut depth = 0;
        loop {
            self.skip_whitespace();
            match self.peek() {
                Some(opening @ (b'{' | b'[')) => {
                    if open + depth >= DEEPEST {
                        return Err(self.broken(Why::Deep));
                    }
                    let object = opening == b'{';
                    self.at += 1;
                    self.skip_whitespace();
                    if !self.take(if object { b'}' } else { b']' }) {
                        let bit = 1_u128 << depth;
                        objects = if object { objects | bit } else { objects & !bit };
                        depth += 1;
                        if object {
                            self.skip_key()?;
                        }
                        continue;
                    }
                }
                Some(b'"') => drop(self.string()?),
                Some(b'-' | b'0'..=b'9') => drop(self.number()?),
                _ => drop(self.literal()?),
            }
            // A value is behind; containers that end here are values in turn.
            loop {
                if depth == 0 {
                    return Ok(());
                }
                let object = objects >> (depth - 1) & 1 == 1;
                self.skip_whitespace();
                if self.take(b',') {
                    if object {
                        self.skip_whitespace();
                        self.skip_key()?;
                    }
                    break;
                }
                self.expect(if object { b'}' } else { b']' })?;
                depth -= 1;
            }
        }
    }

    /// Passes a member's name and its colon.
    fn skip_key(&mut self) -> Result<(), Broken> {
        self.string()?;
        self.colon()
    }

    /// Passes the colon after a member's name, and the whitespace around it.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn colon(&mut self) -> Result<(), Broken> {
        self.skip_whitespace();
        self.expect(b':')?;
        self.skip_whitespace();
        Ok(())
    }
}

/// The text that `raw`, the inside of a string at `start`, stands for.
fn unescaped(raw: &str, start: usize) -> Result<String, Broken> {
    let mut out = String::with_capacity(raw.len());
    let bytes = raw.as_bytes();
    let mut clean = 0;
    while let Some(offset) = memchr::memchr(b'\\', &bytes[clean..]) {
        let place = clean + offset;
        let broken = |why| Broken { at: start + place, why };
        out.push_str(&raw[clean..place]);
        clean = place + 2;
        out.push(match bytes.get(place + 1) {
            Some(&byte @ (b'"' | b'\\' | b'/')) => char::from(byte),
            Some(b'n') => '\n',
            Some(b't') => '\t',
            Some(b'r') => '\r',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'u') => {
                let first = hexadecimal(bytes, place + 2).ok_or(broken(Why::Escape))?;
                clean = place + 6;
                let mut code = u32::from(first);
                if (0xd800..0xdc00).contains(&first) && bytes[clean..].starts_with(b"\\u") {
                    let second = hexadecimal(bytes, clean + 2).ok_or(broken(Why::Escape))?;
                    if (0xdc00..0xe000).contains(&second) {
                        code = 0x1_0000 + ((code - 0xd800) << 10) + (u32::from(second) - 0xdc00);
                        clean += 6;
                    }
                }
                // Half of a pair is no character.
                char::from_u32(code).ok_or(broken(Why::Surrogate))?
            }
            _ => return Err(broken(Why::Escape)),
        });
    }
    out.push_str(&raw[clean..]);
    Ok(out)
}

/// Four hexadecimal digits.
fn hexadecimal(bytes: &[u8], start: usize) -> Option<u16> {
    bytes.get(start..start + 4)?.iter().try_fold(0_u16, |code, byte| {
        let digit = char::from(*byte).to_digit(16)?;
        u16::try_from(digit).ok().map(|digit| code << 4 | digit)
    })
}

/// The value and length of a number at the start of `text`, correctly rounded, if it is one of the common ones: an optional minus, up to
/// seven digits without a leading zero and, after a point, as many as make 19 in all; without an exponent, and not in the last 32 bytes of
/// `text`. `None` says nothing about other numbers. What follows the number is not a digit, a point or an exponent.
///
/// Eight bytes are looked at in one step, without branches on how many digits there are, which a processor cannot predict; and the end
/// is found first, so that it can begin with the next number while it still computes this one.
#[inline(always)]
pub(crate) fn plain_decimal(text: &[u8]) -> Option<(f64, usize)> {
    let negative = text.first() == Some(&b'-');
    let sign = u64::from(negative) << 63;
    let rest = text.get(usize::from(negative)..)?.first_chunk::<32>()?;
    let start = word(rest, 0);
    let end = first_of(not_in_decimal(start), not_in_decimal(word(rest, 8)), not_in_decimal(word(rest, 16)));
    let digits = not_digits(start).trailing_zeros() as usize / 8;
    // The byte at `end` is looked at as well, and the point in the first word.
    if end >= 24 || digits == 0 || digits >= 8 || (start & 0xff == 0x30 && digits > 1) || matches!(rest[end], b'e' | b'E') {
        return None;
    }
    let whole = digits_of(start, digits);
    if digits == end {
        return Some((f64::from_bits((whole as f64).to_bits() | sign), usize::from(negative) + digits));
    }
    let places = end - digits - 1;
    // A zero before the point is no significant digit.
    if rest[digits] != b'.' || places == 0 || places + digits - usize::from(whole == 0) > 19 {
        return None;
    }
    let words = [word(rest, digits + 1), word(rest, digits + 9), word(rest, digits + 17)];
    if first_of(not_digits(words[0]), not_digits(words[1]), not_digits(words[2])) < places {
        return None;
    }
    let mut significand = whole;
    for (index, word) in words.into_iter().enumerate() {
        let count = places.saturating_sub(8 * index).min(8);
        significand = significand * TENS[count] + digits_of(word, count);
    }
    let value = scaled(significand, places);
    Some((f64::from_bits(value.to_bits() | sign), usize::from(negative) + end))
}

/// Powers of ten by how many digits they make room for.
const TENS: [u64; 9] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];

/// A byte in each of eight places.
const EACH: u64 = 0x0101_0101_0101_0101;

/// Eight bytes, the first of them lowest; zeros past the end of `bytes`.
#[inline(always)]
fn word(bytes: &[u8; 32], start: usize) -> u64 {
    bytes.get(start..start + 8).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The top bit of the first byte that is not `0` to `9`; the bits over it mean nothing.
#[inline(always)]
fn not_digits(word: u64) -> u64 {
    let digits = word ^ (EACH * 0x30);
    // What a byte carries over reaches only those after it, and it carries only when it is none itself.
    (digits.wrapping_add(EACH * 0x76) | digits) & (EACH * 0x80)
}

/// The top bit of the first byte that is not `0` to `9`, a point or the slash between them; the bits over it mean nothing.
#[inline(always)]
fn not_in_decimal(word: u64) -> u64 {
    (!word.wrapping_add(EACH * (0x80 - 0x2e)) | word.wrapping_add(EACH * (0x80 - 0x3a)) | word) & (EACH * 0x80)
}

/// The place of the first byte of three words whose top bit is set, or 24.
#[inline(always)]
fn first_of(first: u64, second: u64, third: u64) -> usize {
    let late = select_unpredictable(second != 0, second.trailing_zeros(), 64 + third.trailing_zeros());
    select_unpredictable(first != 0, first.trailing_zeros(), 64 + late) as usize / 8
}

/// The number that the first `count` bytes make, which are digits.
#[inline(always)]
fn digits_of(word: u64, count: usize) -> u64 {
    // As if the digits were right-aligned behind zeros; then pairs, fours and eights are joined.
    let bytes = (word ^ (EACH * 0x30)).checked_shl(64 - 8 * count as u32).unwrap_or(0);
    let pairs = (bytes * 10 + (bytes >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs * 100 + (pairs >> 16)) & 0x0000_ffff_0000_ffff;
    (fours * 10_000 + (fours >> 32)) & 0xffff_ffff
}

/// Decimal places that [`scaled`] takes: 5²⁷ is the largest power of five below 2⁶³.
const MOST_PLACES: usize = 27;

/// c = ⌊2ᵇ / 5ᵏ⌋ + 1 by k, where b = 127 + the bits of 5ᵏ, so that c fills 128 bits; not used for k = 0.
const RECIPROCALS: [u128; MOST_PLACES + 1] = reciprocals();

const fn reciprocals() -> [u128; MOST_PLACES + 1] {
    let mut table = [0; MOST_PLACES + 1];
    let mut power = 1_u128;
    let mut places = 1;
    while places <= MOST_PLACES {
        power *= 5;
        // Long division of 2ᵇ by limbs of 64 bits; the limb over the highest is 2^(b−128), less than 5ᵏ.
        let mut remainder = 1_u128 << (127 - power.leading_zeros());
        let mut quotient = 0;
        let mut limb = 0;
        while limb < 2 {
            remainder <<= 64;
            quotient = (quotient << 64) | (remainder / power);
            remainder %= power;
            limb += 1;
        }
        table[places] = quotient + 1;
        places += 1;
    }
    table
}

/// w · 10⁻ᵏ for k ≤ 27, correctly rounded.
///
/// With w shifted up to 64 bits, P = ⌊w·c / 2⁶⁴⌋ has 127 or 128 bits and is ⌊x + δ⌋, where x = w·2ᵇ / (5ᵏ·2⁶⁴) is exact and 0 ≤ δ < 1.
/// A float halfway between two is a multiple h of 2⁷³ on this scale. Where x ≠ h, |x − h| is a nonzero multiple of 2⁷³ / 5ᵏ or of
/// 2^(b−64) / 5ᵏ, hence at least 2¹⁰, and P is on the same side of h as x; where x = h, P = h. So P rounds as x does.
///
/// The product is that of D. Lemire, Number parsing at a gigabyte per second (2021), without its truncated first step.
#[inline(always)]
fn scaled(significand: u64, places: usize) -> f64 {
    if significand == 0 || places == 0 {
        return significand as f64;
    }
    let shift = significand.leading_zeros();
    let significand = u128::from(significand << shift);
    let reciprocal = RECIPROCALS[places];
    let product = significand * (reciprocal >> 64) + ((significand * (reciprocal & u128::from(u64::MAX))) >> 64);
    // 62 or 63 bits, the lowest of which stands for all below it; turning them into a float rounds once, to even.
    let below = product & ((1 << 65) - 1) != 0;
    let top = (product >> 65) as i64 | i64::from(below);
    // 5ᵏ has ⌊k·log₂5⌋ + 1 bits; 1217359 / 2¹⁹ is close enough to log₂5 for these k.
    let bits = ((places as u32 * 1_217_359) >> 19) + 1;
    let exponent = 1023 + 2 - u64::from(shift) - places as u64 - u64::from(bits);
    top as f64 * f64::from_bits(exponent << 52)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// What a full check of `text` says.
    fn check(text: &[u8]) -> Result<(), Broken> {
        let mut scan = Scan::new(text);
        scan.skip_value(0)?;
        scan.end()
    }

    fn random(state: &mut u64) -> u64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *state ^ (*state >> 31)
    }

    #[test]
    fn json_is_taken_and_only_json() {
        let good = [
            "0",
            "-0",
            "10",
            "-1.5",
            "1e5",
            "1E+5",
            "1.25e-10",
            "0.0",
            "true",
            "false",
            "null",
            "\"\"",
            "[]",
            "{}",
            "[[],{}]",
            " [ 1 , 2 ] ",
            "{\"a\":[1,{\"b\":null}],\"c\":\"x\"}",
            "\"\\u00e9\\n\\\"\\\\\\/\"",
            "\"\\ud83d\\ude00\"",
            "\"é\u{7f}\"",
            "{ }",
            "[ ]",
        ];
        for text in good {
            assert_eq!(check(text.as_bytes()), Ok(()), "{text}");
            assert!(serde_json::from_str::<serde_json::Value>(text).is_ok(), "{text}");
        }
        let bad = [
            "",
            " ",
            "01",
            "-",
            "+1",
            "1.",
            ".5",
            "1.e5",
            "1e",
            "1e+",
            "-01",
            "00",
            "1.5.2",
            "1-2",
            "NaN",
            "nan",
            "Infinity",
            "-Infinity",
            "tru",
            "True",
            "nulls",
            "[1,]",
            "[,1]",
            "[1 2]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "{'a':1}",
            "[1}",
            "{\"a\":1]",
            "[",
            "{",
            "]",
            "}",
            "1 2",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\u12g4\"",
            "\"\\ud800\"",
            "\"\\ud800\\n\"",
            "\"\\ude00\"",
            "\"\\ud800\\ud800\"",
            "\"a\nb\"",
            "\"\\",
            "\"\\\"",
            "\"abc",
            "//",
            "[1]x",
            "\u{a0}1",
            "0x10",
            "1_000",
            "{\"a\":1 \"b\":2}",
            "\"\\é\"",
        ];
        for text in bad {
            assert!(check(text.as_bytes()).is_err(), "{text}");
            assert!(serde_json::from_str::<serde_json::Value>(text).is_err(), "{text}");
        }
        assert_eq!(check(b"\"\xff\"").unwrap_err(), Broken { at: 1, why: Why::Encoding });
        assert_eq!(check(b"\"\xed\xa0\x80\"").unwrap_err().why, Why::Encoding);
    }

    #[test]
    fn reasons_are_told() {
        for (text, at, why) in [
            ("[1,NaN]", 3, Why::NotFinite),
            ("[-Infinity]", 1, Why::NotFinite),
            ("[+inf]", 1, Why::NotFinite),
            ("[1,", 3, Why::End),
            ("[-", 2, Why::End),
            ("[1.", 3, Why::End),
            ("[01]", 1, Why::LeadingZero),
            ("[\"\u{1}\"]", 2, Why::Control),
            ("[\"a\\q\"]", 3, Why::Escape),
            ("[\"a\\udc00\"]", 3, Why::Surrogate),
            ("{} x", 3, Why::Trailing),
        ] {
            assert_eq!(check(text.as_bytes()), Err(Broken { at, why }), "{text}");
        }
    }

    #[test]
    fn lines_and_columns_count_characters() {
        let text = "{\n \"é\": x}".as_bytes();
        let broken = check(text).unwrap_err();
        assert_eq!(broken.line_and_column(text), (2, 7));
    }

    #[test]
    fn depth_is_limited_without_recursion() {
        let nested = |levels: usize| [vec![b'['; levels], vec![b']'; levels]].concat();
        assert_eq!(check(&nested(128)), Ok(()));
        assert_eq!(check(&nested(129)).unwrap_err().why, Why::Deep);
        assert_eq!(check(&nested(1_000_000)).unwrap_err(), Broken { at: 128, why: Why::Deep });
        let objects = [b"{\"a\":".repeat(128), b"1".to_vec(), b"}".repeat(128)].concat();
        assert_eq!(check(&objects), Ok(()));
        let mixed = [b"[{\"a\":".repeat(64), b"1".to_vec(), b"}]".repeat(64)].concat();
        assert_eq!(check(&mixed), Ok(()));
        let wrong = [b"[{\"a\":".repeat(64), b"1".to_vec(), b"]}".repeat(64)].concat();
        assert_eq!(check(&wrong).unwrap_err().why, Why::Unexpected);
        assert_eq!(Scan::new(b"[]").skip_value(128).unwrap_err().why, Why::Deep);
    }

    #[test]
    fn numbers_are_correctly_rounded() {
        let fixed = [
            "0",
            "-0",
            "-0.0",
            "1",
            "9007199254740993",
            "9007199254740992.5",
            "18446744073709551615",
            "9999999999999999999",
            "99999999999999999999",
            "0.1",
            "1e22",
            "1e23",
            "5e-324",
            "2.4703282292062327e-324",
            "2.4703282292062328e-324",
            "2.2250738585072011e-308",
            "1.7976931348623157e308",
            "1.7976931348623158e308",
            "1e-400",
            "123456789012345678901234567890",
            "0.000000000000000000000000000001",
            "8.5e0",
            "1E5",
            "1e-5",
            "6.9294956446009195e15",
            "9007199254740993.0000000000000000000000000000000000000000000000000000000000001",
            "-9223372036854775808",
            "4503599627370497.5",
            "4503599627370496.5",
        ];
        let mut state = 7;
        let random = std::iter::repeat_with(|| {
            let bits = random(&mut state);
            match bits % 5 {
                0 => format!("{:?}", f64::from_bits(random(&mut state))),
                1 => format!("{}", (bits >> 8) as i64 - (1 << 54)),
                2 => format!("{}.{}", bits >> 40, random(&mut state)),
                3 => format!("-{}e{}", random(&mut state), (bits >> 8) as i64 % 320),
                _ => format!("0.{:019}{:019}", random(&mut state), random(&mut state)),
            }
        });
        for text in fixed.into_iter().map(str::to_owned).chain(random.take(50_000)) {
            if text.contains(['N', 'f']) {
                continue;
            }
            let mut scan = Scan::new(text.as_bytes());
            let value = scan.number().unwrap();
            assert_eq!(scan.end(), Ok(()), "{text}");
            assert_eq!(value.to_bits(), text.parse::<f64>().unwrap().to_bits(), "{text}");
            if value.is_finite() {
                assert_eq!(value.to_bits(), serde_json::from_str::<f64>(&text).unwrap().to_bits(), "{text}");
            }
        }
        assert_eq!(Scan::new(b"1e400").number(), Ok(f64::INFINITY));
    }

    #[test]
    fn plain_decimals_are_correctly_rounded() {
        for (places, reciprocal) in RECIPROCALS.iter().enumerate().skip(1) {
            assert_eq!(reciprocal >> 127, 1, "{places}");
            let bits = ((places as u32 * 1_217_359) >> 19) + 1;
            assert_eq!(bits, u64::BITS - 5_u64.pow(places as u32).leading_zeros(), "{places}");
        }
        let mut state = 9;
        for round in 0..400_000_u64 {
            let places = random(&mut state) as usize % (MOST_PLACES + 1);
            let significand = match round % 4 {
                // Any; few digits; near and at halfway points, which are odd multiples of a power of five with 54 bits.
                0 => random(&mut state),
                1 => random(&mut state) >> (random(&mut state) % 64),
                kind => {
                    let power = 5_u64.pow((places % 5) as u32);
                    let odd = ((1 << 53) + (random(&mut state) >> 11)) | 1;
                    odd.wrapping_mul(if kind == 2 { power } else { 1 }).wrapping_add(random(&mut state) % 3).wrapping_sub(1)
                }
            };
            let text = format!("{significand}e-{places}");
            assert_eq!(scaled(significand, places).to_bits(), text.parse::<f64>().unwrap().to_bits(), "{text}");
        }
        let mut taken = 0;
        for _ in 0..200_000 {
            let whole = random(&mut state) >> 38 >> (random(&mut state) % 26);
            let fraction = random(&mut state);
            let digits = random(&mut state) as usize % 20;
            let sign = if fraction.is_multiple_of(2) { "-" } else { "" };
            let text = format!("{sign}{whole}.{:.digits$}", format!("{:020}", fraction));
            let mut padded = text.clone().into_bytes();
            padded.extend_from_slice(&[b','; 32]);
            if let Some((value, length)) = plain_decimal(&padded) {
                assert_eq!(length, text.len(), "{text}");
                assert_eq!(value.to_bits(), text.parse::<f64>().unwrap().to_bits(), "{text}");
                taken += 1;
            }
        }
        assert!(taken > 100_000, "{taken}");
    }

    #[test]
    fn plain_decimals_are_whole_numbers_of_json_or_none() {
        for (text, expected) in [
            ("1,        ", Some((1.0, 1))),
            ("-0]        ", Some((-0.0, 2))),
            ("1234567}   ", Some((1_234_567.0, 7))),
            ("-0.5 ,         ", Some((-0.5, 4))),
            ("0.1234567890123456789,        ", Some((0.123_456_789_012_345_68, 21))),
            ("12345678,   ", None),
            ("1", None),
            ("-,         ", None),
            ("01,        ", None),
            ("1.,         ", None),
            ("1.2.3,          ", None),
            ("1e5,        ", None),
            ("1.5e5,         ", None),
            (".5,        ", None),
            ("+1,        ", None),
            ("\u{b1}\u{b2}\u{b3}\u{b9}       ", None),
            ("0.12345678901234567890,        ", None),
        ] {
            // At the very end of a text none is plain.
            let padded = if text == "1" { text.to_owned() } else { format!("{text:50}") };
            let found = plain_decimal(padded.as_bytes());
            assert_eq!(
                found.map(|(value, length)| (value.to_bits(), length)),
                expected.map(|(value, length)| (f64::to_bits(value), length)),
                "{text}"
            );
        }
        for byte in 0..=u8::MAX {
            let mut text = *b"1234567\0,......";
            for place in 0..7 {
                text[place] = byte;
                let length = plain_decimal(&text).map(|(_, length)| length);
                assert!(
                    length.is_none_or(|length| text[..length].iter().all(|byte| matches!(byte, b'-' | b'.' | b'0'..=b'9'))),
                    "{byte} {place}"
                );
                text[place] = b'1' + place as u8;
            }
        }
    }

    #[test]
    fn any_byte_in_a_plain_decimal_is_seen() {
        let good = *b"-123.4567890123456,                     ";
        for place in 0..=18 {
            for byte in 0..=u8::MAX {
                let mut text = good;
                text[place] = byte;
                if let Some((value, length)) = plain_decimal(&text) {
                    let taken = std::str::from_utf8(&text[..length]).unwrap();
                    assert_eq!(serde_json::from_str::<f64>(taken).unwrap().to_bits(), value.to_bits(), "{taken}");
                    assert!(!matches!(text[length], b'0'..=b'9' | b'.' | b'e' | b'E'), "{byte} {place}");
                }
            }
        }
    }

    #[test]
    fn strings_are_decoded() {
        for (text, expected) in [
            ("\"plain\"", "plain"),
            ("\"\\u0041\\u00e9\\u20ac\"", "Aé€"),
            ("\"x\\ud83d\\ude00y\"", "x😀y"),
            ("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\/\u{8}\u{c}\n\r\t"),
            ("\"é😀\"", "é😀"),
            ("\"\\\\\"", "\\"),
        ] {
            let found = Scan::new(text.as_bytes()).string().unwrap();
            assert_eq!(found, expected);
            assert_eq!(found, serde_json::from_str::<String>(text).unwrap());
        }
        assert!(matches!(Scan::new(b"\"plain\"").string(), Ok(Cow::Borrowed("plain"))));
    }

    #[test]
    fn mutated_text_is_judged_as_serde_json_does() {
        let text = br#"{"rows":[{"a":-1.5e-3,"b\n\u00e9":"x\ud83d\ude00"},{"a":0,"c":[true,false,null,{}]}],"z":12345678901234567890}"#;
        let mut state = 3;
        for length in 0..text.len() {
            assert!(check(&text[..length]).is_err(), "{length}");
        }
        for _ in 0..20_000 {
            let mut changed = text.to_vec();
            for _ in 0..=random(&mut state) % 2 {
                let place = random(&mut state) as usize % changed.len();
                let pool = br#"{}[],:"\u0123e.-+ tfn"#;
                changed[place] = if random(&mut state).is_multiple_of(8) {
                    random(&mut state) as u8
                } else {
                    pool[random(&mut state) as usize % pool.len()]
                };
            }
            let theirs = serde_json::from_slice::<serde_json::Value>(&changed);
            // serde_json also refuses numbers out of range, which is left to the caller here.
            if theirs.as_ref().is_err_and(|error| error.to_string().starts_with("number out of range")) {
                continue;
            }
            assert_eq!(check(&changed).is_ok(), theirs.is_ok(), "{}", String::from_utf8_lossy(&changed));
        }
    }
}
