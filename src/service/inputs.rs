//! Watching what versions are asked to predict: the cells of rows beside those of training, their leverage, and what was refused.
//!
//! **Counting** happens on the thread that answers, and is a few adds a row: each thread has a shard of counters of its own in each version it
//! answers with, so that no other thread writes there, no lock is taken, and nothing is allocated but a shard at its first row. All rows of
//! a request of one or two count; of a longer one two and one of each eight of the rest, drawn from equal stretches. Leverage that was
//! asked for is counted for each of those rows, otherwise for one of sixty-four (of p where p is more): it costs p² multiplications.
//!
//! **Looking** is done by a clock, and by who asks: the shards are summed, the sum of five minutes is put by, and the features are judged by
//! the last hour. A feature that turns is told as an event. Counters live in memory alone: they begin anew with the process.
//!
//! Not here: what a bin is, and what is made of the counts (`model::inputs`).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::catalogue::Version;
use super::events::Channel;
use super::{Service, ServiceError};
use crate::features::{Design, RowBuffer, scattered};
use crate::frame::Lack;
use crate::lsq::Gathered;
use crate::model::State;
use crate::model::inputs::{Binning, Comparison, Inputs, Reference, Standing};
use crate::model::prediction::{Answer, ceiling};
use crate::telemetry;

/// Rows of a request that all count.
const ALL: usize = 2;
/// Of rows after those, one in so many.
const ONE_IN: usize = 8;
/// Of rows whose leverage nobody asked for, one in so many, or in p.
const LEVERAGE_ONE_IN: usize = 64;
/// Threads that have counters of their own; others share some.
const SEATS: usize = 64;
/// How often somebody looks.
const LOOK: Duration = Duration::from_secs(5);
/// What is put by at once.
const PERIOD: SignedDuration = SignedDuration::from_mins(5);
/// Periods of the window, the present one not counted.
const PERIODS: usize = 12;
/// Models whose figures are metrics, and features of each.
const MEASURED_MODELS: usize = 100;
const MEASURED_FEATURES: usize = 20;

/// Bins of leverage an octave, as a power of two; from 2⁻⁴⁰ to 2⁸, and what is beyond lies in the outermost.
const FINENESS: u32 = 3;
const LOWEST: i64 = (1023 - 40) << FINENESS;
const LEVERAGE_BINS: usize = 48 << FINENESS;

// The first counters of a shard. After those come the features' bins, and two a feature for cells that were refused.
const SEEN: usize = 0;
const COUNTED: usize = 1;
const REFUSED: usize = 2;
const EXTRAPOLATING: usize = 3;
const LEVERAGE: usize = 4;
const FEATURES: usize = LEVERAGE + LEVERAGE_BINS;

/// A thread's place among the shards, and what it works out leverages in.
struct Seat {
    place: usize,
    scratch: RefCell<(RowBuffer, Gathered)>,
}

/// Seats that are taken: taken when a thread first counts, given back when it ends.
static TAKEN: Mutex<u64> = Mutex::new(0);

impl Seat {
    fn take() -> Self {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let place = taken.trailing_ones() as usize;
        if place < SEATS {
            *taken |= 1 << place;
        }
        Self { place, scratch: RefCell::default() }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.place < SEATS {
            *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) &= !(1 << self.place);
        }
    }
}

thread_local! {
    static SEAT: Seat = Seat::take();
}

/// The counters of a thread.
struct Tally<'a> {
    counters: &'a [AtomicU64],
    /// Whether no other thread writes them.
    alone: bool,
}

impl Tally<'_> {
    #[inline]
    fn add(&self, counter: usize, more: u64) {
        let counter = &self.counters[counter];
        if self.alone {
            // The seat changes hands under a lock, so the last owner's counts are known.
            counter.store(counter.load(Ordering::Relaxed) + more, Ordering::Relaxed);
        } else {
            counter.fetch_add(more, Ordering::Relaxed);
        }
    }

    fn now(&self, counter: usize) -> u64 {
        self.counters[counter].load(Ordering::Relaxed)
    }
}

