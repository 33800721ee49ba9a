//! What training rows fix of features: means, standard deviations, quantiles, extremes, distances.
//!
//! The rows are seen once, in any number, and nothing of theirs is kept but moments (by Welford's update, *Technometrics* 4, 1962) and, where
//! quantiles or distances are asked for, values: those of all rows up to [`EXACT`], else of one row from each of as many equal stretches, drawn
//! by a hash of the stretch's place. So the same rows always give the same features. Quantiles are interpolated between the two values next to
//! them (type 7 of Hyndman & Fan, "Sample Quantiles in Statistical Packages", *The American Statistician* 50, 1996, as NumPy and R do by
//! default). The weights of rows play no part, as in scikit-learn.

use super::{Cells, Design, Encoding, Feature, Filling};

/// Rows whose values are kept, so that quantiles are exact: all of a smaller table.
pub const EXACT: u64 = 262_144;
/// Values that are kept over all columns; more than 32 columns have a share of them each.
const VALUES: u64 = 8_388_608;
/// Rows whose distances from one another are looked at.
const FAR: usize = 1000;

/// A feature that the training rows cannot fix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// Its place among the features.
    pub feature: usize,
    /// Why not.
    pub detail: String,
}

/// What is known of one column.
#[derive(Clone, Debug)]
struct Known {
    count: f64,
    mean: f64,
    squares: f64,
    least: f64,
    greatest: f64,
    /// Of the rows that are drawn; `None` where no quantile is asked for.
    values: Option<Vec<f64>>,
}

impl Known {
    fn see(&mut self, value: f64) {
        self.count += 1.0;
        let before = value - self.mean;
        self.mean += before / self.count;
        self.squares += before * (value - self.mean);
        self.least = self.least.min(value);
        self.greatest = self.greatest.max(value);
    }

    fn standard_deviation(&self) -> f64 {
        (self.squares / (self.count - 1.0)).sqrt()
    }

    /// A column of one value has a deviation of rounding alone, or of nothing.
    fn varies(&self) -> bool {
        self.least < self.greatest
    }

    fn sorted(&self) -> Vec<f64> {
        let mut values: Vec<f64> = self.values.iter().flatten().copied().filter(|value| !value.is_nan()).collect();
        values.sort_unstable_by(f64::total_cmp);
        values
    }
}

/// What is gathered of training rows.
#[derive(Clone, Debug)]
pub struct Learning<'a> {
    design: &'a Design,
    known: Vec<Known>,
    stretch: u64,
    rows: u64,
    next: u64,
}

impl<'a> Learning<'a> {
    /// What is to be gathered of at most `rows` rows for a design; nothing where training rows neither fix nor forbid anything.
    #[must_use]
    pub fn of(design: &'a Design, rows: u64) -> Option<Self> {
        if !design.learns() && design.columns().iter().all(|column| column.above.is_none()) {
            return None;
        }
        let none = Known { count: 0.0, mean: 0.0, squares: 0.0, least: f64::INFINITY, greatest: f64::NEG_INFINITY, values: None };
        let mut known = vec![none; design.columns().len()];
        let mut sampled = 0;
        for (index, feature) in design.features().iter().enumerate() {
            let wanted = match &feature.encoding {
                Encoding::Impute { with, .. } => *with == Filling::Median,
                Encoding::Bins { quantiles, .. } => quantiles.is_some(),
                Encoding::Spline { df, .. } => df.is_some(),
                Encoding::RandomFourier(waves) => waves.median,
                _ => false,
            };
            for place in design.places(index).iter().filter(|_| wanted) {
                if known[*place].values.replace(Vec::new()).is_none() {
                    sampled += 1;
                }
            }
        }
        let most = (VALUES / sampled.max(1)).min(EXACT);
        let mut learning = Self { design, known, stretch: rows.div_ceil(most).max(1), rows: 0, next: 0 };
        learning.next = learning.drawn(0);
        Some(learning)
    }

    /// The row that is taken of the stretch that begins at a row.
    fn drawn(&self, begin: u64) -> u64 {
        begin + scattered(begin) % self.stretch
    }

