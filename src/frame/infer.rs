//! What a cell's text can be read as, and which type the cells of a first chunk speak for. Not here: the columns themselves.
//!
//! A column whose cells are numbers (or points in time) but for a few is taken to be one of numbers with bad cells in it, which are then
//! named to the caller; a column with more than a tenth of other texts is one of texts.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

use super::schema::ColumnType;

/// Most distinct texts of a category column.
pub(super) const LEVELS: usize = 1000;
/// Longest text, in bytes, of a column that is taken for one of categories.
const LONGEST_LEVEL: usize = 128;
/// In a column of more cells than this, at most half of them may be distinct for it to be one of categories.
const FEW: u64 = 20;

/// What a cell can be read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CellKind {
    /// Nothing.
    Missing,
    /// A whole number of 64 bits.
    Integer,
    /// Any other number, finite or not.
    Number,
    /// True or false.
    Boolean,
    /// A date, or a date with a time.
    Timestamp,
    /// None of these.
    Text,
}

/// Whether an unquoted text stands for a missing cell. The empty one does too, and is left to the caller.
pub(super) fn is_missing(cell: &[u8]) -> bool {
    matches!(cell, b"NA" | b"NaN" | b"nan" | b"null" | b"NULL" | b"N/A" | b"None")
}

/// The kind of a cell of text without spaces around it.
pub(super) fn classify(cell: &[u8]) -> CellKind {
    let Some(&first) = cell.first() else { return CellKind::Missing };
    if is_missing(cell) {
        return CellKind::Missing;
    }
    if whole_number(cell).is_some() {
        return CellKind::Integer;
    }
    if first.is_ascii_digit() && instant(cell).is_some() {
        return CellKind::Timestamp;
    }
    if number(cell).is_some() {
        return CellKind::Number;
    }
    if truth(cell).is_some() { CellKind::Boolean } else { CellKind::Text }
}

/// A decimal number, `inf` included and NaN not.
pub(super) fn number(cell: &[u8]) -> Option<f64> {
    fast_float2::parse::<f64, _>(cell).ok().filter(|value| !value.is_nan())
}

/// A whole number that fits 64 bits.
pub(super) fn whole_number(cell: &[u8]) -> Option<i64> {
    let (value, length) = leading_whole_number(cell)?;
    (length == cell.len()).then_some(value)
}

/// The whole number that a text begins with, and how many bytes it takes.
pub(super) fn leading_whole_number(text: &[u8]) -> Option<(i64, usize)> {
    let sign = usize::from(matches!(text.first(), Some(b'-' | b'+')));
    let negative = text.first() == Some(&b'-');
    let digits = &text[sign..];
    let mut length = 0;
    let mut magnitude = 0_u64;
    while let Some(digit) = digits.get(length).map(|byte| byte.wrapping_sub(b'0')).filter(|digit| *digit < 10) {
        magnitude =
            if length < 19 { magnitude * 10 + u64::from(digit) } else { magnitude.checked_mul(10)?.checked_add(u64::from(digit))? };
        length += 1;
    }
    let value = if negative { 0_i64.checked_sub_unsigned(magnitude)? } else { i64::try_from(magnitude).ok()? };
    (length > 0).then_some((value, sign + length))
}

/// True or false, in the three usual spellings.
pub(super) fn truth(cell: &[u8]) -> Option<bool> {
    match cell {
        b"true" | b"True" | b"TRUE" => Some(true),
        b"false" | b"False" | b"FALSE" => Some(false),
        _ => None,
    }
}

/// Microseconds since 1970 of an ISO 8601 date, date and time, or RFC 3339 timestamp; UTC where no offset is given.
pub(super) fn instant(cell: &[u8]) -> Option<i64> {
    static PARSER: jiff::fmt::temporal::DateTimeParser = jiff::fmt::temporal::DateTimeParser::new();
    if cell.len() < 10 || cell[4] != b'-' || cell[7] != b'-' {
        return None;
    }
    if cell.len() > 10
        && let Ok(timestamp) = PARSER.parse_timestamp(cell)
    {
        return Some(timestamp.as_microsecond());
    }
    let civil = PARSER.parse_datetime(cell).ok()?;
    jiff::tz::TimeZone::UTC.to_timestamp(civil).ok().map(|timestamp| timestamp.as_microsecond())
}

/// The RFC 3339 text of microseconds since 1970; none outside the years that have one.
pub(super) fn instant_text(microseconds: i64) -> Option<String> {
    jiff::Timestamp::from_microsecond(microseconds).ok().map(|timestamp| timestamp.to_string())
}

/// What the cells of a first chunk say about their column.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    integers: u64,
    numbers: u64,
    booleans: u64,
    timestamps: u64,
    texts: u64,
    longest: usize,
    hasher: RandomState,
    /// Hashes of the distinct cells; no more are added past [`LEVELS`].
    distinct: HashSet<u64>,
}

