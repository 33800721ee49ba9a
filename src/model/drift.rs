//! Detectors of a change in the mean of a stream of numbers: ADWIN and Page–Hinkley. They are fed the sizes of a-priori errors; what is to
//! be done about a change is not theirs to say.

use super::bytes::{Reader, Writer};
use super::specification::{Detector, DriftWatch};
use super::state::StateError;

/// A detector at work.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Watch {
    Adwin(Adwin),
    PageHinkley(PageHinkley),
}

impl Watch {
    pub(super) fn new(watch: &DriftWatch) -> Self {
        match watch.detector {
            Detector::Adwin { delta } => Self::Adwin(Adwin::new(delta)),
            Detector::PageHinkley { delta, threshold } => Self::PageHinkley(PageHinkley::new(delta, threshold)),
        }
    }

    /// Takes in a number. If the mean has risen, how many of the latest numbers are of the time after.
    pub(super) fn observe(&mut self, value: f64) -> Option<u64> {
        match self {
            Self::Adwin(adwin) => adwin.observe(value),
            Self::PageHinkley(test) => test.observe(value),
        }
    }

    /// Mean and count of what the detector takes to be of the present time.
    pub(super) fn present(&self) -> (f64, u64) {
        match self {
            Self::Adwin(adwin) => (if adwin.count > 0.0 { adwin.total / adwin.count } else { 0.0 }, adwin.count as u64),
            Self::PageHinkley(test) => (test.mean, test.count),
        }
    }

    pub(super) fn encode(&self, out: &mut Writer) {
        match self {
            Self::Adwin(adwin) => {
                out.byte(1);
                adwin.encode(out);
            }
            Self::PageHinkley(test) => {
                out.byte(2);
                out.float(test.delta).float(test.threshold).float(test.mean).float(test.sum).float(test.least);
                out.whole(test.count).whole(test.since_least);
            }
        }
    }

    pub(super) fn decode(input: &mut Reader<'_>) -> Result<Self, StateError> {
        match input.byte()? {
            1 => Ok(Self::Adwin(Adwin::decode(input)?)),
            2 => Ok(Self::PageHinkley(PageHinkley {
                delta: input.float()?,
                threshold: input.float()?,
                mean: input.float()?,
                sum: input.float()?,
                least: input.float()?,
                count: input.whole()?,
                since_least: input.whole()?,
            })),
            _ => Err(StateError),
        }
    }
}

/// ADWIN: a window that is cut wherever its two parts have means that differ by more than chance, kept as an exponential histogram
/// (A. Bifet & R. Gavaldà, *Learning from time-changing data with adaptive windowing*, SDM 2007; ADWIN2 with the normal approximation of
/// their section 4).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Adwin {
    delta: f64,
    /// Buckets of 2^i numbers each, newest first, at most [`BUCKETS`] + 1 at a time.
    rows: Vec<Vec<Bucket>>,
    total: f64,
    /// Σ(x − mean)² of the window.
    variance: f64,
    count: f64,
    seen: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Bucket {
    total: f64,
    variance: f64,
}

/// M: buckets of one size.
const BUCKETS: usize = 5;
/// Numbers between two looks for a cut.
const CLOCK: u64 = 32;
/// Numbers before the first look, and in each part of a cut at the least.
const LEAST: f64 = 10.0;
const LEAST_PART: f64 = 5.0;

impl Adwin {
    fn new(delta: f64) -> Self {
        Self { delta, rows: vec![Vec::new()], total: 0.0, variance: 0.0, count: 0.0, seen: 0 }
    }

    fn observe(&mut self, value: f64) -> Option<u64> {
        self.seen += 1;
        self.rows[0].insert(0, Bucket { total: value, variance: 0.0 });
        if self.count > 0.0 {
            let away = value - self.total / self.count;
            self.variance += away * away * self.count / (self.count + 1.0);
        }
        self.count += 1.0;
        self.total += value;
        self.compress();
        if !self.seen.is_multiple_of(CLOCK) || self.count <= LEAST {
            return None;
        }
        let mut risen = false;
        while let Some(rise) = self.cut() {
            risen |= rise;
            self.drop_oldest();
        }
        risen.then_some(self.count as u64)
    }

    /// Two of too many buckets become one of twice the size.
    fn compress(&mut self) {
        let mut level = 0;
        let mut size = 1.0;
        while self.rows[level].len() > BUCKETS {
            let (Some(one), Some(other)) = (self.rows[level].pop(), self.rows[level].pop()) else { return };
            let away = (one.total - other.total) / size;
            let merged = Bucket { total: one.total + other.total, variance: one.variance + other.variance + away * away * size / 2.0 };
            if self.rows.len() == level + 1 {
                self.rows.push(Vec::new());
            }
            self.rows[level + 1].insert(0, merged);
            level += 1;
            size *= 2.0;
        }
    }

    /// Whether some place cuts the window into parts of different means; and then whether the newer one is the larger.
    fn cut(&self) -> Option<bool> {
        let (mut old, mut old_total) = (0.0, 0.0);
        let spread = self.variance / self.count;
        let confidence = (2.0 * self.count.ln() / self.delta).ln();
        for (level, row) in self.rows.iter().enumerate().rev() {
            let size = f64::exp2(level as f64);
            for bucket in row.iter().rev() {
                old += size;
                old_total += bucket.total;
                let new = self.count - old;
                if new < LEAST_PART {
                    return None;
                }
                if old < LEAST_PART {
                    continue;
                }
                let rise = (self.total - old_total) / new - old_total / old;
                let harmonic = 1.0 / (old - LEAST_PART + 1.0) + 1.0 / (new - LEAST_PART + 1.0);
                let bound = (2.0 * harmonic * spread * confidence).sqrt() + 2.0 / 3.0 * confidence * harmonic;
                if rise.abs() > bound {
                    return Some(rise > 0.0);
                }
            }
        }
        None
    }