    /// Looks at rows, those of which `takes` says so.
    ///
    /// # Errors
    /// The place of a row, and of a column of it whose number is not above what it has to be.
    pub fn see(&mut self, cells: &Cells, takes: impl Fn(usize) -> bool) -> Result<(), (usize, usize)> {
        for row in (0..cells.rows()).filter(|row| takes(*row)) {
            let drawn = self.rows == self.next;
            for (column, known) in self.known.iter_mut().enumerate() {
                let value = cells.cell(row, column);
                if self.design.columns()[column].above.is_some_and(|above| value <= above) {
                    return Err((row, column));
                }
                if !value.is_nan() {
                    known.see(value);
                }
                if let (true, Some(values)) = (drawn, &mut known.values) {
                    values.push(value);
                }
            }
            if drawn {
                self.next = self.drawn((self.next / self.stretch + 1) * self.stretch);
            }
            self.rows += 1;
        }
        Ok(())
    }

    /// The features with what the rows fix of them.
    ///
    /// # Errors
    /// The rows cannot fix one.
    pub fn finish(&self) -> Result<Vec<Feature>, Unfit> {
        let mut features = self.design.features().to_vec();
        for (index, feature) in features.iter_mut().enumerate() {
            let columns: Vec<&Known> = self.design.places(index).iter().map(|place| &self.known[*place]).collect();
            fix(&mut feature.encoding, &columns).map_err(|detail| {
                let names: Vec<&str> = feature.sources().map(|(name, _)| name).collect();
                Unfit { feature: index, detail: format!("`{}` of {:?}: {detail}", feature.encoding.kind(), names.join(", ")) }
            })?;
        }
        Ok(features)
    }
}

fn fix(encoding: &mut Encoding, columns: &[&Known]) -> Result<(), String> {
    let Some(first) = columns.first() else { return Ok(()) };
    if encoding.learns() && first.count == 0.0 {
        return Err("no training row has a value".to_owned());
    }
    match encoding {
        Encoding::Standardise { mean, standard_deviation } => {
            (*mean, *standard_deviation) = moments(first)?;
        }
        Encoding::Impute { with, value, .. } => match with {
            Filling::Mean => *value = first.mean,
            Filling::Median => *value = quantile(&first.sorted(), 0.5),
            Filling::Constant => {}
        },
        Encoding::Bins { quantiles: Some(count), edges, .. } => {
            if !first.varies() {
                return Err("it has one value, and no quantiles between which to tell rows apart".to_owned());
            }
            let sorted = first.sorted();
            let inner = (1..*count).map(|place| quantile(&sorted, f64::from(place) / f64::from(*count)));
            edges.clear();
            edges.push(first.least);
            for edge in inner.chain([first.greatest]) {
                // A value that is there again and again is several quantiles, and one edge.
                if edges.last().is_some_and(|last| edge > *last) {
                    edges.push(edge);
                }
            }
            if edges.len() < 3 {
                return Err("nearly all rows have one value, and quantiles do not tell rows apart; give `edges`".to_owned());
            }
        }
        Encoding::Spline { df, knots, boundary } => {
            *boundary = [first.least, first.greatest];
            if let Some(df) = df {
                let sorted = first.sorted();
                *knots = (1..*df).map(|place| quantile(&sorted, f64::from(place) / f64::from(*df))).collect();
            }
            let all: Vec<f64> = std::iter::once(first.least).chain(knots.iter().copied()).chain([first.greatest]).collect();
            if let Some(pair) = all.windows(2).find(|pair| pair[0].partial_cmp(&pair[1]) != Some(std::cmp::Ordering::Less)) {
                let between = format!("the data lie between {} and {}", first.least, first.greatest);
                return Err(match df {
                    Some(df) => format!("{df} degrees of freedom are too many: {} is more than one of its quantiles; {between}", pair[0]),
                    None => format!("its knots are not all within the data, or do not increase; {between}"),
                });
            }
        }
        Encoding::RandomFourier(waves) => {
            if waves.standardise {
                for (place, column) in columns.iter().enumerate() {
                    (waves.centre[place], waves.scale[place]) = moments(column)?;
                }
            }
            if waves.median {
                let median = median_distance(columns, &waves.centre, &waves.scale);
                if !(median > 0.0 && median.is_finite()) {
                    return Err("most rows are the same, and have no median distance; give `gamma`".to_owned());
                }
                waves.gamma = 1.0 / (2.0 * median * median);
            }
            waves.draw();
        }
        Encoding::Identity
        | Encoding::Polynomial { .. }
        | Encoding::Onehot { .. }
        | Encoding::Log { .. }
        | Encoding::Interaction { .. }
        | Encoding::Bins { quantiles: None, .. }
        | Encoding::Calendar { .. }
        | Encoding::Lag { .. }
        | Encoding::Difference { .. } => {}
    }
    Ok(())
}

