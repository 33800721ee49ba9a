//! A body that arrives piece by piece, cut into batches of whole lines. Lines are counted and never read: what they say is for [`super::rows`].
//!
//! What is held is at most one batch, the line that is not yet whole, and the last piece.

use bytes::{Bytes, BytesMut};

/// When a batch is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// Lines at the most.
    pub lines: u64,
    /// Bytes after which it is full. Its last line may reach beyond.
    pub bytes: usize,
}

impl Full {
    /// Batches that are learnt: each is a record of the log.
    pub const LEARNT: Self = Self { lines: 1_000, bytes: 256 << 10 };
    /// Batches that are answered and forgotten: large enough that handing them to another core costs little beside the work.
    pub const ANSWERED: Self = Self { lines: 16_384, bytes: 512 << 10 };
}

/// Bytes of a line at the most.
const LONGEST: usize = 1 << 20;

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    /// What stands before a line end: NDJSON.
    Plain,
    /// A record, whose fields in quotes may hold line ends: CSV.
    Records,
}

/// Whole lines, with their ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The lines.
    pub text: Bytes,
    /// The number of the first; the body's first is 1.
    pub first_line: u64,
    /// The number of the last.
    pub last_line: u64,
}

/// A line is longer than any row: 1 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {0} is longer than 1 MiB")]
pub struct LineTooLong(
    /// The line's number.
    pub u64,
);

/// Where in a CSV record the scan stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    FieldStart,
    Plain,
    Quoted,
    /// After a quote within quotes: the field's end, or the first half of a quote in it.
    Quote,
}

/// The lines that have arrived and were not taken.
#[derive(Debug)]
pub struct Batches {
    lines: Lines,
    full: Full,
    buffer: BytesMut,
    /// Bytes that were looked at.
    scanned: usize,
    /// Where the last whole line ends, of those that were looked at.
    whole: usize,
    /// Line ends before `scanned`, those in quotes among them.
    ends: u64,
    /// Line ends before `whole`.
    whole_ends: u64,
    /// Lines (records) before `whole`.
    count: u64,
    place: Place,
    /// Whether the line after `whole` is longer than any row.
    too_long: bool,
    next_line: u64,
    /// A batch does not reach past this line.
    border: u64,
    /// Whether a batch is a single line.
    single: bool,
    ended: bool,
}

impl Batches {
    /// Nothing has arrived yet.
    #[must_use]
    pub fn new(lines: Lines, full: Full) -> Self {
        Self {
            lines,
            full,
            buffer: BytesMut::new(),
            scanned: 0,
            whole: 0,
            ends: 0,
            whole_ends: 0,
            count: 0,
            place: Place::FieldStart,
            too_long: false,
            next_line: 1,
            border: u64::MAX,
            single: false,
            ended: false,
        }
    }

    /// Lets no batch reach past a line that is not yet taken.
    pub fn set_border(&mut self, line: u64) {
        self.border = line;
        self.rescan();
    }

    /// Gives lines one at a time (or again many).
    pub fn set_single(&mut self, single: bool) {
        self.single = single;
        self.rescan();
    }

