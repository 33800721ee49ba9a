//! What a row of a request holds: the names a model takes, and what stands under each. Not the schema of a stored table.

use std::collections::HashMap;

use unicode_normalization::{UnicodeNormalization as _, is_nfc};

use super::reply::push_json_string;

/// What to do with a category that training never saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unseen {
    /// Refuse the row and name the column.
    #[default]
    Error,
    /// The cell is −1: no indicator is set.
    Baseline,
}

/// What stands in a cell.
#[derive(Clone, Debug, PartialEq)]
pub enum InputKind {
    /// A finite number.
    Number,
    /// A number that was whole in training; a fraction is as good here.
    Integer,
    /// A finite number above this one.
    Above(f64),
    /// A point in time, as a dataset would hold it; the cell is microseconds since 1970.
    Timestamp,
    /// `true` or `false`, or 1 or 0; the cell is 1 or 0.
    Boolean,
    /// One of the levels; the cell is the level's index.
    Category {
        /// Each level's index.
        levels: HashMap<String, u32>,
        /// What becomes of another one.
        unseen: Unseen,
    },
}

/// One name and what stands under it.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// The column's name.
    pub name: String,
    /// What its cells are.
    pub kind: InputKind,
    /// Whether a row must hold it; a cell that is missing without being required is NaN.
    pub required: bool,
}

/// How the levels of a category are spelt, which says what besides their exact text names one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// Any text: only exactly itself.
    Text,
    /// All levels are i64 in decimal: the column held integers, so `+7` and `07` are 7.
    Integers,
    /// All levels are `true` or `false`: the column held booleans, so `TRUE` is `true`.
    Booleans,
}

/// The inputs of a model in order, with their names looked up by hash.
#[derive(Clone, Debug, Default)]
pub struct InputSchema {
    inputs: Vec<Input>,
    /// Of each input; `Text` where it is no category.
    spellings: Vec<Spelling>,
    places: HashMap<String, usize>,
    /// Each name as JSON usually has it before its value: quoted, with the colon.
    spelt: Vec<Vec<u8>>,
}

impl InputSchema {
    /// A schema of these inputs; of two with one name, the first is found.
    #[must_use]
    pub fn new(inputs: Vec<Input>) -> Self {
        let mut places = HashMap::with_capacity(inputs.len());
        for (place, input) in inputs.iter().enumerate() {
            places.entry(input.name.clone()).or_insert(place);
        }
        for (place, input) in inputs.iter().enumerate() {
            if !is_nfc(&input.name) {
                places.entry(input.name.nfc().collect()).or_insert(place);
            }
        }
        let spellings = inputs.iter().map(|input| spelling(&input.kind)).collect();
        let spelt = |(place, input): (usize, &Input)| {
            let mut text = Vec::new();
            // Of two inputs with one name, the second is never meant.
            if places.get(&input.name) == Some(&place) {
                push_json_string(&mut text, &input.name);
                text.push(b':');
            }
            text
        };
        let spelt = inputs.iter().enumerate().map(spelt).collect();
        Self { inputs, spellings, places, spelt }
    }

    /// The inputs, one a cell of a row.
    #[must_use]
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// Cells of a row.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inputs.len()
    }

    /// Whether rows have no cells.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inputs.is_empty()
    }

    /// The cell of that name; names are compared in NFC.
    #[must_use]
    pub fn place_of(&self, name: &str) -> Option<usize> {
        let exact = self.places.get(name).copied();
        if exact.is_some() || name.is_ascii() {
            return exact;
        }
        let normalised: String = name.nfc().collect();
        self.places.get(&normalised).copied()
    }

    /// The name of the input at `place` as JSON usually has it, quoted and with its colon; empty if it is not to be found by that name.
    pub(crate) fn spelt(&self, place: usize) -> &[u8] {
        self.spelt.get(place).map_or(&[], Vec::as_slice)
    }

    /// How the levels of the input at `place` are spelt.
    pub(crate) fn spelling(&self, place: usize) -> Spelling {
        self.spellings[place]
    }
}

fn spelling(kind: &InputKind) -> Spelling {
    let InputKind::Category { levels, .. } = kind else {
        return Spelling::Text;
    };
    if levels.is_empty() {
        Spelling::Text
    } else if levels.keys().all(|level| level == "true" || level == "false") {
        Spelling::Booleans
    } else if levels.keys().all(|level| level.parse::<i64>().is_ok_and(|value| value.to_string() == *level)) {
        Spelling::Integers
    } else {
        Spelling::Text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn category(levels: &[&str]) -> Input {
        let levels = (0..).zip(levels).map(|(index, level)| ((*level).to_owned(), index)).collect();
        Input { name: "c".to_owned(), kind: InputKind::Category { levels, unseen: Unseen::Error }, required: true }
    }

    #[test]
    fn names_are_found_in_either_normal_form() {
        let number = |name: &str| Input { name: name.to_owned(), kind: InputKind::Number, required: true };
        let schema = InputSchema::new(vec![number("a"), number("caf\u{e9}"), number("e\u{301}"), number("a")]);
        assert_eq!(schema.place_of("a"), Some(0));
        assert_eq!(schema.place_of("caf\u{e9}"), Some(1));
        assert_eq!(schema.place_of("cafe\u{301}"), Some(1));
        assert_eq!(schema.place_of("\u{e9}"), Some(2));
        assert_eq!(schema.place_of("e\u{301}"), Some(2));
        assert_eq!(schema.place_of("b"), None);
        assert_eq!(schema.place_of(""), None);
    }

    #[test]
    fn levels_are_integers_or_booleans_only_when_all_are() {
        for (levels, expected) in [
            (&["1", "-2", "30"][..], Spelling::Integers),
            (&["1", "02"], Spelling::Text),
            (&["true", "false"], Spelling::Booleans),
            (&["true", "maybe"], Spelling::Text),
            (&["9223372036854775808"], Spelling::Text),
            (&[], Spelling::Text),
        ] {
            assert_eq!(InputSchema::new(vec![category(levels)]).spelling(0), expected, "{levels:?}");
        }
    }
}