    fn drop_oldest(&mut self) {
        let Some(level) = self.rows.iter().rposition(|row| !row.is_empty()) else { return };
        let Some(bucket) = self.rows[level].pop() else { return };
        let size = f64::exp2(level as f64);
        self.count -= size;
        self.total -= bucket.total;
        if self.count > 0.0 {
            let away = bucket.total / size - self.total / self.count;
            let between = away * away * size * self.count / (size + self.count);
            self.variance = (self.variance - bucket.variance - between).max(0.0);
        } else {
            self.variance = 0.0;
        }
    }

    fn encode(&self, out: &mut Writer) {
        out.float(self.delta).float(self.total).float(self.variance).float(self.count).whole(self.seen).whole(self.rows.len() as u64);
        for row in &self.rows {
            out.whole(row.len() as u64);
            for bucket in row {
                out.float(bucket.total).float(bucket.variance);
            }
        }
    }

    fn decode(input: &mut Reader<'_>) -> Result<Self, StateError> {
        let (delta, total, variance, count, seen) = (input.float()?, input.float()?, input.float()?, input.float()?, input.whole()?);
        let levels = input.length(64)?;
        let mut rows = Vec::with_capacity(levels);
        for _ in 0..levels {
            let buckets = input.length(BUCKETS + 1)?;
            rows.push(
                (0..buckets).map(|_| Ok(Bucket { total: input.float()?, variance: input.float()? })).collect::<Result<_, StateError>>()?,
            );
        }
        if rows.is_empty() { Err(StateError) } else { Ok(Self { delta, rows, total, variance, count, seen }) }
    }
}

/// Page's cumulative sum test of a rise of the mean, with Hinkley's running mean (E. S. Page, *Continuous inspection schemes*, Biometrika
/// 41, 1954).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PageHinkley {
    /// Rise that is tolerated.
    delta: f64,
    threshold: f64,
    mean: f64,
    sum: f64,
    least: f64,
    count: u64,
    since_least: u64,
}

/// Numbers before the first alarm.
const WARM: u64 = 30;

impl PageHinkley {
    fn new(delta: f64, threshold: f64) -> Self {
        Self { delta, threshold, mean: 0.0, sum: 0.0, least: 0.0, count: 0, since_least: 0 }
    }

    fn observe(&mut self, value: f64) -> Option<u64> {
        self.count += 1;
        self.mean += (value - self.mean) / self.count as f64;
        self.sum += value - self.mean - self.delta;
        self.since_least += 1;
        if self.sum <= self.least {
            self.least = self.sum;
            self.since_least = 0;
        }
        if self.count < WARM || self.sum - self.least <= self.threshold {
            return None;
        }
        let since = self.since_least;
        *self = Self::new(self.delta, self.threshold);
        Some(since)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn noise() -> impl FnMut() -> f64 {
        let mut state = 9_u64;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1_u64 << 53) as f64
        }
    }

    fn watches() -> Vec<Watch> {
        vec![Watch::Adwin(Adwin::new(0.002)), Watch::PageHinkley(PageHinkley::new(0.1, 30.0))]
    }

    #[test]
    fn noise_alone_is_no_change() {
        for mut watch in watches() {
            let mut next = noise();
            assert_eq!((0..20_000).filter(|_| watch.observe(next()).is_some()).count(), 0, "{watch:?}");
        }
    }

    #[test]
    fn a_rise_is_found_soon_and_once_and_a_fall_is_none() {
        for mut watch in watches() {
            let mut next = noise();
            (0..2_000).for_each(|_| assert_eq!(watch.observe(next()), None));
            let found: Vec<(usize, u64)> = (0..2_000).filter_map(|row| Some((row, watch.observe(2.0 + next())?))).collect();
            let (row, recent) = found[0];
            assert!(row < 64, "{watch:?} took {row} rows");
            assert!((1..=row as u64 + 40).contains(&recent), "{recent} of {row} rows are recent");
            assert!(found.iter().all(|(row, _)| *row < 300), "{found:?}");
            assert_eq!((0..3_000).filter(|_| watch.observe(next()).is_some()).count(), 0);
        }
    }

    #[test]
    fn the_window_keeps_the_moments_of_its_numbers() {
        let mut adwin = Adwin::new(1e-9);
        let mut next = noise();
        let values: Vec<f64> = (0..5_000).map(|_| next()).collect();
        values.iter().for_each(|value| assert_eq!(adwin.observe(*value), None));
        let mean = values.iter().sum::<f64>() / 5_000.0;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        assert!((adwin.total / adwin.count - mean).abs() < 1e-12 && (adwin.variance / squares - 1.0).abs() < 1e-10);
        assert!(adwin.rows.iter().map(Vec::len).sum::<usize>() < 80);
    }

    #[test]
    fn a_watch_survives_its_encoding() {
        for mut watch in watches() {
            let mut next = noise();
            (0..777).for_each(|_| _ = watch.observe(next()));
            let mut out = Writer::default();
            watch.encode(&mut out);
            let bytes = out.into_bytes();
            let mut input = Reader::new(&bytes);
            let mut again = Watch::decode(&mut input).unwrap();
            assert!(input.is_at_end());
            assert_eq!(again, watch);
            assert_eq!(again.observe(3.0), watch.observe(3.0));
            assert!((0..bytes.len()).all(|end| Watch::decode(&mut Reader::new(&bytes[..end])).is_err()));
        }
    }
}