    /// Takes a piece that has arrived.
    pub fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
        self.scan();
    }

    /// Says that the body has ended: what is left is its last line.
    pub fn end(&mut self) {
        self.ended = true;
        self.scan();
    }

    /// Whether a batch is as large as it may become, or an error waits behind it.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let most = if self.single { 1 } else { self.full.lines };
        self.too_long
            || self.count > 0 && (self.count >= most || self.whole >= self.full.bytes || self.next_line + self.whole_ends > self.border)
    }

    /// Whether there is no whole line.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The number of the first line that was not taken.
    #[must_use]
    pub fn next_line(&self) -> u64 {
        self.next_line
    }

    /// Takes the whole lines that are there, up to a full batch.
    ///
    /// # Errors
    /// There is none, and the next one is longer than 1 MiB.
    pub fn take(&mut self) -> Result<Option<Batch>, LineTooLong> {
        if self.count == 0 {
            return if self.too_long { Err(LineTooLong(self.next_line)) } else { Ok(None) };
        }
        let batch = Batch {
            text: self.buffer.split_to(self.whole).freeze(),
            first_line: self.next_line,
            last_line: self.next_line + self.whole_ends.max(1) - 1,
        };
        self.next_line = batch.last_line + 1;
        self.rescan();
        Ok(Some(batch))
    }

    fn rescan(&mut self) {
        (self.scanned, self.whole, self.ends, self.whole_ends, self.count) = (0, 0, 0, 0, 0);
        self.place = Place::FieldStart;
        self.too_long = false;
        self.scan();
    }

    /// Looks for line ends until the batch is full or the text is over.
    fn scan(&mut self) {
        while !self.is_full() {
            let end = self.line_end();
            if end.unwrap_or(self.buffer.len()) - self.whole > LONGEST {
                self.too_long = true;
                return;
            }
            match end {
                Some(end) => {
                    self.scanned = end + 1;
                    self.ends += 1;
                    self.close();
                }
                None => {
                    self.scanned = self.buffer.len();
                    if self.ended && self.whole < self.scanned {
                        // A last line without its end.
                        self.ends += 1;
                        self.close();
                    }
                    return;
                }
            }
        }
    }

    fn close(&mut self) {
        self.count += 1;
        self.whole = self.scanned;
        self.whole_ends = self.ends;
    }

    /// The end of the line in which `scanned` stands; `None` if it has not arrived.
    fn line_end(&mut self) -> Option<usize> {
        if self.lines == Lines::Plain {
            return memchr::memchr(b'\n', &self.buffer[self.scanned..]).map(|length| self.scanned + length);
        }
        let mut at = self.scanned;
        loop {
            let rest = &self.buffer[at..];
            match self.place {
                Place::Quoted => {
                    at += memchr::memchr2(b'"', b'\n', rest)? + 1;
                    if self.buffer[at - 1] == b'"' {
                        self.place = Place::Quote;
                    } else {
                        self.ends += 1;
                    }
                }
                Place::Quote => {
                    // A second quote goes on with the field; anything else is looked at as what stands outside of quotes.
                    let doubled = *rest.first()? == b'"';
                    at += usize::from(doubled);
                    self.place = if doubled { Place::Quoted } else { Place::Plain };
                }
                Place::FieldStart | Place::Plain => {
                    let found = memchr::memchr2(b'\n', b'"', rest);
                    let before = &rest[..found.unwrap_or(rest.len())];
                    // A quote opens a field only where the field begins; elsewhere it is text.
                    match before.last() {
                        Some(b',') => self.place = Place::FieldStart,
                        Some(_) => self.place = Place::Plain,
                        None => {}
                    }
                    at += found? + 1;
                    if self.buffer[at - 1] == b'\n' {
                        self.place = Place::FieldStart;
                        return Some(at - 1);
                    }
                    self.place = if self.place == Place::FieldStart { Place::Quoted } else { Place::Plain };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// All batches of a text that comes in pieces of `size` bytes, taken as soon as they are full.
    fn cut(lines: Lines, text: &[u8], size: usize) -> Vec<Batch> {
        let mut batches = Batches::new(lines, Full::LEARNT);
        let mut taken = Vec::new();
        for piece in text.chunks(size) {
            batches.push(piece);
            while batches.is_full() {
                taken.extend(batches.take().unwrap());
            }
        }
        batches.end();
        while let Some(batch) = batches.take().unwrap() {
            taken.push(batch);
        }
        taken
    }

    #[test]
    fn batches_are_the_body_in_order_whatever_the_pieces() {
        let plain: String = (0..2_500).map(|line| format!("{{\"x\":{line}}}\n")).collect();
        let quoted: String = (0..2_500).map(|line| format!("{line},\"a\n\"\"b,\",5\"\r\n")).collect();
        for (lines, text, ends) in [(Lines::Plain, plain, 1), (Lines::Records, quoted, 2)] {
            for size in [1, 7, 4096, usize::MAX] {
                let batches = cut(lines, text.as_bytes(), size);
                let spans: Vec<_> = batches.iter().map(|batch| (batch.first_line, batch.last_line)).collect();
                assert_eq!(spans, [(1, 1000 * ends), (1000 * ends + 1, 2000 * ends), (2000 * ends + 1, 2500 * ends)]);
                assert_eq!(batches.iter().flat_map(|batch| batch.text.to_vec()).collect::<Vec<u8>>(), text.as_bytes());
            }
        }
    }

    #[test]
    fn the_last_line_needs_no_end_and_a_line_that_is_not_whole_waits() {
        let mut batches = Batches::new(Lines::Plain, Full::LEARNT);
        batches.push(b"a\nb");
        assert_eq!(batches.take().unwrap().unwrap(), Batch { text: Bytes::from_static(b"a\n"), first_line: 1, last_line: 1 });
        assert_eq!((batches.take().unwrap(), batches.is_empty(), batches.next_line()), (None, true, 2));
        batches.push(b"c");
        batches.end();
        assert_eq!(batches.take().unwrap().unwrap(), Batch { text: Bytes::from_static(b"bc"), first_line: 2, last_line: 2 });
        assert_eq!(batches.take(), Ok(None));
        let mut quoted = Batches::new(Lines::Records, Full::LEARNT);
        quoted.push(b"a,\"b\nc\"\nd,\"e\n");
        quoted.end();
        let spans: Vec<_> = std::iter::from_fn(|| quoted.take().unwrap()).map(|batch| (batch.first_line, batch.last_line)).collect();
        assert_eq!(spans, [(1, 4)], "both records are whole: the second by the body's end");
    }

    #[test]
    fn a_border_and_a_single_line_end_a_batch() {
        let mut batches = Batches::new(Lines::Plain, Full::LEARNT);
        batches.set_border(3);
        batches.set_single(true);
        batches.push(b"1\n2\n3\n4\n5\n");
        assert!(batches.is_full());
        assert_eq!(batches.take().unwrap().unwrap().last_line, 1);
        batches.set_single(false);
        assert!(batches.is_full());
        assert_eq!(batches.take().unwrap().unwrap(), Batch { text: Bytes::from_static(b"2\n3\n"), first_line: 2, last_line: 3 });
        batches.set_border(u64::MAX);
        assert!(!batches.is_full());
        assert_eq!(batches.take().unwrap().unwrap().last_line, 5);
    }

    #[test]
    fn large_lines_fill_a_batch_and_larger_ones_are_refused() {
        let line = [vec![b'x'; 200 << 10], vec![b'\n']].concat();
        let batches = cut(Lines::Plain, &line.repeat(5), 1 << 16);
        assert_eq!(batches.iter().map(|batch| batch.last_line).collect::<Vec<_>>(), [2, 4, 5]);
        let mut batches = Batches::new(Lines::Plain, Full::LEARNT);
        batches.push(b"1\n2\n");
        let mut held = 0;
        while !batches.is_full() {
            held += 64 << 10;
            batches.push(&[b'x'; 64 << 10]);
        }
        assert_eq!(batches.take().unwrap().unwrap().last_line, 2, "what came before is good");
        assert_eq!(batches.take(), Err(LineTooLong(3)));
        assert!(held <= LONGEST + (128 << 10), "{held} bytes were held");
    }
}