fn moments(column: &Known) -> Result<(f64, f64), String> {
    let deviation = column.standard_deviation();
    if column.varies() && deviation > 0.0 && deviation.is_finite() {
        return Ok((column.mean, deviation));
    }
    Err("it has one value in all training rows, and no standard deviation to divide by".to_owned())
}

/// Between the two sorted values next to it.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    #[allow(clippy::cast_precision_loss)] // at most `EXACT`
    let place = share * last as f64;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // within the list
    let (below, rest) = (place as usize, place.fract());
    let above = sorted[(below + 1).min(last)];
    sorted[below] + rest * (above - sorted[below])
}

/// The median of the distances between rows that are drawn evenly from those that are known.
fn median_distance(columns: &[&Known], centre: &[f64], scale: &[f64]) -> f64 {
    let rows = columns.iter().map(|column| column.values.as_ref().map_or(0, Vec::len)).min().unwrap_or(0);
    let taken: Vec<usize> = (0..rows.min(FAR)).map(|place| place * rows / rows.min(FAR)).collect();
    let scaled =
        |row: usize, place: usize| columns[place].values.as_ref().map_or(f64::NAN, |values| (values[row] - centre[place]) / scale[place]);
    let points: Vec<Vec<f64>> = taken.iter().map(|row| (0..columns.len()).map(|place| scaled(*row, place)).collect()).collect();
    let mut distances = Vec::with_capacity(points.len() * points.len().saturating_sub(1) / 2);
    for (place, one) in points.iter().enumerate() {
        for other in &points[..place] {
            distances.push(one.iter().zip(other).map(|(one, other)| (one - other).powi(2)).sum::<f64>().sqrt());
        }
    }
    distances.sort_unstable_by(f64::total_cmp);
    quantile(&distances, 0.5)
}

