//! What a table's columns are called and what they hold. Not here: how types are inferred, how cells are stored.

use serde::{Deserialize, Serialize};
use unicode_normalization::{IsNormalized, UnicodeNormalization as _, is_nfc_quick};

/// Longest column name, in characters.
const LONGEST: usize = 128;

/// What the cells of a column are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColumnType {
    /// Finite 64-bit floats.
    Number,
    /// 64-bit whole numbers.
    Integer,
    /// True or false.
    Boolean,
    /// Texts of which there are few different ones.
    Category,
    /// Texts.
    Text,
    /// Points in time, UTC, to the microsecond.
    Timestamp,
}

impl ColumnType {
    /// The type of this name, as [`ColumnType::as_str`] gives it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "number" => Self::Number,
            "integer" => Self::Integer,
            "boolean" => Self::Boolean,
            "category" => Self::Category,
            "text" => Self::Text,
            "timestamp" => Self::Timestamp,
            _ => return None,
        })
    }

    /// Its name in requests and replies.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Number => "number",
            Self::Integer => "integer",
            Self::Boolean => "boolean",
            Self::Category => "category",
            Self::Text => "text",
            Self::Timestamp => "timestamp",
        }
    }

    /// The type that holds the cells of both, when stored frames of either kind may stand in one column.
    #[must_use]
    pub fn widened(self, other: Self) -> Option<Self> {
        match (self, other) {
            _ if self == other => Some(self),
            (Self::Number, Self::Integer) | (Self::Integer, Self::Number) => Some(Self::Number),
            (Self::Category, Self::Text) | (Self::Text, Self::Category) => Some(Self::Text),
            _ => None,
        }
    }
}

/// A column's name and type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name, in NFC.
    pub name: String,
    /// What it holds.
    #[serde(rename = "type")]
    pub kind: ColumnType,
}

/// The columns of a table in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    /// The columns.
    pub columns: Vec<Column>,
}

impl Schema {
    /// The place of the column of this name.
    #[must_use]
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }
}

/// A column's name in NFC, or in words why it is none.
pub(super) fn column_name(text: &str) -> Result<String, &'static str> {
    let name = normalised(text);
    match name.chars().count() {
        0 => Err("the name is empty"),
        count if count > LONGEST => Err("the name is longer than 128 characters"),
        _ if name.chars().any(|character| character.is_control() || character == '/') => {
            Err("the name has a control character or a `/` in it")
        }
        _ => Ok(name),
    }
}

/// The text in NFC.
pub(super) fn normalised(text: &str) -> String {
    if is_nfc_quick(text.chars()) == IsNormalized::Yes { text.to_owned() } else { text.nfc().collect() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn type_names_round_trip() {
        for kind in
            [ColumnType::Number, ColumnType::Integer, ColumnType::Boolean, ColumnType::Category, ColumnType::Text, ColumnType::Timestamp]
        {
            assert_eq!(ColumnType::parse(kind.as_str()), Some(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        assert_eq!(ColumnType::parse("Number"), None);
    }

    #[test]
    fn names_are_normalised_and_checked() {
        assert_eq!(column_name("cafe\u{301}").as_deref(), Ok("caf\u{e9}"));
        assert!(column_name("").is_err());
        assert!(column_name("a/b").is_err());
        assert!(column_name("a\nb").is_err());
        assert!(column_name(&"é".repeat(128)).is_ok());
        assert!(column_name(&"é".repeat(129)).is_err());
    }

    #[test]
    fn only_integer_and_category_widen() {
        assert_eq!(ColumnType::Integer.widened(ColumnType::Number), Some(ColumnType::Number));
        assert_eq!(ColumnType::Text.widened(ColumnType::Category), Some(ColumnType::Text));
        assert_eq!(ColumnType::Boolean.widened(ColumnType::Integer), None);
    }
}