/// What is counted of one version.
pub(crate) struct Watch {
    model: String,
    version: u64,
    events: Arc<Channel>,
    names: Vec<String>,
    reference: Reference,
    binning: Binning,
    /// One a seat, and one for those who found none.
    shards: Box<[OnceLock<Box<[AtomicU64]>>]>,
    book: Mutex<Book>,
}

/// What was put by.
struct Book {
    begun: Timestamp,
    /// When the present period began, and the counters then.
    turned: Timestamp,
    before: Vec<u64>,
    /// When each earlier period began, and what it counted; nothing where it counted nothing.
    past: VecDeque<(Timestamp, Option<Box<[u32]>>)>,
    standings: Vec<Standing>,
}

/// The counters at a look.
#[derive(Debug)]
pub struct Looked {
    /// All since the process began to count.
    pub total: Span,
    /// Those of the last hour.
    pub window: Span,
    /// How each feature stands.
    pub standings: Vec<Standing>,
}

/// Counters of some time.
#[derive(Clone, Debug)]
pub struct Span {
    /// When it began.
    pub since: Timestamp,
    counters: Vec<u64>,
}

impl Span {
    /// Rows that were predicted.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.counters[SEEN]
    }

    /// Rows that were counted.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.counters[COUNTED]
    }

    /// Requests that were refused for their rows.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.counters[REFUSED]
    }

    /// Rows whose leverage is known.
    #[must_use]
    pub fn leverages(&self) -> u64 {
        self.counters[LEVERAGE..FEATURES].iter().sum()
    }

    /// The share of those that lie farther out than any row of training.
    #[must_use]
    pub fn extrapolating(&self) -> Option<f64> {
        let rows = self.leverages();
        (rows > 0).then(|| self.counters[EXTRAPOLATING] as f64 / rows as f64)
    }

    /// The leverage that a share of the rows does not exceed, to a sixteenth of it.
    #[must_use]
    pub fn leverage(&self, share: f64) -> Option<f64> {
        let mut left = (share * self.leverages() as f64).ceil().max(1.0);
        for (bin, &count) in self.counters[LEVERAGE..FEATURES].iter().enumerate() {
            let count = count as f64;
            if count >= left {
                let edge = |bin: usize| f64::from_bits(((LOWEST + bin as i64) as u64) << (52 - FINENESS));
                return Some(edge(bin) + (edge(bin + 1) - edge(bin)) * left / count);
            }
            left -= count;
        }
        None
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Watch").field("model", &self.model).field("version", &self.version).finish_non_exhaustive()
    }
}

impl Watch {
    fn new(version: &Version, reference: &Reference, now: Timestamp) -> Self {
        let binning = Binning::of(reference, version.design.columns().len());
        let counters = FEATURES + binning.counters() + 2 * binning.features();
        let book = Book {
            begun: now,
            turned: now,
            before: vec![0; counters],
            past: VecDeque::new(),
            standings: vec![Standing::default(); binning.features()],
        };
        Self {
            model: version.model.clone(),
            version: version.number,
            events: version.events.clone(),
            names: version.design.columns().iter().map(|column| column.name.clone()).collect(),
            reference: reference.clone(),
            binning,
            shards: (0..=SEATS).map(|_| OnceLock::new()).collect(),
            book: Mutex::new(book),
        }
    }

    fn counters(&self) -> usize {
        FEATURES + self.binning.counters() + 2 * self.binning.features()
    }

