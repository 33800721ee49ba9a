//! Names of datasets, models and aliases.

use unicode_normalization::UnicodeNormalization as _;

/// Longest name, in characters.
pub const LONGEST: usize = 128;

/// Why a name is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing at all.
    #[error("a name has at least one character")]
    Empty,
    /// More than [`LONGEST`] characters.
    #[error("a name has at most 128 characters")]
    Long,
    /// Control characters, `/`, or (for models and aliases) `@`.
    #[error("a name has no control characters and no `/`; a model's or alias's has no `@` either")]
    Character,
    /// An alias that would read as a version number.
    #[error("an alias is not a number: `name@3` means version 3")]
    Number,
}

/// A dataset's name in NFC.
///
/// # Errors
/// See [`NameError`].
pub fn dataset(text: &str) -> Result<String, NameError> {
    check(text, |_| false)
}

/// A model's name in NFC; `@` is left out because `name@alias` is an address.
///
/// # Errors
/// See [`NameError`].
pub fn model(text: &str) -> Result<String, NameError> {
    check(text, |character| character == '@')
}

/// An alias in NFC; not a number.
///
/// # Errors
/// See [`NameError`].
pub fn alias(text: &str) -> Result<String, NameError> {
    let name = model(text)?;
    if name.bytes().all(|byte| byte.is_ascii_digit()) { Err(NameError::Number) } else { Ok(name) }
}

fn check(text: &str, barred: impl Fn(char) -> bool) -> Result<String, NameError> {
    let name: String = text.nfc().collect();
    match name.chars().count() {
        0 => Err(NameError::Empty),
        count if count > LONGEST => Err(NameError::Long),
        _ if name == "."
            || name == ".."
            || name.chars().any(|character| character.is_control() || character == '/' || barred(character)) =>
        {
            Err(NameError::Character)
        }
        _ => Ok(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_and_normalised() {
        assert_eq!(dataset("caf\u{65}\u{301}").as_deref(), Ok("caf\u{e9}"));
        assert_eq!(dataset("a@b").as_deref(), Ok("a@b"));
        assert_eq!(model("a@b"), Err(NameError::Character));
        assert_eq!(dataset(""), Err(NameError::Empty));
        assert_eq!(dataset("a/b"), Err(NameError::Character));
        assert_eq!(dataset(".."), Err(NameError::Character));
        assert_eq!(dataset("a\u{7}"), Err(NameError::Character));
        assert_eq!(dataset(&"é".repeat(128)).map(|name| name.chars().count()), Ok(128));
        assert_eq!(dataset(&"é".repeat(129)), Err(NameError::Long));
        assert_eq!(alias("12"), Err(NameError::Number));
        assert_eq!(alias("v12").as_deref(), Ok("v12"));
    }
}
