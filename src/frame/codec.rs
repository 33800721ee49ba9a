//! The stored form of one column of one frame: versioned, checksummed, exact to the bit. Not here: where it is stored.
//!
//! Little-endian throughout:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | layout version, 1 |
//! | 1 | kind: 1 number, 2 integer, 3 boolean, 4 category, 5 text, 6 timestamp |
//! | 1 | 1 when a validity bitmap follows, else 0 |
//! | 1 | bytes of a category code: 1, 2 or 4; else 0 |
//! | 4 | rows |
//! | ⌈rows/8⌉ | the bitmap, when there is one: bit set is present |
//! | … | number, integer, timestamp: 8 bytes a row; boolean: a bitmap; text: texts; category: 4 bytes count of levels, texts, codes |
//! | 4 | CRC-32 of all before |
//!
//! Texts are (count + 1) offsets of 4 bytes and the bytes they point into. [`decode`] trusts nothing: any bytes give a column or an error,
//! and nothing is allocated that the bytes themselves do not pay for.

use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{
    Array, ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray,
};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, TimeUnit};

const VERSION: u8 = 1;
const HEADER: usize = 8;
const CHECKSUM: usize = 4;

const NUMBER: u8 = 1;
const INTEGER: u8 = 2;
const BOOLEAN: u8 = 3;
const CATEGORY: u8 = 4;
const TEXT: u8 = 5;
const TIMESTAMP: u8 = 6;

/// Bytes that are no column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The checksum is another: the bytes were damaged.
    #[error("the checksum of a column does not match")]
    Checksum,
    /// A layout this version does not know.
    #[error("a column is stored in a layout that is not known")]
    Version,
    /// The parts do not fit together.
    #[error("a stored column is malformed")]
    Malformed,
}