    fn tally(&self, seat: usize) -> Tally<'_> {
        let counters = self.shards[seat].get_or_init(|| (0..self.counters()).map(|_| AtomicU64::new(0)).collect());
        Tally { counters, alone: seat < SEATS }
    }

    /// Counts rows that were answered.
    pub(crate) fn count(&self, design: &Design, state: &State, cells: &[f64], rows: usize, answer: &Answer) {
        SEAT.with(|seat| {
            let tally = self.tally(seat.place);
            let width = design.columns().len();
            let taken = if rows <= ALL { rows } else { ALL + (rows - ALL) / ONE_IN };
            let (seen, counted) = (tally.now(SEEN), tally.now(COUNTED));
            tally.add(SEEN, rows as u64);
            tally.add(COUNTED, taken as u64);
            let apart = LEVERAGE_ONE_IN.max(design.width()) as u64;
            for index in 0..taken {
                let row = drawn(index, taken, rows, seen);
                let own = &cells[row * width..(row + 1) * width];
                self.binning.count(own, |counter| tally.add(FEATURES + counter, 1));
                let (leverage, extrapolates) = match answer.leverage.get(row) {
                    Some(&leverage) => (leverage, answer.extrapolates.get(row).copied().unwrap_or(false)),
                    None if (counted + index as u64).is_multiple_of(apart) => {
                        let (buffer, scratch) = &mut *seat.scratch.borrow_mut();
                        let information = state.information();
                        let leverage = information.leverage(design.row(own, buffer), scratch);
                        (leverage, leverage > ceiling(information))
                    }
                    None => continue,
                };
                tally.add(LEVERAGE + leverage_bin(leverage), 1);
                tally.add(EXTRAPOLATING, u64::from(extrapolates));
            }
        });
    }

    /// Counts a request that was refused for these cells.
    pub(crate) fn refuse(&self, lacks: &[(usize, Lack)]) {
        let seat = SEAT.with(|seat| seat.place);
        let (tally, first) = (self.tally(seat), FEATURES + self.binning.counters());
        tally.add(REFUSED, 1);
        for (feature, lack) in lacks.iter().filter(|(feature, _)| *feature < self.binning.features()) {
            tally.add(first + 2 * feature + usize::from(*lack == Lack::Unseen), 1);
        }
    }

    /// Cells of a feature that were missing, and that were not seen in training, in requests that were refused.
    #[must_use]
    pub(crate) fn refused_cells(&self, feature: usize, span: &Span) -> (u64, u64) {
        let place = FEATURES + self.binning.counters() + 2 * feature;
        (span.counters[place], span.counters[place + 1])
    }

    /// The features that are watched, in the order of the version's.
    pub(crate) fn features(&self) -> usize {
        self.binning.features()
    }

    /// What training was like.
    pub(crate) fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The bins.
    pub(crate) fn binning(&self) -> &Binning {
        &self.binning
    }

    /// A feature in some time beside training.
    pub(crate) fn compare(&self, feature: usize, span: &Span) -> Comparison {
        self.binning.compare(&self.reference, feature, &span.counters[FEATURES..FEATURES + self.binning.counters()])
    }

    fn sum(&self) -> Vec<u64> {
        let mut sum = vec![0; self.counters()];
        for shard in self.shards.iter().filter_map(OnceLock::get) {
            for (sum, counter) in sum.iter_mut().zip(shard) {
                *sum += counter.load(Ordering::Relaxed);
            }
        }
        sum
    }

    /// Sums up the counters, puts by what is due, and judges the features; who has turned is told.
    pub(crate) fn look(&self, now: Timestamp) -> Looked {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that no look puts by less than one before it.
        let total = self.sum();
        if now.duration_since(book.turned) >= PERIOD {
            let fresh = total[SEEN] != book.before[SEEN] || total[REFUSED] != book.before[REFUSED];
            let counted = fresh.then(|| {
                let fresh =
                    total.iter().zip(&book.before).map(|(now, before)| u32::try_from(now.saturating_sub(*before)).unwrap_or(u32::MAX));
                fresh.collect()
            });
            let turned = std::mem::replace(&mut book.turned, now);
            book.past.push_back((turned, counted));
            book.before.clone_from(&total);
        }
        // A period counts while any of it is within the hour.
        while let Some(ended) = book.past.get(1).map_or(book.past.front().map(|_| book.turned), |(next, _)| Some(*next))
            && now.duration_since(ended) > PERIOD * PERIODS as i32
        {
            book.past.pop_front();
        }
        let mut window: Vec<u64> = total.iter().zip(&book.before).map(|(now, before)| now.saturating_sub(*before)).collect();
        for counted in book.past.iter().filter_map(|(_, counted)| counted.as_ref()) {
            window.iter_mut().zip(counted).for_each(|(sum, count)| *sum += u64::from(*count));
        }
        let since = book.past.front().map_or(book.turned, |(since, _)| *since);
        let (total, window) = (Span { since: book.begun, counters: total }, Span { since, counters: window });
        let mut turned = Vec::new();
        for feature in 0..self.features() {
            let latest = self.compare(feature, &window);
            // A model that is seldom asked is judged by all it was asked.
            let judged = if latest.is_enough() { latest } else { self.compare(feature, &total) };
            let before = book.standings[feature];
            let standing = judged.standing(before);
            book.standings[feature] = standing;
            if standing != before && (standing == Standing::Shifted || before == Standing::Shifted) {
                turned.push(json!({
                    "version": self.version, "feature": self.names[feature], "state": standing.as_str(), "rows": judged.rows,
                    "psi": judged.psi, "psi_adjusted": judged.adjusted(),
                }));
            }
        }
        let standings = book.standings.clone();
        drop(book);
        turned.iter().for_each(|event| self.events.send("inputs", event));
        Looked { total, window, standings }
    }
}

