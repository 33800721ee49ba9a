//! How members of a split fare by the labels that come back: figures of each, and of two the difference with an interval that holds however
//! often it is looked at.
//!
//! Members are compared on the rows that both predicted, at the time when they predicted. With dᵢ = (yᵢ − b̂ᵢ)² − (yᵢ − âᵢ)² for champion a and
//! challenger b, d̄ and s the mean and standard deviation of n of them, the limits of the difference of mean squared errors are
//!
//! d̄ ± s·√((n − 1)/n · (K − 1)/(1 − K/(1 + ng))),  K = (√(1 + ng)/α)^(2/n),  and none while K ≥ 1 + ng.
//!
//! They are a confidence sequence: the chance that any of them, at any n, leaves out what they are limits of is at most α. So one may look
//! after each label and stop at will, which one may not with the limits of a t-test. They are the hypotheses that the t-test martingale of a
//! normal mixture over the effect size (variance g) with the right Haar prior over s has not refuted: exact for normal dᵢ of unknown
//! variance, whatever n. As n grows they become d̄ ± s·√(2(ng + 1)/(n²g)·ln(√(ng + 1)/α)), which holds asymptotically for any dᵢ with slightly
//! more than a variance, also when means and variances change with time, as they do while versions learn; the limits are then about
//! the mean of the differences so far.
//!
//! The difference of the roots, RMSE of b − RMSE of a, has the limits of the same form with s by the delta method.
//!
//! Lai, *On confidence sequences*, Ann. Statist. 4 (1976); Wang & Ramdas, *Anytime-valid t-tests and confidence sequences for Gaussian means
//! with unknown variance*, Sequential Analysis 44 (2025); Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, *Time-uniform central limit theory and
//! asymptotic confidence sequences*, Ann. Statist. 52 (2024), theorem 2.2 and proposition 2.5.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The chance that all intervals of a split hold, at all times.
pub const LEVEL: f64 = 0.95;
/// g: the limits are tightest near a thousand labels, (2·ln(1/α) + ln(2·ln(1/α) + 1))/1000 at α = 0.05.
const MIXTURE: f64 = 0.008;

/// Errors of one member in one target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Rows whose label came.
    pub rows: u64,
    squares: f64,
    absolute: f64,
}

impl Tally {
    /// Counts an error; one whose square is not finite is left out, and `false`.
    pub fn count(&mut self, error: f64) -> bool {
        let next = Self { rows: self.rows + 1, squares: error.mul_add(error, self.squares), absolute: self.absolute + error.abs() };
        let taken = next.squares.is_finite();
        if taken {
            *self = next;
        }
        taken
    }

    /// Root mean squared error.
    #[must_use]
    pub fn rmse(&self) -> Option<f64> {
        (self.rows > 0).then(|| (self.squares / self.rows as f64).sqrt())
    }

    /// Mean absolute error.
    #[must_use]
    pub fn mae(&self) -> Option<f64> {
        (self.rows > 0).then(|| self.absolute / self.rows as f64)
    }
}

/// Squared errors of champion and challenger on the same rows, in one target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// Rows that both predicted and whose label came.
    pub rows: u64,
    /// Means of the champion's and the challenger's squared errors.
    means: [f64; 2],
    /// Σ of squared deviations from those: the champion's, the challenger's, and of both together.
    spread: [f64; 3],
}

/// A difference, challenger − champion, with its limits; there are none while the labels are too few.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Its value.
    pub value: f64,
    /// Its limits.
    pub limits: Option<(f64, f64)>,
}

/// Who predicts better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// The one with which the other is compared.
    Champion,
    /// The other.
    Challenger,
}

impl Paired {
    /// Counts the errors of both in one row; `false`, and nothing is counted, where their squares are too large for their sums.
    pub fn count(&mut self, champion: f64, challenger: f64) -> bool {
        let squares = [champion * champion, challenger * challenger];
        let mut next = *self;
        next.rows += 1;
        let away = [squares[0] - self.means[0], squares[1] - self.means[1]];
        for side in 0..2 {
            next.means[side] += away[side] / next.rows as f64;
            next.spread[side] += away[side] * (squares[side] - next.means[side]);
        }
        next.spread[2] += away[0] * (squares[1] - next.means[1]);
        let taken = next.means.iter().chain(&next.spread).all(|value| value.is_finite());
        if taken {
            *self = next;
        }
        taken
    }

