//! What is wrong with rows, named by place; the caller's values are never repeated.

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// A JSON pointer into the request, or `/rows/{index}/{column}` for rows of any format (the index counts from 0).
    pub pointer: String,
    /// What is wrong, in words; names the row (from 1) and the column where there is one.
    pub detail: String,
}

/// A name as a part of a JSON pointer (RFC 6901).
pub(crate) fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// Faults kept of one request.
const REPORTED: usize = 20;

/// What a cell lacks to be predicted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// It is not there.
    Missing,
    /// Its category was not seen in training.
    Unseen,
}

/// The first twenty faults of a request, and how many there were in all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    first: Vec<Fault>,
    count: u64,
    lacks: Vec<(usize, Lack)>,
}

impl Faults {
    /// Adds one; past twenty only the count grows.
    pub fn push(&mut self, pointer: impl FnOnce() -> String, detail: impl FnOnce() -> String) {
        self.count += 1;
        if self.first.len() < REPORTED {
            self.first.push(Fault { pointer: pointer(), detail: detail() });
        }
    }

    /// Notes what a fault's cell lacks, by the place of its input; past twenty faults nothing is noted.
    pub fn lack(&mut self, place: usize, lack: Lack) {
        if self.first.len() < REPORTED {
            self.lacks.push((place, lack));
        }
    }

    /// What cells lack, by the place of their input.
    #[must_use]
    pub fn lacks(&self) -> &[(usize, Lack)] {
        &self.lacks
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether no more will be kept: reading on tells the caller nothing new.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.first.len() >= REPORTED
    }

    /// The same faults, their pointers written anew.
    #[must_use]
    pub fn moved(mut self, pointer: impl Fn(&str) -> String) -> Self {
        for fault in &mut self.first {
            fault.pointer = pointer(&fault.pointer);
        }
        self
    }

    /// The faults that were kept.
    #[must_use]
    pub fn into_vec(self) -> Vec<Fault> {
        self.first
    }
}

impl std::fmt::Display for Faults {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.first.as_slice() {
            [] => formatter.write_str("the rows cannot be taken"),
            [fault] if self.count == 1 => formatter.write_str(&fault.detail),
            [fault, ..] => write!(formatter, "{}, and {} more", fault.detail, self.count - 1),
        }
    }
}