/// The stored form of a column.
///
/// # Panics
/// When the array is of a type that no [`super::Frame`] holds.
#[must_use]
pub fn encode(array: &ArrayRef) -> Vec<u8> {
    let rows = array.len();
    let mut out = Vec::with_capacity(HEADER + CHECKSUM + rows / 8 + 1 + rows * 8);
    out.extend_from_slice(&[VERSION, 0, 0, 0]);
    push_count(&mut out, rows);
    if let Some(nulls) = array.nulls().filter(|nulls| nulls.null_count() > 0) {
        out[2] = 1;
        push_bits(&mut out, nulls.inner());
    }
    out[1] = match array.data_type() {
        DataType::Float64 => {
            push_words(&mut out, array.as_primitive::<Float64Type>().values(), |value| value.to_le_bytes());
            NUMBER
        }
        DataType::Int64 => {
            push_words(&mut out, array.as_primitive::<Int64Type>().values(), |value| value.to_le_bytes());
            INTEGER
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            push_words(&mut out, array.as_primitive::<TimestampMicrosecondType>().values(), |value| value.to_le_bytes());
            TIMESTAMP
        }
        DataType::Boolean => {
            push_bits(&mut out, array.as_boolean().values());
            BOOLEAN
        }
        DataType::Utf8 => {
            push_texts(&mut out, array.as_string::<i32>());
            TEXT
        }
        DataType::Dictionary(..) => {
            let dictionary = array.as_dictionary::<Int32Type>();
            let levels = dictionary.values().as_string::<i32>();
            push_count(&mut out, levels.len());
            push_texts(&mut out, levels);
            let codes = dictionary.keys().values();
            out[3] = code_width(levels.len());
            match out[3] {
                1 => push_words(&mut out, codes, |code| [code.to_le_bytes()[0]]),
                2 => push_words(&mut out, codes, |code| [code.to_le_bytes()[0], code.to_le_bytes()[1]]),
                _ => push_words(&mut out, codes, |code| code.to_le_bytes()),
            }
            CATEGORY
        }
        other => unreachable!("a frame holds no array of type {other}"),
    };
    let checksum = crc32fast::hash(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

/// The column that [`encode`] stored.
///
/// # Errors
/// The bytes are not exactly what it wrote.
pub fn decode(bytes: &[u8]) -> Result<ArrayRef, DecodeError> {
    let (body, checksum) = bytes.split_last_chunk::<CHECKSUM>().ok_or(DecodeError::Malformed)?;
    if crc32fast::hash(body) != u32::from_le_bytes(*checksum) {
        return Err(DecodeError::Checksum);
    }
    let mut rest = Cursor(body);
    let [version, kind, validity, width] = *rest.take(4)? else { return Err(DecodeError::Malformed) };
    if version != VERSION {
        return Err(DecodeError::Version);
    }
    if validity > 1 || (kind != CATEGORY && width != 0) {
        return Err(DecodeError::Malformed);
    }
    let rows = rest.count()?;
    let nulls = if validity == 1 { Some(NullBuffer::new(rest.bits(rows)?)) } else { None };
    let array: ArrayRef = match kind {
        NUMBER => Arc::new(Float64Array::new(rest.words(rows, f64::from_le_bytes)?.into(), nulls)),
        INTEGER => Arc::new(Int64Array::new(rest.words(rows, i64::from_le_bytes)?.into(), nulls)),
        TIMESTAMP => Arc::new(TimestampMicrosecondArray::new(rest.words(rows, i64::from_le_bytes)?.into(), nulls).with_timezone("UTC")),
        BOOLEAN => Arc::new(BooleanArray::new(rest.bits(rows)?, nulls)),
        TEXT => Arc::new(rest.texts(rows, nulls)?),
        CATEGORY => {
            let count = rest.count()?;
            let levels = rest.texts(count, None)?;
            if width != code_width(count) {
                return Err(DecodeError::Malformed);
            }
            let codes: Vec<i32> = match width {
                1 => rest.words(rows, |[byte]| i32::from(byte))?,
                2 => rest.words(rows, |pair| i32::from(u16::from_le_bytes(pair)))?,
                _ => rest.words(rows, i32::from_le_bytes)?,
            };
            let codes = Int32Array::new(codes.into(), nulls);
            Arc::new(DictionaryArray::<Int32Type>::try_new(codes, Arc::new(levels)).map_err(|_| DecodeError::Malformed)?)
        }
        _ => return Err(DecodeError::Malformed),
    };
    if rest.0.is_empty() { Ok(array) } else { Err(DecodeError::Malformed) }
}

/// Bytes of a code among this many levels.
fn code_width(levels: usize) -> u8 {
    match levels {
        0..=256 => 1,
        257..=65_536 => 2,
        _ => 4,
    }
}

fn push_count(out: &mut Vec<u8>, count: usize) {
    // A frame's cells are bounded to a few megabytes, so a count always fits; `decode` refuses the saturated one.
    out.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}

fn push_words<T: Copy, const N: usize>(out: &mut Vec<u8>, values: &[T], bytes: impl Fn(T) -> [u8; N]) {
    let begin = out.len();
    out.resize(begin + values.len() * N, 0);
    for (slot, &value) in out[begin..].chunks_exact_mut(N).zip(values) {
        slot.copy_from_slice(&bytes(value));
    }
}

fn push_bits(out: &mut Vec<u8>, bits: &BooleanBuffer) {
    let begin = out.len();
    out.resize(begin + bits.len().div_ceil(8), 0);
    for index in bits.set_indices() {
        out[begin + index / 8] |= 1 << (index % 8);
    }
}

fn push_texts(out: &mut Vec<u8>, texts: &StringArray) {
    let offsets = texts.value_offsets();
    let first = offsets.first().copied().unwrap_or(0);
    push_words(out, offsets, |offset| (offset - first).to_le_bytes());
    let last = offsets.last().copied().unwrap_or(0);
    let range = usize::try_from(first).unwrap_or(0)..usize::try_from(last).unwrap_or(0);
    out.extend_from_slice(&texts.value_data()[range]);
}

struct Cursor<'b>(&'b [u8]);

impl<'b> Cursor<'b> {
    fn take(&mut self, count: usize) -> Result<&'b [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(DecodeError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn count(&mut self) -> Result<usize, DecodeError> {
        let (count, rest) = self.0.split_first_chunk::<4>().ok_or(DecodeError::Malformed)?;
        self.0 = rest;
        i32::try_from(u32::from_le_bytes(*count)).ok().and_then(|count| usize::try_from(count).ok()).ok_or(DecodeError::Malformed)
    }

    fn words<T, const N: usize>(&mut self, count: usize, value: impl Fn([u8; N]) -> T) -> Result<Vec<T>, DecodeError> {
        let bytes = self.take(count.checked_mul(N).ok_or(DecodeError::Malformed)?)?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|chunk| value(*chunk)).collect())
    }

    fn bits(&mut self, count: usize) -> Result<BooleanBuffer, DecodeError> {
        let bytes = self.take(count.div_ceil(8))?;
        Ok(BooleanBuffer::new(Buffer::from(bytes), 0, count))
    }

    fn texts(&mut self, count: usize, nulls: Option<NullBuffer>) -> Result<StringArray, DecodeError> {
        let offsets: Vec<i32> = self.words(count.checked_add(1).ok_or(DecodeError::Malformed)?, i32::from_le_bytes)?;
        if offsets.first() != Some(&0) || !offsets.is_sorted() {
            return Err(DecodeError::Malformed);
        }
        let length = offsets.last().and_then(|last| usize::try_from(*last).ok()).ok_or(DecodeError::Malformed)?;
        let bytes = self.take(length)?;
        StringArray::try_new(OffsetBuffer::new(ScalarBuffer::from(offsets)), Buffer::from(bytes), nulls).map_err(|_| DecodeError::Malformed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn columns() -> Vec<ArrayRef> {
        let nulls = || Some(NullBuffer::from(vec![true, false, true, true, true]));
        let floats = vec![-0.0, 0.0, f64::from_bits(1), 1.797_693_134_862_315_7e308, 0.1];
        let levels = |count: usize| Arc::new(StringArray::from_iter_values((0..count).map(|level| format!("level {level}"))));
        vec![
            Arc::new(Float64Array::new(floats.clone().into(), None)),
            Arc::new(Float64Array::new(floats.into(), nulls())),
            Arc::new(Int64Array::new(vec![i64::MIN, 0, 1, i64::MAX, (1 << 53) + 1].into(), nulls())),
            Arc::new(TimestampMicrosecondArray::new(vec![0, 1, -1, i64::MAX, 5].into(), nulls()).with_timezone("UTC")),
            Arc::new(BooleanArray::new(BooleanBuffer::from(vec![true, false, false, true, true]), nulls())),
            Arc::new(StringArray::from(vec![Some("é"), None, Some(""), Some("a\nb"), Some("c")])),
            Arc::new(DictionaryArray::new(Int32Array::new(vec![0, 0, 2, 1, 2].into(), nulls()), levels(3))),
            Arc::new(DictionaryArray::new(Int32Array::from(vec![0, 299]), levels(300))),
            Arc::new(DictionaryArray::new(Int32Array::new(vec![0].into(), Some(NullBuffer::from(vec![false]))), levels(0))),
            Arc::new(Float64Array::from(Vec::<f64>::new())),
            Arc::new(StringArray::from(Vec::<&str>::new())),
        ]
    }

    #[test]
    fn columns_round_trip_to_the_bit() {
        for column in columns() {
            let back = decode(&encode(&column)).unwrap();
            assert_eq!(back.to_data(), column.to_data());
            if let Some(numbers) = column.as_primitive_opt::<Float64Type>() {
                let bits = |array: &Float64Array| array.values().iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(back.as_primitive()), bits(numbers));
            }
        }
    }

    #[test]
    fn a_slice_is_stored_as_what_it_shows() {
        for column in columns() {
            let slice = column.slice(column.len() / 2, column.len() - column.len() / 2);
            assert_eq!(&decode(&encode(&slice)).unwrap(), &slice);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_detected() {
        for column in columns() {
            let good = encode(&column);
            for bit in 0..good.len() * 8 {
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(decode(&bad).is_err(), "bit {bit}");
            }
            for cut in 0..good.len() {
                assert!(decode(&good[..cut]).is_err(), "cut {cut}");
            }
        }
    }

    #[test]
    fn forged_bytes_with_a_right_checksum_never_panic() {
        for column in columns() {
            let good = encode(&column);
            for place in 0..good.len() - CHECKSUM {
                for byte in [0, 1, 2, 6, 7, 0x7f, 0x80, 0xff] {
                    let mut bad = good[..good.len() - CHECKSUM].to_vec();
                    bad[place] = byte;
                    let checksum = crc32fast::hash(&bad);
                    bad.extend_from_slice(&checksum.to_le_bytes());
                    let _ = decode(&bad);
                }
            }
        }
        let huge = [1, NUMBER, 0, 0, 0xff, 0xff, 0xff, 0x7f];
        let mut bad = huge.to_vec();
        bad.extend_from_slice(&crc32fast::hash(&huge).to_le_bytes());
        assert_eq!(decode(&bad).unwrap_err(), DecodeError::Malformed);
    }
}