/// A number without pattern for each number (the finaliser of SplitMix64, Steele et al. 2014).
#[must_use]
pub fn scattered(number: u64) -> u64 {
    let mut word = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_precision_loss)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, Float64Array};

    use super::*;
    use crate::features::Waves;
    use crate::frame::ColumnType;

    fn learnt(encoding: Encoding, values: &[Option<f64>]) -> Result<Encoding, String> {
        let design = Design::new(vec![Feature::of("x", ColumnType::Number, encoding)]);
        let array: ArrayRef = Arc::new(values.iter().copied().collect::<Float64Array>());
        let mut cells = Cells::default();
        cells.read(&design, &[array], 0..values.len()).unwrap();
        let mut learning = Learning::of(&design, values.len() as u64).unwrap();
        learning.see(&cells, |_| true).map_err(|(row, _)| format!("row {row}"))?;
        learning.finish().map(|features| features[0].encoding.clone()).map_err(|unfit| unfit.detail)
    }

    fn some(values: &[f64]) -> Vec<Option<f64>> {
        values.iter().copied().map(Some).collect()
    }

    const STANDARDISE: Encoding = Encoding::Standardise { mean: 0.0, standard_deviation: 1.0 };

    #[test]
    fn moments_are_those_of_the_definition_also_far_from_zero() {
        let found = learnt(STANDARDISE, &some(&[1e9 + 1.0, 1e9 + 2.0, 1e9 + 6.0])).unwrap();
        assert_eq!(found, Encoding::Standardise { mean: 1e9 + 3.0, standard_deviation: 7f64.sqrt() });
        for constant in [&[0.1; 7][..], &[5.0]] {
            assert!(learnt(STANDARDISE, &some(constant)).unwrap_err().contains("one value"));
        }
        assert!(learnt(STANDARDISE, &[]).unwrap_err().contains("no training row"));
    }

    #[test]
    fn what_is_missing_is_not_counted_in_what_stands_in_for_it() {
        let values = [Some(1.0), None, Some(2.0), Some(9.0), None, Some(4.0)];
        for (with, expected) in [(Filling::Mean, 4.0), (Filling::Median, 3.0), (Filling::Constant, -1.0)] {
            let asked = Encoding::Impute { with, value: -1.0, indicator: true };
            let design = Design::new(vec![Feature::of("x", ColumnType::Number, asked.clone())]);
            let found = if design.learns() { learnt(asked, &values).unwrap() } else { asked };
            assert_eq!(found, Encoding::Impute { with, value: expected, indicator: true });
        }
    }

    #[test]
    fn quantiles_are_interpolated_and_repeated_ones_are_one_edge() {
        let bins = |count| Encoding::Bins { quantiles: Some(count), edges: Vec::new(), drop_first: false };
        let found = |count, values: &[f64]| match learnt(bins(count), &some(values))? {
            Encoding::Bins { edges, .. } => Ok(edges),
            _ => Err(String::new()),
        };
        assert_eq!(found(4, &[4.0, 1.0, 2.0, 3.0]).unwrap(), [1.0, 1.75, 2.5, 3.25, 4.0]);
        assert_eq!(found(4, &[0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0]).unwrap(), [0.0, 0.5, 2.0]);
        assert!(found(2, &[0.0, 0.0, 0.0, 1.0]).unwrap_err().contains("edges"));
        assert!(found(3, &[7.0; 5]).is_err());
    }

    #[test]
    fn knots_lie_within_the_data_and_increase() {
        let spline = |df, knots: &[f64]| Encoding::Spline { df, knots: knots.to_vec(), boundary: [0.0, 0.0] };
        let values = some(&[3.0, 0.0, 1.0, 2.0, 6.0]);
        assert_eq!(
            learnt(spline(Some(2), &[]), &values).unwrap(),
            Encoding::Spline { df: Some(2), knots: vec![2.0], boundary: [0.0, 6.0] }
        );
        assert!(learnt(spline(None, &[1.0, 5.5]), &values).is_ok());
        for knots in [&[0.0][..], &[6.0], &[7.0], &[-1.0], &[2.0, 2.0], &[3.0, 2.0]] {
            assert!(learnt(spline(None, knots), &values).unwrap_err().contains("between 0 and 6"), "{knots:?}");
        }
        assert!(learnt(spline(Some(4), &[]), &some(&[1.0, 1.0, 1.0, 1.0, 2.0])).unwrap_err().contains("too many"));
    }

    #[test]
    fn a_number_without_a_logarithm_is_named_by_its_row() {
        assert_eq!(learnt(Encoding::Log { offset: 1.0 }, &some(&[0.0, 3.0, -1.0])), Err("row 2".to_owned()));
        assert!(learnt(Encoding::Log { offset: 1.5 }, &some(&[0.0, 3.0, -1.0])).is_ok());
    }

    #[test]
    fn quantiles_of_many_rows_are_those_of_an_even_sample() {
        let count = 4 * EXACT;
        let values: Vec<f64> = (0..count).map(|row| scattered(row) as f64 / u64::MAX as f64).collect();
        let found = learnt(Encoding::Impute { with: Filling::Median, value: 0.0, indicator: false }, &some(&values)).unwrap();
        let Encoding::Impute { value, .. } = found else { panic!() };
        // The median of n uniform numbers has a standard error of 1/(2√n): five of them.
        assert!((value - 0.5).abs() < 2.5 / (EXACT as f64).sqrt(), "{value}");
        let waves = Encoding::RandomFourier(Box::new(Waves::asked(1, 2, None, 1, false)));
        let Encoding::RandomFourier(waves) = learnt(waves, &some(&values)).unwrap() else { panic!() };
        // The median distance of two uniform numbers is 1 − 1/√2.
        let expected = 0.5 / (1.0 - 0.5f64.sqrt()).powi(2);
        assert!((waves.gamma / expected - 1.0).abs() < 0.2, "{} is not {expected}", waves.gamma);
    }
}