/// The row that is taken of the `index`th of `taken` equal stretches.
#[inline]
fn drawn(index: usize, taken: usize, rows: usize, seen: u64) -> usize {
    if taken == rows {
        return index;
    }
    let begin = index * rows / taken;
    let length = (index + 1) * rows / taken - begin;
    // The high half of a product spreads a number evenly over a range (Lemire 2019).
    let offset = u128::from(scattered(seen.wrapping_add(index as u64))) * length as u128;
    begin + (offset >> 64) as usize
}

/// Its exponent and the first bits of its mantissa.
#[inline]
fn leverage_bin(leverage: f64) -> usize {
    let place = (leverage.max(0.0).to_bits() >> (52 - FINENESS)).cast_signed() - LOWEST;
    usize::try_from(place).unwrap_or(0).min(LEVERAGE_BINS - 1)
}

/// All that is watched.
#[derive(Debug)]
pub(crate) struct Watching {
    on: bool,
    watches: Mutex<Vec<Weak<Watch>>>,
}

impl Watching {
    pub(crate) fn new(on: bool) -> Self {
        Self { on, watches: Mutex::default() }
    }

    /// What is counted of a version, from its first row on.
    pub(crate) fn of<'v>(&self, version: &'v Version) -> Option<&'v Arc<Watch>> {
        if !self.on {
            return None;
        }
        let begin = || match &version.document.inputs {
            Inputs::Known(reference) => {
                let watch = Arc::new(Watch::new(version, reference, Timestamp::now()));
                let mut watches = self.watches();
                watches.retain(|watch| watch.strong_count() > 0);
                watches.push(Arc::downgrade(&watch));
                Some(watch)
            }
            Inputs::Unknown | Inputs::Off => None,
        };
        version.watch.get_or_init(begin).as_ref()
    }

    fn watches(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Watch>>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> Vec<Arc<Watch>> {
        self.watches().iter().filter_map(Weak::upgrade).collect()
    }
}

/// Why a version's inputs are not watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwatched {
    /// The server was told not to.
    Setting,
    /// The fit was.
    Fit,
    /// The version was fitted before there was watching, and knows nothing of its training rows.
    NoReference,
}

/// What is known of the inputs of a version.
#[derive(Debug)]
pub struct Watched {
    watch: Arc<Watch>,
    /// The counters.
    pub looked: Looked,
}

impl Watched {
    /// What training was like.
    #[must_use]
    pub fn reference(&self) -> &Reference {
        self.watch.reference()
    }

    /// The bins.
    #[must_use]
    pub fn binning(&self) -> &Binning {
        self.watch.binning()
    }

    /// A feature in some time beside training.
    #[must_use]
    pub fn compare(&self, feature: usize, span: &Span) -> Comparison {
        self.watch.compare(feature, span)
    }

    /// Cells of a feature that were missing, and that were not seen in training, in requests that were refused.
    #[must_use]
    pub fn refused_cells(&self, feature: usize, span: &Span) -> (u64, u64) {
        self.watch.refused_cells(feature, span)
    }
}

