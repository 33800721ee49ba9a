//! Little-endian bytes of stored states: written in order, read back in order, every length checked. Checksums are the store's.

use super::state::StateError;

/// Bytes being written.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn byte(&mut self, value: u8) -> &mut Self {
        self.bytes.push(value);
        self
    }

    pub(super) fn whole(&mut self, value: u64) -> &mut Self {
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn float(&mut self, value: f64) -> &mut Self {
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// A list with its length.
    pub(super) fn floats(&mut self, values: &[f64]) -> &mut Self {
        self.whole(values.len() as u64);
        values.iter().for_each(|value| _ = self.float(*value));
        self
    }

    /// Bytes that go to the end.
    pub(super) fn rest(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Bytes being read.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn word(&mut self) -> Result<[u8; 8], StateError> {
        let (word, rest) = self.rest.split_first_chunk::<8>().ok_or(StateError)?;
        self.rest = rest;
        Ok(*word)
    }

    pub(super) fn byte(&mut self) -> Result<u8, StateError> {
        let (byte, rest) = self.rest.split_first().ok_or(StateError)?;
        self.rest = rest;
        Ok(*byte)
    }

    pub(super) fn whole(&mut self) -> Result<u64, StateError> {
        self.word().map(u64::from_le_bytes)
    }

    pub(super) fn float(&mut self) -> Result<f64, StateError> {
        self.word().map(f64::from_le_bytes)
    }

    /// A count of things that take a byte each at the least, and are no more than `most`.
    pub(super) fn length(&mut self, most: usize) -> Result<usize, StateError> {
        let count = usize::try_from(self.whole()?).map_err(|_| StateError)?;
        if count <= most.min(self.rest.len()) { Ok(count) } else { Err(StateError) }
    }

    pub(super) fn floats(&mut self) -> Result<Vec<f64>, StateError> {
        let count = self.length(usize::MAX)?;
        (0..count).map(|_| self.float()).collect()
    }

    /// All that is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    #[cfg(test)]
    pub(super) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }
}
