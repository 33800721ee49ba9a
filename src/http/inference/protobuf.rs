//! The wire format of Protocol Buffers, as far as the messages of [`super::grpc`] need it: fields are read where they lie, without a copy and
//! without a structure that a small message could make large, and written in order.
//!
//! Source: Protocol Buffers Documentation, *Encoding*, <https://protobuf.dev/programming-guides/encoding/>.

/// The bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message is not in the format of Protocol Buffers, or is cut off")]
pub(super) struct NotAMessage;

/// What stands in a field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Field<'a> {
    /// An integer or a boolean.
    Varint(u64),
    /// Eight bytes: a double or a fixed integer.
    Fixed64([u8; 8]),
    /// Four bytes.
    Fixed32([u8; 4]),
    /// Text, bytes, a message, or packed numbers.
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    /// The bytes of a field that has them.
    pub(super) fn bytes(self) -> Result<&'a [u8], NotAMessage> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(NotAMessage),
        }
    }

    /// A field that is text.
    pub(super) fn text(self) -> Result<&'a str, NotAMessage> {
        std::str::from_utf8(self.bytes()?).map_err(|_| NotAMessage)
    }

    /// A field that is an integer.
    pub(super) fn varint(self) -> Result<u64, NotAMessage> {
        match self {
            Self::Varint(value) => Ok(value),
            _ => Err(NotAMessage),
        }
    }
}

/// The fields of a message, in the order in which they stand: their numbers, and what is in them.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn next_field(&mut self) -> Result<(u32, Field<'a>), NotAMessage> {
        let key = take_varint(&mut self.0)?;
        let number = u32::try_from(key >> 3).ok().filter(|number| *number != 0).ok_or(NotAMessage)?;
        let field = match key & 7 {
            0 => Field::Varint(take_varint(&mut self.0)?),
            1 => Field::Fixed64(take_chunk(&mut self.0)?),
            2 => {
                let length = usize::try_from(take_varint(&mut self.0)?).map_err(|_| NotAMessage)?;
                let (bytes, rest) = self.0.split_at_checked(length).ok_or(NotAMessage)?;
                self.0 = rest;
                Field::Bytes(bytes)
            }
            5 => Field::Fixed32(take_chunk(&mut self.0)?),
            // Groups have not been written for a long time.
            _ => return Err(NotAMessage),
        };
        Ok((number, field))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Field<'a>), NotAMessage>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.next_field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

fn take_chunk<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], NotAMessage> {
    let (chunk, tail) = rest.split_first_chunk().ok_or(NotAMessage)?;
    *rest = tail;
    Ok(*chunk)
}

fn take_varint(rest: &mut &[u8]) -> Result<u64, NotAMessage> {
    let mut value = 0_u64;
    for (place, byte) in rest.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            *rest = &rest[place + 1..];
            return Ok(value);
        }
    }
    Err(NotAMessage)
}

/// Integers of a repeated field: one, or packed.
pub(super) fn varints<'a>(field: Field<'a>) -> impl Iterator<Item = Result<u64, NotAMessage>> + 'a {
    let (mut one, mut packed, mut failed) = match field {
        Field::Varint(value) => (Some(value), &[][..], false),
        Field::Bytes(bytes) => (None, bytes, false),
        _ => (None, &[][..], true),
    };
    std::iter::from_fn(move || {
        if std::mem::take(&mut failed) {
            return Some(Err(NotAMessage));
        }
        if let Some(value) = one.take() {
            return Some(Ok(value));
        }
        if packed.is_empty() {
            return None;
        }
        let value = take_varint(&mut packed);
        if value.is_err() {
            packed = &[];
        }
        Some(value)
    })
}

/// How many integers [`varints`] gives.
pub(super) fn count_varints(field: Field<'_>) -> usize {
    match field {
        Field::Bytes(bytes) => bytes.iter().filter(|byte| **byte & 0x80 == 0).count(),
        _ => 1,
    }
}

/// A message being written.
#[derive(Clone, Debug, Default)]
pub(super) struct Message(pub(super) Vec<u8>);

impl Message {
    /// An integer without a key.
    pub(super) fn plain(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// An integer or a boolean; 0 is not written, as the format has it.
    pub(super) fn integer(&mut self, number: u32, value: u64) {
        if value != 0 {
            self.plain(u64::from(number) << 3);
            self.plain(value);
        }
    }

    /// Bytes, text or a message, also when empty: an element of a list, or a member that is there.
    pub(super) fn bytes(&mut self, number: u32, bytes: &[u8]) {
        self.begin(number, bytes.len());
        self.0.extend_from_slice(bytes);
    }

    /// The key and the length of so many bytes, which the caller appends.
    pub(super) fn begin(&mut self, number: u32, length: usize) {
        self.plain(u64::from(number) << 3 | 2);
        self.plain(length as u64);
    }

    /// Text that is not written when empty.
    pub(super) fn text(&mut self, number: u32, text: &str) {
        if !text.is_empty() {
            self.bytes(number, text.as_bytes());
        }
    }

    /// Packed integers.
    pub(super) fn integers(&mut self, number: u32, values: &[i64]) {
        let mut packed = Self::default();
        values.iter().for_each(|value| packed.plain(*value as u64));
        if !values.is_empty() {
            self.bytes(number, &packed.0);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut message = Message::default();
        message.text(1, "lsqd");
        message.integer(2, 300);
        message.integer(3, 0);
        message.integers(4, &[-1, 0, 7]);
        message.bytes(5, b"");
        let fields: Vec<_> = Fields::of(&message.0).collect::<Result<_, _>>().unwrap();
        assert_eq!(fields.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2, 4, 5]);
        assert_eq!((fields[0].1.text(), fields[1].1.varint(), fields[3].1.bytes()), (Ok("lsqd"), Ok(300), Ok(&b""[..])));
        let values: Vec<i64> = varints(fields[2].1).map(|value| value.unwrap() as i64).collect();
        assert_eq!((values, count_varints(fields[2].1)), (vec![-1, 0, 7], 3));
    }

    #[test]
    fn the_documentations_own_example_is_read() {
        assert_eq!(Fields::of(&[0x08, 0x96, 0x01]).collect::<Vec<_>>(), [Ok((1, Field::Varint(150)))]);
    }

    #[test]
    fn what_is_no_message_is_an_error_once() {
        for bytes in [
            &b"\x08"[..],
            b"\x0a\x05abc",
            b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x09\x01",
            b"\x0d\x01",
            b"\x0b",
            b"\x00\x01",
        ] {
            assert_eq!(Fields::of(bytes).collect::<Vec<_>>(), [Err(NotAMessage)], "{bytes:?}");
        }
        assert_eq!(varints(Field::Bytes(b"\x01\xff")).collect::<Vec<_>>(), [Ok(1), Err(NotAMessage)]);
        assert_eq!(varints(Field::Fixed32([0; 4])).collect::<Vec<_>>(), [Err(NotAMessage)]);
    }
}