    /// The difference of mean squared errors, with limits that leave it out with a chance of `alpha` at the most.
    #[must_use]
    pub fn mse(&self, alpha: f64) -> Option<Difference> {
        self.weighed(self.means[1] - self.means[0], [1.0, 1.0], alpha)
    }

    /// The difference of root mean squared errors.
    #[must_use]
    pub fn rmse(&self, alpha: f64) -> Option<Difference> {
        let roots = self.means.map(f64::sqrt);
        let slope = |root: f64| if root > 0.0 { 0.5 / root } else { 0.0 };
        self.weighed(roots[1] - roots[0], roots.map(slope), alpha)
    }

    /// A difference whose summands are the squared errors times `weights`.
    fn weighed(&self, value: f64, weights: [f64; 2], alpha: f64) -> Option<Difference> {
        if self.rows == 0 {
            return None;
        }
        let [own, other, both] = self.spread;
        let spread = weights[0] * weights[0] * own + weights[1] * weights[1] * other - 2.0 * weights[0] * weights[1] * both;
        let half = half_width(self.rows, alpha).map(|half| half * (spread.max(0.0) / (self.rows as f64 - 1.0)).sqrt());
        Some(Difference { value, limits: half.filter(|half| half.is_finite()).map(|half| (value - half, value + half)) })
    }

    /// Who is better, once that is decided: both intervals leave out no difference.
    #[must_use]
    pub fn better(&self, alpha: f64) -> Option<Better> {
        let side = |difference: Option<Difference>| match difference?.limits? {
            (lower, _) if lower > 0.0 => Some(Better::Champion),
            (_, upper) if upper < 0.0 => Some(Better::Challenger),
            _ => None,
        };
        let found = side(self.mse(alpha))?;
        (side(self.rmse(alpha)) == Some(found)).then_some(found)
    }
}

/// Half the width, in standard deviations of the summands; none while the sequence is unbounded.
fn half_width(rows: u64, alpha: f64) -> Option<f64> {
    let n = rows as f64;
    let mixed = 1.0 + n * MIXTURE;
    // ln K, and K − 1 without the cancellation of large n.
    let exponent = 2.0 / n * (mixed.sqrt() / alpha).ln();
    let (ratio, above) = (exponent.exp(), exponent.exp_m1());
    (rows > 1 && ratio < mixed).then(|| ((n - 1.0) / n * above / (1.0 - ratio / mixed)).sqrt())
}

/// What became of a row when its label came.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The challenger.
    pub challenger: String,
    /// Which target.
    pub target: usize,
    /// What is decided now.
    pub better: Option<Better>,
}

/// The figures of a split: of each member, and of champion and challenger. A member stands under what answers, a version or a version held at
/// a sequence, not under its alias: when that moves, another comparison begins.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    members: BTreeMap<String, Vec<Tally>>,
    pairs: BTreeMap<String, Vec<Paired>>,
}

/// Predictions of one row by several members, of which the first is the champion.
#[derive(Clone, Copy, Debug)]
pub struct Judged<'a> {
    /// What answered or looked on.
    pub members: &'a [String],
    /// Their predictions, one a target, member by member; NaN where a member did not see the row.
    pub predictions: &'a [f64],
    /// What was observed, one a target.
    pub observed: &'a [f64],
}

impl Scores {
    /// Counts a row; returns which comparisons are decided otherwise than before.
    pub fn count(&mut self, row: Judged<'_>) -> Vec<Change> {
        let targets = row.observed.len();
        let error = |member: usize, target: usize| row.observed[target] - row.predictions[member * targets + target];
        let saw = |member: usize| (0..targets).all(|target| error(member, target).is_finite());
        let alpha = alpha(row.members.len(), targets);
        let mut changes = Vec::new();
        for (place, name) in row.members.iter().enumerate().filter(|(place, _)| saw(*place)) {
            let tallies = self.members.entry(name.clone()).or_insert_with(|| vec![Tally::default(); targets]);
            for (target, tally) in tallies.iter_mut().enumerate().take(targets) {
                tally.count(error(place, target));
            }
            if place == 0 || !saw(0) {
                continue;
            }
            let pairs = self.pairs.entry(pair(&row.members[0], name)).or_insert_with(|| vec![Paired::default(); targets]);
            for (target, paired) in pairs.iter_mut().enumerate().take(targets) {
                let before = paired.better(alpha);
                paired.count(error(0, target), error(place, target));
                let better = paired.better(alpha);
                if better != before {
                    changes.push(Change { challenger: name.clone(), target, better });
                }
            }
        }
        changes
    }