impl Evidence {
    /// Takes a cell, its kind and its text.
    pub(super) fn note(&mut self, kind: CellKind, text: &[u8]) {
        match kind {
            CellKind::Missing => return,
            CellKind::Integer => self.integers += 1,
            CellKind::Number => self.numbers += 1,
            CellKind::Boolean => self.booleans += 1,
            CellKind::Timestamp => self.timestamps += 1,
            CellKind::Text => self.texts += 1,
        }
        self.longest = self.longest.max(text.len());
        if self.distinct.len() <= LEVELS {
            self.distinct.insert(self.hasher.hash_one(text));
        }
    }

    /// The type that the cells speak for; none when all are missing.
    pub(super) fn verdict(&self) -> Option<ColumnType> {
        let numeric = self.integers + self.numbers;
        let values = numeric + self.booleans + self.timestamps + self.texts;
        let nearly = |count: u64| count * 10 >= values * 9 || (count + 1 == values && count >= 2);
        if values == 0 {
            None
        } else if nearly(numeric) {
            Some(if self.numbers == 0 { ColumnType::Integer } else { ColumnType::Number })
        } else if nearly(self.timestamps) {
            Some(ColumnType::Timestamp)
        } else if self.booleans == values {
            Some(ColumnType::Boolean)
        } else {
            let distinct = self.distinct.len();
            let few = distinct <= LEVELS && (values <= FEW || distinct as u64 * 2 <= values);
            Some(if few && self.longest <= LONGEST_LEVEL { ColumnType::Category } else { ColumnType::Text })
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn verdict<'c>(cells: impl IntoIterator<Item = &'c str>) -> Option<ColumnType> {
        let mut evidence = Evidence::default();
        for cell in cells {
            evidence.note(classify(cell.as_bytes()), cell.as_bytes());
        }
        evidence.verdict()
    }

    #[test]
    fn cells_are_read_as_what_they_are() {
        for (cell, kind) in [
            ("", CellKind::Missing),
            ("NaN", CellKind::Missing),
            ("None", CellKind::Missing),
            ("12", CellKind::Integer),
            ("-9223372036854775808", CellKind::Integer),
            ("9223372036854775808", CellKind::Number),
            ("1e400", CellKind::Number),
            ("-.5", CellKind::Number),
            ("inf", CellKind::Number),
            ("True", CellKind::Boolean),
            ("2024-02-29", CellKind::Timestamp),
            ("2024-02-29T12:00:00+02:00", CellKind::Timestamp),
            ("2024-02-29 12:00:00.5", CellKind::Timestamp),
            ("2023-02-29", CellKind::Text),
            ("1.5 kg", CellKind::Text),
            ("-", CellKind::Text),
            ("é", CellKind::Text),
        ] {
            assert_eq!(classify(cell.as_bytes()), kind, "{cell}");
        }
    }

    #[test]
    fn whole_numbers_stop_at_64_bits() {
        assert_eq!(whole_number(b"9223372036854775807"), Some(i64::MAX));
        assert_eq!(whole_number(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(whole_number(b"9223372036854775808"), None);
        assert_eq!(whole_number(b"00000000000000000000000012"), Some(12));
        assert_eq!(whole_number(b"99999999999999999999999999"), None);
        assert_eq!(whole_number(b"+"), None);
    }

    #[test]
    fn instants_without_an_offset_are_utc() {
        assert_eq!(instant(b"1970-01-02"), Some(86_400_000_000));
        assert_eq!(instant(b"1970-01-01T01:00:00.000001"), Some(3_600_000_001));
        assert_eq!(instant(b"1970-01-01T01:00:00+01:00"), Some(0));
        assert_eq!(instant_text(0).unwrap(), "1970-01-01T00:00:00Z");
        assert_eq!(instant_text(i64::MAX), None);
    }

    #[test]
    fn a_stray_text_among_numbers_is_a_bad_cell_and_many_make_texts() {
        assert_eq!(verdict(["1", "2", "x"]), Some(ColumnType::Integer));
        assert_eq!(verdict(["1.5", "2", "3"]), Some(ColumnType::Number));
        assert_eq!(verdict(["1", "x"]), Some(ColumnType::Category));
        assert_eq!(verdict(["1", "2", "x", "y"]), Some(ColumnType::Category));
        assert_eq!(verdict(["true", "FALSE"]), Some(ColumnType::Boolean));
        assert_eq!(verdict(["true", "maybe", "false"]), Some(ColumnType::Category));
        assert_eq!(verdict(["2024-01-01", "2024-01-02"]), Some(ColumnType::Timestamp));
        assert_eq!(verdict(["", "NA"]), None);
    }

    #[test]
    fn many_distinct_texts_are_text() {
        let texts: Vec<String> = (0..30).map(|index| format!("t{index}")).collect();
        assert_eq!(verdict(texts.iter().map(String::as_str)), Some(ColumnType::Text));
        assert_eq!(verdict(texts.iter().take(20).map(String::as_str)), Some(ColumnType::Category));
    }
}
