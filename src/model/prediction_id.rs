//! The id of a remembered prediction: a UUID of version 7 (RFC 9562, §5.7), so that ids come in the order of time and none can be guessed.

use std::fmt;

/// An id; 16 bytes, of which 74 bits are random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PredictionId([u8; 16]);

impl PredictionId {
    /// An id of that moment (milliseconds since 1970) with that randomness.
    #[must_use]
    pub fn new(milliseconds: u64, random: [u8; 10]) -> Self {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&milliseconds.to_be_bytes()[2..]);
        bytes[6..].copy_from_slice(&random);
        bytes[6] = 0x70 | bytes[6] & 0x0f;
        bytes[8] = 0x80 | bytes[8] & 0x3f;
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The id of this text, as [`fmt::Display`] writes it; capitals are as good.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits: Vec<u8> = match text.as_bytes() {
            text if text.len() == 36 => text.to_vec(),
            _ => return None,
        };
        let mut bytes = [0; 16];
        let mut nibbles = 0;
        for (place, digit) in digits.iter().enumerate() {
            if matches!(place, 8 | 13 | 18 | 23) {
                if *digit != b'-' {
                    return None;
                }
                continue;
            }
            let value = char::from(*digit).to_digit(16)?;
            bytes[nibbles / 2] = bytes[nibbles / 2] << 4 | u8::try_from(value).ok()?;
            nibbles += 1;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for PredictionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, byte) in self.0.iter().enumerate() {
            let dash = if matches!(place, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(formatter, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn ids_are_uuids_in_the_order_of_time() {
        // The example of RFC 9562, appendix A.6.
        let id = PredictionId::new(0x017f_22e2_79b0, [0x0c, 0xc3, 0x18, 0xc4, 0xdc, 0x0c, 0x0c, 0x07, 0x39, 0x8f]);
        assert_eq!(id.to_string(), "017f22e2-79b0-7cc3-98c4-dc0c0c07398f");
        assert!(PredictionId::new(1, [0xff; 10]) < PredictionId::new(2, [0; 10]));
    }

    #[test]
    fn texts_read_back_and_nothing_else_is_an_id() {
        let id = PredictionId::new(u64::MAX, [0xab; 10]);
        assert_eq!(PredictionId::parse(&id.to_string()), Some(id));
        assert_eq!(PredictionId::parse(&id.to_string().to_uppercase()), Some(id));
        for text in [
            "",
            "017f22e279b07cc398c4dc0c0c07398f",
            "017f22e2-79b0-7cc3-98c4-dc0c0c07398",
            "017f22e2-79b0-7cc3-98c4-dc0c0c07398g",
            "017f22e2x79b0-7cc3-98c4-dc0c0c07398f",
        ] {
            assert_eq!(PredictionId::parse(text), None, "{text}");
        }
    }
}