    /// The errors of a member, one tally a target.
    #[must_use]
    pub fn of(&self, member: &str) -> Option<&[Tally]> {
        self.members.get(member).map(Vec::as_slice)
    }

    /// Champion and challenger on the same rows.
    #[must_use]
    pub fn between(&self, champion: &str, challenger: &str) -> Option<&[Paired]> {
        self.pairs.get(&pair(champion, challenger)).map(Vec::as_slice)
    }
}

/// The chance of error of one interval of so many members and targets, so that all hold together.
#[must_use]
pub fn alpha(members: usize, targets: usize) -> f64 {
    (1.0 - LEVEL) / (members.saturating_sub(1).max(1) * targets.max(1)) as f64
}

fn pair(champion: &str, challenger: &str) -> String {
    format!("{champion} {challenger}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Normal deviates by the polar method of Marsaglia, from the words of SplitMix64.
    struct Normal(u64);

    impl Normal {
        fn uniform(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = self.0;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^= word >> 31;
            (word >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
        }

        fn next(&mut self) -> f64 {
            loop {
                let (x, y) = (self.uniform(), self.uniform());
                let length = x * x + y * y;
                if length > 0.0 && length < 1.0 {
                    return x * (-2.0 * length.ln() / length).sqrt();
                }
            }
        }

        /// Student's t with three degrees of freedom: no fourth moment, so that squared errors have no variance.
        fn heavy(&mut self) -> f64 {
            let sum = (0..3).map(|_| self.next().powi(2)).sum::<f64>();
            self.next() / (sum / 3.0).sqrt()
        }

        /// Skewed: an exponential deviate about its mean.
        fn skewed(&mut self) -> f64 {
            -((self.uniform() + 1.0) / 2.0).max(1e-300).ln() - 1.0
        }
    }

    fn alone() -> f64 {
        alpha(2, 1)
    }

    /// The label after which a comparison was decided, and for whom, when it is looked at after each.
    fn decided(runs: u64, labels: u64, mut errors: impl FnMut(&mut Normal) -> (f64, f64)) -> Vec<Option<(u64, Better)>> {
        (0..runs)
            .map(|run| {
                let (mut draws, mut paired) = (Normal(run * 7919 + 1), Paired::default());
                (1..=labels).find_map(|label| {
                    let (champion, challenger) = errors(&mut draws);
                    assert!(paired.count(champion, challenger));
                    paired.better(alone()).map(|better| (label, better))
                })
            })
            .collect()
    }

    #[test]
    fn a_tie_that_is_looked_at_after_each_label_is_called_a_win_in_five_of_a_hundred_runs_at_the_most() {
        type Draw = fn(&mut Normal) -> f64;
        let noises: [(&str, Draw); 3] = [("normal", Normal::next), ("heavy", Normal::heavy), ("skewed", Normal::skewed)];
        for (name, noise) in noises {
            let runs = 1_000;
            // Two models that are wrong by as much, each in its own way.
            let found = decided(runs, 2_000, |draws| {
                let (noise, own, other) = (noise(draws), 0.3 * draws.next(), 0.3 * draws.next());
                (noise - own, noise - other)
            });
            let wins = found.iter().flatten().count();
            assert!(wins <= runs as usize / 20, "{name}: {wins} of {runs} ties were called a win");
        }
    }

    #[test]
    fn the_better_one_is_found() {
        // Noise of standard deviation 1; the challenger's own error is 0.2, the champion's 0.5: RMSE 1.02 against 1.118.
        let better = |draws: &mut Normal| {
            let noise = draws.next();
            (noise - 0.5 * draws.next(), noise - 0.2 * draws.next())
        };
        let found = decided(200, 4_000, better);
        assert!(found.iter().all(|found| found.is_some_and(|(_, better)| better == Better::Challenger)), "{found:?}");
        let mean = found.iter().flatten().map(|(label, _)| *label as f64).sum::<f64>() / 200.0;
        assert!(mean < 1_000.0, "{mean} labels on average");
        let worse = decided(50, 4_000, |draws| {
            let (champion, challenger) = better(draws);
            (challenger, champion)
        });
        assert!(worse.iter().all(|found| found.is_some_and(|(_, better)| better == Better::Champion)), "{worse:?}");
    }

    #[test]
    fn intervals_hold_the_true_difference_at_every_look() {
        // Errors of standard deviations 2 and 1 that hang together: MSE 1 − 4, RMSE 1 − 2.
        let runs = 500;
        let missed = (0..runs).filter(|run| {
            let (mut draws, mut paired) = (Normal(run * 104_729 + 5), Paired::default());
            (0..2_000).any(|_| {
                let shared = draws.next();
                paired.count(2.0 * (0.8 * shared + 0.6 * draws.next()), shared);
                let outside = |difference: Option<Difference>, truth: f64| {
                    difference.and_then(|found| found.limits).is_some_and(|(lower, upper)| truth < lower || truth > upper)
                };
                outside(paired.mse(alone()), -3.0) || outside(paired.rmse(alone()), -1.0)
            })
        });
        let missed = missed.count();
        // Either of the two may miss.
        assert!(missed <= runs as usize / 10, "{missed} of {runs}");
    }

    #[test]
    fn limits_become_those_of_the_asymptotic_sequence() {
        for rows in [10_000_u64, 1_000_000] {
            let (n, g) = (rows as f64, MIXTURE);
            let limit = (2.0 * (n * g + 1.0) / (n * n * g) * ((n * g + 1.0).sqrt() / 0.05).ln()).sqrt();
            let found = half_width(rows, 0.05).unwrap();
            assert!((found / limit - 1.0).abs() < 20.0 / n, "{rows}: {found} against {limit}");
        }
        assert_eq!((half_width(1, 0.05), half_width(5, 0.05)), (None, None));
        assert!(half_width(100, 0.05).unwrap() > half_width(100, 0.1).unwrap());
    }

    #[test]
    fn what_is_stored_comes_back_to_the_bit_and_equal_models_stay_undecided() {
        let mut scores = Scores::default();
        let members = ["1".to_owned(), "2@5".to_owned(), "3".to_owned()];
        for row in 0..300 {
            let (x, y) = (f64::from(row) / 7.0, f64::from(row % 5));
            let changes = scores.count(Judged { members: &members, predictions: &[x, 0.1, x, 0.1, f64::NAN, 1.0], observed: &[y, 0.3] });
            assert_eq!(changes, []);
        }
        let text = serde_json::to_string(&scores).unwrap();
        assert_eq!(serde_json::from_str::<Scores>(&text).unwrap(), scores);
        let pair = scores.between("1", "2@5").unwrap();
        assert_eq!(
            (pair[0].rows, pair[0].mse(0.05).unwrap(), pair[0].better(0.05)),
            (300, Difference { value: 0.0, limits: Some((0.0, 0.0)) }, None)
        );
        assert!(scores.of("3").is_none() && scores.between("1", "3").is_none(), "it saw no row");
        let errors: f64 = (0..300).map(|row| (f64::from(row % 5) - f64::from(row) / 7.0).powi(2)).sum();
        assert!((scores.of("1").unwrap()[0].rmse().unwrap() - (errors / 300.0).sqrt()).abs() < 1e-12);
        assert!((scores.of("1").unwrap()[1].mae().unwrap() - 0.2).abs() < 1e-12);
    }

    #[test]
    fn errors_too_large_to_be_summed_are_left_out() {
        let mut scores = Scores::default();
        let members = ["1".to_owned(), "2".to_owned()];
        scores.count(Judged { members: &members, predictions: &[1.0, 1.0], observed: &[2.0] });
        let before = scores.clone();
        scores.count(Judged { members: &members, predictions: &[1e300, -1e300], observed: &[2.0] });
        assert_eq!(scores, before);
        scores.count(Judged { members: &members, predictions: &[1e160, 1.0], observed: &[2.0] });
        assert!(serde_json::to_string(&scores).unwrap().contains("null") || scores.of("1").unwrap()[0].rmse().unwrap().is_finite());
    }
}
