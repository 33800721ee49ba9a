//! Lists of lists in JSON, flattened into the elements of a tensor while they are read. Not here: what a tensor means.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::tensor::Elements;

/// Elements in the order in which they stand, however deep their lists are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Nested {
    elements: Option<Elements<'static>>,
    /// Of each depth, the length of its lists: not known before the first ends, and none where they differ.
    extents: Vec<Option<Option<u64>>>,
    /// How deep the first element lies; elements at other depths make the lists ragged.
    depth: Option<usize>,
    ragged: bool,
}

impl Nested {
    /// The elements; null is NaN among numbers.
    #[must_use]
    pub fn into_elements(self) -> Elements<'static> {
        self.elements.unwrap_or(Elements::Numbers(Vec::new()))
    }

    /// The length of the lists at each depth; `None` if those of one depth differ.
    #[must_use]
    pub fn shape(&self) -> Option<Vec<u64>> {
        if self.ragged { None } else { self.extents.iter().map(|extent| extent.flatten()).collect() }
    }

    /// How many elements there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.elements.as_ref().map_or(0, Elements::len)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether all elements are texts.
    #[must_use]
    pub fn is_text(&self) -> bool {
        matches!(self.elements, Some(Elements::Texts(_)))
    }

    /// Whether all elements are booleans.
    #[must_use]
    pub fn is_boolean(&self) -> bool {
        matches!(self.elements, Some(Elements::Booleans(_)))
    }

    fn leaf(&mut self, depth: usize) {
        self.ragged |= *self.depth.get_or_insert(depth) != depth || self.extents.len() > depth;
    }

    fn number(&mut self, value: f64) -> Result<(), &'static str> {
        match self.elements.get_or_insert_with(|| Elements::Numbers(Vec::new())) {
            Elements::Numbers(values) => values.push(value),
            _ => return Err(MIXED),
        }
        Ok(())
    }
}

const MIXED: &str = "a tensor's elements are all numbers, all booleans or all strings";

impl<'de> Deserialize<'de> for Nested {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut nested = Self::default();
        deserializer.deserialize_seq(Part { nested: &mut nested, depth: 0 })?;
        Ok(nested)
    }
}

/// Takes an element, or a list of what lies one deeper.
struct Part<'a> {
    nested: &'a mut Nested,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Part<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Part<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a number, a boolean, a string, null, or a list of such")
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.nested.leaf(self.depth);
        self.nested.number(value).map_err(E::custom)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.visit_f64(value as f64)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.visit_f64(value as f64)
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.visit_f64(f64::NAN)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.nested.leaf(self.depth);
        match self.nested.elements.get_or_insert_with(|| Elements::Booleans(Vec::new())) {
            Elements::Booleans(values) => values.push(value),
            _ => return Err(E::custom(MIXED)),
        }
        Ok(())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.nested.leaf(self.depth);
        match self.nested.elements.get_or_insert_with(|| Elements::Texts(Vec::new())) {
            Elements::Texts(values) => values.push(value.to_owned()),
            _ => return Err(E::custom(MIXED)),
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let mut length = 0;
        while list.next_element_seed(Part { nested: &mut *self.nested, depth: self.depth + 1 })?.is_some() {
            length += 1;
        }
        let extents = &mut self.nested.extents;
        if extents.len() <= self.depth {
            extents.resize(self.depth + 1, None);
        }
        extents[self.depth] = Some(match extents[self.depth] {
            None => Some(length),
            Some(before) => before.filter(|before| *before == length),
        });
        // Elements that lie less deep than a list.
        self.nested.ragged |= self.nested.depth.is_some_and(|depth| depth <= self.depth);
        Ok(())
    }
}

/// Lists by name: of an object of lists, or gathered from a list of objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Columns {
    /// The names in the order in which they were first met, each with what stood under it.
    pub columns: Vec<(String, Nested)>,
    /// Objects of the list.
    pub rows: u64,
    places: HashMap<String, usize>,
}

impl Columns {
    /// Reads a list of objects, whose values are elements or lists of such.
    ///
    /// # Errors
    /// It is no such list.
    pub fn of_rows(json: &[u8]) -> serde_json::Result<Self> {
        let mut columns = Self::default();
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        deserializer.deserialize_seq(Rows(&mut columns))?;
        Ok(columns)
    }

    /// Reads an object of lists.
    ///
    /// # Errors
    /// It is no such object.
    pub fn of_lists(json: &[u8]) -> serde_json::Result<Self> {
        let mut columns = Self::default();
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        deserializer.deserialize_map(Members(&mut columns))?;
        Ok(columns)
    }
}

struct Rows<'a>(&'a mut Columns);

impl<'de> Visitor<'de> for Rows<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Members(&mut *self.0))?.is_some() {
            self.0.rows += 1;
        }
        Ok(())
    }
}

struct Members<'a>(&'a mut Columns);

impl<'de> DeserializeSeed<'de> for Members<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Members<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object whose values are elements or lists of them")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let Columns { columns, places, .. } = self.0;
        let mut position = 0;
        while let Some(name) = members.next_key::<Cow<'_, str>>()? {
            // The names of a row mostly stand in the order of the row before.
            let place = match columns.get(position) {
                Some((known, _)) if *known == name => position,
                _ => *places.entry(name.into_owned()).or_insert_with_key(|name| {
                    columns.push((name.clone(), Nested::default()));
                    columns.len() - 1
                }),
            };
            members.next_value_seed(Part { nested: &mut columns[place].1, depth: 0 })?;
            position = place + 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn lists_are_flattened_and_their_shape_is_known_unless_they_are_ragged() {
        for (text, shape, length) in [
            ("[]", Some(vec![0]), 0),
            ("[1, 2.5, null]", Some(vec![3]), 3),
            ("[[1, 2], [3, 4], [5, 6]]", Some(vec![3, 2]), 6),
            ("[[[\"a\"]], [[\"b\"]]]", Some(vec![2, 1, 1]), 2),
            ("[[], []]", Some(vec![2, 0]), 0),
            ("[[1, 2], [3]]", None, 3),
            ("[1, [2]]", None, 2),
            ("[[1], 2]", None, 2),
            ("[[], 2]", None, 1),
        ] {
            let nested: Nested = serde_json::from_str(text).unwrap();
            assert_eq!((nested.shape(), nested.len()), (shape, length), "{text}");
        }
        for text in ["3", "{}", "[1, true]", "[\"a\", 1]", "[{}]", "[1"] {
            assert!(serde_json::from_str::<Nested>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn columns_are_gathered_from_rows_in_any_order_of_names() {
        let columns = Columns::of_rows(br#"[{"a": 1, "b": ["x"]}, {"b": ["y"], "a": 2}]"#).unwrap();
        assert_eq!(columns.rows, 2);
        let names: Vec<&str> = columns.columns.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(columns.columns[0].1.clone().into_elements(), Elements::Numbers(vec![1.0, 2.0]));
        assert!(columns.columns[1].1.is_text());
        let lists = Columns::of_lists(br#"{"a": [[1], [2]], "b": [true, false]}"#).unwrap();
        assert_eq!((lists.columns[0].1.shape(), lists.columns[1].1.is_boolean()), (Some(vec![2, 1]), true));
        assert!(Columns::of_rows(br#"[{"a": {}}]"#).is_err());
        assert!(Columns::of_lists(br#"[1]"#).is_err());
    }
}