impl Service {
    /// What is known of the inputs of the version that `reference` means, or why nothing is.
    ///
    /// # Errors
    /// There is no such version.
    pub fn inputs(&self, reference: &str) -> Result<(Arc<Version>, Result<Watched, Unwatched>), ServiceError> {
        let (_, version, _) = self.catalogue.resolve(reference)?;
        let watched = match (self.watching.of(&version), &version.document.inputs) {
            (Some(watch), _) => Ok(Watched { watch: watch.clone(), looked: watch.look(Timestamp::now()) }),
            (None, Inputs::Off) => Err(Unwatched::Fit),
            (None, Inputs::Unknown) => Err(Unwatched::NoReference),
            (None, Inputs::Known(_)) => Err(Unwatched::Setting),
        };
        Ok((version, watched))
    }

    /// The figures of inputs as Prometheus text: of the first models that were asked to predict, the largest index of any feature and that
    /// of the first features.
    #[must_use]
    pub fn input_metrics(&self) -> String {
        let (mut lines, now) = (telemetry::Lines::default(), Timestamp::now());
        for watch in self.watching.all().into_iter().take(MEASURED_MODELS) {
            let looked = watch.look(now);
            let version = watch.version.to_string();
            let labels = [("model", watch.model.as_str()), ("version", version.as_str())];
            lines.push(telemetry::INPUT_ROWS, &labels, looked.total.seen() as f64);
            lines.push(telemetry::INPUT_REFUSED, &labels, looked.total.refused() as f64);
            let (mut largest, mut missing, mut unseen, mut shifted) = (None::<f64>, 0.0_f64, 0.0_f64, 0);
            for feature in 0..watch.features() {
                let comparison = watch.compare(feature, &looked.window);
                let Some(index) = comparison.adjusted() else { continue };
                let share = |count: u64| count as f64 / comparison.rows as f64;
                largest = Some(largest.map_or(index, |largest| largest.max(index)));
                missing = missing.max(share(comparison.missing));
                unseen = unseen.max(share(comparison.unseen.unwrap_or(0)));
                shifted += usize::from(looked.standings[feature] == Standing::Shifted);
                if feature < MEASURED_FEATURES {
                    let labels = [labels[0], labels[1], ("feature", watch.names[feature].as_str())];
                    lines.push(telemetry::INPUT_PSI, &labels, index);
                }
            }
            if let Some(largest) = largest {
                lines.push(telemetry::INPUT_PSI_LARGEST, &labels, largest);
                lines.push(telemetry::INPUT_MISSING, &labels, missing);
                lines.push(telemetry::INPUT_UNSEEN, &labels, unseen);
                lines.push(telemetry::INPUTS_SHIFTED, &labels, shifted as f64);
            }
            if let Some(share) = looked.window.extrapolating() {
                lines.push(telemetry::INPUT_EXTRAPOLATING, &labels, share);
            }
        }
        lines.into_text()
    }
}

