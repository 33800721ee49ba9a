//! What streams of rows have in common, be they learnt or answered: the next piece of a body, a batch of lines as rows, faults named by line.

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use tokio::sync::watch;

use super::error::ServiceError;
use crate::frame::rows::{Rows, RowsOptions, parse_csv_batch, parse_ndjson_batch};
use crate::frame::{Batch, Fault, InputSchema, Lines};

/// Batches larger than this are parsed off the async threads.
pub(super) const LARGE: usize = 64 << 10;

/// The next piece of a body; `None` at its end. May be dropped and asked for again: nothing is lost.
pub(super) async fn receive<B>(body: &mut B, stopping: &mut watch::Receiver<bool>) -> Result<Option<Bytes>, ServiceError>
where
    B: Stream<Item = Result<Bytes, ServiceError>> + Unpin,
{
    tokio::select! {
        biased;
        () = async { drop(stopping.wait_for(|stopping| *stopping).await) } => {
            Err(ServiceError::Unavailable("the server is stopping; send the rest again in a moment"))
        }
        piece = body.next() => piece.transpose(),
    }
}

/// How the lines of a body become rows.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    lines: Lines,
    options: RowsOptions,
    /// The header of CSV and its line.
    header: Option<(Bytes, u64)>,
}

impl Reading {
    pub(super) fn new(lines: Lines, options: RowsOptions) -> Self {
        Self { lines, options, header: None }
    }

    /// Whether the header of CSV has still to come. Until then, lines are taken one at a time.
    pub(super) fn awaits_header(&self) -> bool {
        self.lines == Lines::Records && self.header.is_none()
    }

    /// Takes the line as the header unless it is blank, and has its faults told before any row is taken.
    pub(super) fn take_header(&mut self, batch: Batch, schema: &InputSchema) -> Result<(), ServiceError> {
        if batch.text.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let header = (batch.text, batch.first_line);
        parse_csv_batch((&header.0, header.1), (&[], batch.last_line + 1), schema, &self.options, &mut Rows::default())?;
        self.header = Some(header);
        Ok(())
    }

    /// The rows of a batch.
    pub(super) fn parse(&self, batch: &Batch, schema: &InputSchema, rows: &mut Rows) -> Result<(), ServiceError> {
        let (text, first_line) = (&batch.text, batch.first_line);
        match &self.header {
            Some((header, line)) => parse_csv_batch((header, *line), (text, first_line), schema, &self.options, rows)?,
            None => parse_ndjson_batch(text, first_line, schema, &self.options, rows)?,
        }
        Ok(())
    }

    /// What a body that has ended should have held and did not.
    pub(super) fn lacking(&self) -> Option<ServiceError> {
        self.awaits_header().then(|| {
            let detail = "the body is not CSV: it has no header line".to_owned();
            ServiceError::Syntax(Fault { pointer: String::new(), detail })
        })
    }
}

/// A row that could not be learnt or answered, named by its line.
pub(super) fn by_line(error: ServiceError, lines: &[u64]) -> ServiceError {
    placed(error, |row| lines.get(row).map(|line| ("lines", "line", *line, *line)))
}

/// The same, named by its number among all rows: `first_row`, from 0, is that of the first of these.
pub(super) fn by_row(error: ServiceError, first_row: u64) -> ServiceError {
    numbered(error, |row| first_row + row as u64)
}

/// The same, by a number, from 0, that each row has.
pub(super) fn numbered(error: ServiceError, number: impl Fn(usize) -> u64) -> ServiceError {
    placed(error, |row| Some(("rows", "row", number(row), number(row) + 1)))
}

/// Faults of rows, which count from 0, under other names and numbers: those of their pointer and those of their words.
fn placed(error: ServiceError, place: impl Fn(usize) -> Option<(&'static str, &'static str, u64, u64)>) -> ServiceError {
    let ServiceError::Request(mut faults) = error else { return error };
    for fault in &mut faults {
        let row = fault.pointer.strip_prefix("/rows/").and_then(|row| row.parse::<usize>().ok());
        if let Some((member, word, number, said)) = row.and_then(&place) {
            let what = fault.detail.split_once(": ").map_or(fault.detail.as_str(), |(_, what)| what);
            *fault = Fault { pointer: format!("/{member}/{number}"), detail: format!("{word} {said}: {what}") };
        }
    }
    ServiceError::Request(faults)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_row_that_cannot_be_taken_is_named_by_its_line() {
        let error = ServiceError::request("/rows/1", "row 2: it is too large");
        let ServiceError::Request(faults) = by_line(error, &[4, 9]) else { panic!("another error") };
        assert_eq!(faults, [Fault { pointer: "/lines/9".to_owned(), detail: "line 9: it is too large".to_owned() }]);
    }

    #[test]
    fn a_row_of_many_is_named_by_its_number_among_all() {
        let error = by_row(ServiceError::request("/rows/2", "row 3: it is too large"), 1000);
        let ServiceError::Request(faults) = error else { panic!("{error:?}") };
        assert_eq!((faults[0].pointer.as_str(), faults[0].detail.as_str()), ("/rows/1002", "row 1003: it is too large"));
    }
}