/// Looks at everything now and then, until the service ends.
pub(super) async fn follow(service: Weak<Service>) {
    let mut clock = tokio::time::interval(LOOK);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        let Some(watches) = service.upgrade().map(|service| service.watching.all()) else { return };
        for watch in watches {
            watch.look(Timestamp::now());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::features::{Encoding, Feature};
    use crate::frame::ColumnType;
    use crate::model::inputs::{Leverages, Values};
    use crate::model::{Document, FitRecord};
    use crate::store::models::VersionRow;

    const WIDTH: usize = 3;

    /// A version of three features of numbers, of which 1000 rows were uniform in [0, 1].
    fn version() -> Version {
        let feature = |name: &str| Feature::of(name, ColumnType::Number, Encoding::Identity);
        let values = Values::Number { edges: (0..=10).map(|edge| f64::from(edge) / 10.0).collect(), counts: vec![100; 10] };
        let reference = Reference {
            rows: 1000,
            sampled: 1000,
            features: vec![values; WIDTH],
            leverage: Leverages::default(),
            missing: vec![0.0; WIDTH],
        };
        let document = Document {
            classifier: None,
            dataset: "d".into(),
            dataset_tag: "1-1".into(),
            estimator: crate::model::Estimator::Ols,
            solver: "qr".into(),
            target: vec!["y".into()],
            features: ["a", "b", "c"].map(feature).to_vec(),
            intercept: true,
            weights: None,
            online: crate::model::Online::default(),
            variance_inflation: vec![None; WIDTH],
            fit: FitRecord {
                accuracy: None,
                observations: 1000,
                rank: 4,
                degrees_of_freedom: 996.0,
                effective_parameters: 4.0,
                condition_number: None,
                digits: None,
                targets: Vec::new(),
            },
            covariance: crate::model::Covariance::Classical,
            selection: None,
            descent: None,
            validation: None,
            prior: None,
            moved: Vec::new(),
            constraints: Vec::new(),
            warnings: Vec::new(),
            fit_seconds: 0.0,
            refit: None,
            unlearnt: None,
            inputs: Inputs::Known(Box::new(reference)),
        };
        let row = VersionRow {
            id: 1,
            model: 1,
            version: 1,
            document: Some(serde_json::to_string(&document).unwrap()),
            created_at: String::new(),
        };
        Version::new("m", &row, Some(state()), Arc::default()).unwrap()
    }

    /// A state of three predictors.
    fn state() -> State {
        let rows = 50;
        let x = faer::Mat::from_fn(rows, WIDTH, |row, column| f64::from(u8::try_from((row * (column + 3)) % 17).unwrap()));
        let y = faer::Mat::from_fn(rows, 1, |row, _| f64::from(u8::try_from(row % 5).unwrap()));
        let mut source = crate::lsq::Matrices { design: x.as_ref(), response: y.as_ref(), weights: None };
        State::of(&crate::lsq::fit(&mut source, &crate::lsq::Specification::default()).unwrap())
    }

    /// So many rows of which the second feature lies in a tenth.
    fn cells(rows: usize, shifted: bool) -> Vec<f64> {
        let uniform = |number: u64| (scattered(number) >> 11) as f64 / (1_u64 << 53) as f64;
        (0..rows as u64)
            .flat_map(|row| [uniform(3 * row), uniform(3 * row + 1) * if shifted { 0.1 } else { 1.0 }, uniform(3 * row + 2)])
            .collect()
    }

    #[test]
    fn rows_of_many_threads_are_all_counted() {
        let (version, state, watching) = (version(), state(), Watching::new(true));
        let answer = Answer { leverage: vec![0.01; 2], extrapolates: vec![true; 2], ..Answer::default() };
        // More threads than seats, so that some share counters, and one after another, so that seats change hands.
        std::thread::scope(|scope| {
            for _ in 0..100 {
                scope.spawn(|| {
                    let cells = cells(2, false);
                    (0..500).for_each(|_| watching.of(&version).unwrap().count(&version.design, &state, &cells, 2, &answer));
                });
            }
        });
        let watch = watching.of(&version).unwrap();
        let looked = watch.look(Timestamp::now());
        for span in [&looked.total, &looked.window] {
            assert_eq!((span.seen(), span.rows(), span.leverages(), span.extrapolating()), (100_000, 100_000, 100_000, Some(1.0)));
            assert!((0..WIDTH).all(|feature| watch.compare(feature, span).rows == 100_000));
        }
    }

    #[test]
    fn of_long_requests_one_row_in_eight_counts_and_none_more_often_than_others() {
        let (version, state, watching) = (version(), state(), Watching::new(true));
        for (rows, counted) in [(0, 0), (1, 1), (2, 2), (9, 2), (10, 3), (1000, 126)] {
            let before = watching.of(&version).unwrap().look(Timestamp::now()).total;
            watching.of(&version).unwrap().count(&version.design, &state, &cells(rows, false), rows, &Answer::default());
            let after = watching.of(&version).unwrap().look(Timestamp::now()).total;
            assert_eq!((after.seen() - before.seen(), after.rows() - before.rows()), (rows as u64, counted), "{rows} rows");
        }
        let mut often = vec![0_u32; 100];
        for request in 0..10_000_u64 {
            let taken = ALL + (100 - ALL) / ONE_IN;
            let drawn: Vec<usize> = (0..taken).map(|index| drawn(index, taken, 100, request * 100)).collect();
            assert!(drawn.is_sorted_by(|one, next| one < next));
            drawn.iter().for_each(|row| often[*row] += 1);
        }
        // Each with a chance of 14/100 but for the lengths of stretches, which are 7 or 8: 1/7 or 1/8.
        assert!(often.iter().all(|count| (1110..1570).contains(count)), "{often:?}");
    }

    #[test]
    fn leverage_that_nobody_asked_for_is_worked_out_now_and_then() {
        let (version, state, watching) = (version(), state(), Watching::new(true));
        let cells = cells(1, false);
        (0..6400).for_each(|_| watching.of(&version).unwrap().count(&version.design, &state, &cells, 1, &Answer::default()));
        let looked = watching.of(&version).unwrap().look(Timestamp::now());
        assert_eq!(looked.total.leverages(), 100);
        let own = state.information().leverage(cells.as_slice(), &mut Gathered::default());
        assert!((looked.total.leverage(0.5).unwrap() / own - 1.0).abs() < 1.0 / 8.0, "{own}");
    }

    #[test]
    fn a_shift_is_told_once_and_so_is_its_end_and_the_window_forgets() {
        let (version, state, watching) = (version(), state(), Watching::new(true));
        let start = version.events.newest();
        let watch = watching.of(&version).unwrap();
        let begun = Timestamp::now();
        let at = |minutes: i64| begun + SignedDuration::from_mins(minutes);
        let asked = std::cell::Cell::new(0);
        let ask = |rows: usize, shifted| {
            // No row is asked twice.
            let first = asked.replace(asked.get() + rows);
            let cells = cells(first + rows, shifted);
            watching.of(&version).unwrap().count(&version.design, &state, &cells[first * WIDTH..], rows, &Answer::default());
        };
        let told = || {
            let missed = version.events.listen(Some(&start)).missed;
            missed.iter().map(|event| (event.kind, serde_json::from_str(&event.data).unwrap())).collect::<Vec<(_, serde_json::Value)>>()
        };
        ask(4000, false);
        assert_eq!(watch.look(at(1)).standings, [Standing::Steady; WIDTH]);
        assert!(told().is_empty());
        for minute in [10, 11, 12, 16] {
            ask(8000, true);
            assert_eq!(watch.look(at(minute)).standings, [Standing::Steady, Standing::Shifted, Standing::Steady]);
        }
        let events = told();
        assert_eq!(events.len(), 1, "{events:?}");
        assert_eq!((events[0].0, &events[0].1["feature"], &events[0].1["state"]), ("inputs", &json!("b"), &json!("shifted")));
        let before = watch.look(at(17));
        assert_eq!(before.window.seen(), 36_000);
        assert_eq!(before.window.since, before.total.since);
        // An hour later only what was asked since is in the window.
        for minute in (20..=90).step_by(5) {
            ask(100, false);
            watch.look(at(minute));
        }
        let after = watch.look(at(91));
        assert_eq!(after.total.seen(), 36_000 + 1500);
        assert!((1200..=1300).contains(&after.window.seen()), "{}", after.window.seen());
        assert!(at(91).duration_since(after.window.since) <= SignedDuration::from_mins(65), "{}", after.window.since);
        assert_eq!(after.standings, [Standing::Steady; WIDTH]);
        let events = told();
        assert_eq!((events.len(), &events[1].1["state"]), (2, &json!("steady")));
    }

    #[test]
    fn refusals_are_counted_by_feature_and_by_what_was_lacking() {
        let (version, watching) = (version(), Watching::new(true));
        let watch = watching.of(&version).unwrap();
        watch.refuse(&[(0, Lack::Missing), (0, Lack::Missing), (2, Lack::Unseen), (9, Lack::Missing)]);
        watch.refuse(&[]);
        let looked = watch.look(Timestamp::now());
        assert_eq!(looked.total.refused(), 2);
        assert_eq!((0..WIDTH).map(|feature| watch.refused_cells(feature, &looked.window)).collect::<Vec<_>>(), [(2, 0), (0, 0), (0, 1)]);
    }

    #[test]
    fn nothing_is_watched_when_the_server_is_told_not_to() {
        let (version, watching) = (version(), Watching::new(false));
        assert!(watching.of(&version).is_none() && version.watch.get().is_none());
    }
}
