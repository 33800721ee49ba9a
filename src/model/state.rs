//! The state of a version as it learns: the square-root information, the response's own moments, and how many updates it has seen.
//!
//! The moments follow West's weighted recurrence (D. H. D. West, *Updating mean and variance estimates*, CACM 22, 1979), with everything
//! learnt so far multiplied by the forgetting factor first; they give the total sum of squares of R² and F.

use super::version::{FitRecord, TargetRecord, finite};
use crate::lsq::inference::f_p;
use crate::lsq::{self, Information, Row};

/// Weighted moments of one target.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Moments {
    mean: f64,
    /// Σw(y − ȳ)² with an intercept, Σwy² without.
    squares: f64,
}

/// A version's state after `sequence` updates.
#[derive(Clone, Debug)]
pub struct State {
    sequence: u64,
    /// Σw.
    weight: f64,
    /// Σ log w, of the weighted log-likelihood.
    log_weight: f64,
    moments: Vec<Moments>,
    information: Information,
}

/// A stored state that does not decode.
#[derive(Debug, thiserror::Error)]
#[error("a stored model state does not decode")]
pub struct StateError;

const LAYOUT: u8 = 1;

impl State {
    /// The state that a fit leaves, at sequence 0.
    #[must_use]
    pub fn of(fit: &lsq::Fit) -> Self {
        let information = fit.information.clone();
        let moments = fit
            .statistics
            .iter()
            .enumerate()
            .map(|(target, statistics)| Moments { mean: information.baseline(target), squares: statistics.total_sum_of_squares })
            .collect();
        Self { sequence: 0, weight: fit.weight, log_weight: fit.log_weight, moments, information }
    }

    /// The same knowledge as a version of its own, at sequence 0.
    #[must_use]
    pub fn afresh(&self) -> Self {
        Self { sequence: 0, ..self.clone() }
    }

    /// Updates learnt since the fit.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The information that answers rows.
    #[must_use]
    pub fn information(&self) -> &Information {
        &self.information
    }

    /// Learns one row: a design row (p), its responses (q) and its weight. `innovations` (q) receives the a-priori errors y − ŷ.
    ///
    /// # Errors
    /// The result would not be finite; the state is as it was.
    pub fn learn(
        &mut self,
        row: Row<'_>,
        response: &[f64],
        weight: f64,
        forgetting_factor: f64,
        innovations: &mut [f64],
    ) -> Result<(), lsq::Error> {
        let with_intercept = self.information.has_intercept();
        let total = forgetting_factor.mul_add(self.weight, weight);
        let mut next = [Moments::default(); 8];
        let overflow = response.len() > next.len();
        let mut many = Vec::new();
        let next: &mut [Moments] = if overflow {
            many.resize(response.len(), Moments::default());
            &mut many
        } else {
            &mut next[..response.len()]
        };
        for ((next, moments), &y) in next.iter_mut().zip(&self.moments).zip(response) {
            let kept = forgetting_factor * moments.squares;
            *next = if with_intercept && total > 0.0 {
                let step = y - moments.mean;
                let mean = moments.mean + step * (weight / total);
                Moments { mean, squares: kept + weight * step * (y - mean) }
            } else {
                Moments { mean: moments.mean, squares: kept + weight * y * y }
            };
            if !(next.mean.is_finite() && next.squares.is_finite()) {
                return Err(lsq::Error::Overflow);
            }
        }
        self.information.update(row, response, weight, forgetting_factor, innovations)?;
        self.moments.copy_from_slice(next);
        self.weight = total;
        if weight > 0.0 {
            self.log_weight += weight.ln();
        }
        self.sequence += 1;
        Ok(())
    }

    /// The figures of the fit as they stand now. At sequence 0 they are those that were stored, which were computed with more care.
    #[must_use]
    pub fn record(&self, stored: &FitRecord, forgetting_factor: f64) -> FitRecord {
        if self.sequence == 0 {
            return stored.clone();
        }
        let information = &self.information;
        let (rank, degrees) = (information.rank(), information.degrees_of_freedom());
        let spent = stored.effective_parameters + rank as f64 - stored.rank as f64;
        let observations = information.observations();
        let regressors = rank as f64 - f64::from(u8::from(information.has_intercept()));
        let targets = information
            .residual_variance()
            .iter()
            .zip(&self.moments)
            .map(|(&variance, moments)| {
                if degrees <= 0.0 {
                    return TargetRecord::default();
                }
                let residual = variance * degrees;
                let total = moments.squares;
                let r2 = 1.0 - residual / total;
                let base = degrees + spent - f64::from(u8::from(information.has_intercept()));
                let f = (total - residual) / regressors / variance;
                let mut record = TargetRecord {
                    residual_std: finite(variance.sqrt()),
                    r2: finite(r2),
                    adjusted_r2: finite(1.0 - (1.0 - r2) * base / degrees),
                    f: finite(f),
                    f_p: finite(if regressors > 0.0 { f_p(f, regressors, degrees) } else { f64::NAN }),
                    ..TargetRecord::default()
                };
                // A likelihood of rows that are half forgotten is not one.
                if forgetting_factor >= 1.0 {
                    #[allow(clippy::cast_precision_loss)]
                    let n = observations as f64;
                    let likelihood = -0.5 * n * ((std::f64::consts::TAU * residual / n).ln() + 1.0) + 0.5 * self.log_weight;
                    record.log_likelihood = finite(likelihood);
                    record.aic = finite(2.0f64.mul_add(rank as f64, -2.0 * likelihood));
                    record.bic = finite((rank as f64).mul_add(n.ln(), -2.0 * likelihood));
                }
                record
            })
            .collect();
        FitRecord {
            observations,
            rank,
            degrees_of_freedom: degrees,
            effective_parameters: spent,
            condition_number: stored.condition_number,
            digits: stored.digits,
            targets,
        }
    }

    /// Little-endian bytes: layout, sequence, weights, moments, information. The same state always gives the same bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![LAYOUT];
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.weight.to_le_bytes());
        bytes.extend_from_slice(&self.log_weight.to_le_bytes());
        bytes.extend_from_slice(&(self.moments.len() as u64).to_le_bytes());
        for moments in &self.moments {
            bytes.extend_from_slice(&moments.mean.to_le_bytes());
            bytes.extend_from_slice(&moments.squares.to_le_bytes());
        }
        bytes.extend_from_slice(&self.information.encode());
        bytes
    }

    /// The state of those bytes.
    ///
    /// # Errors
    /// They are not the encoding of a state.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let mut rest = bytes.strip_prefix(&[LAYOUT]).ok_or(StateError)?;
        let mut word = || -> Result<[u8; 8], StateError> {
            let (word, tail) = rest.split_first_chunk::<8>().ok_or(StateError)?;
            rest = tail;
            Ok(*word)
        };
        let sequence = u64::from_le_bytes(word()?);
        let weight = f64::from_le_bytes(word()?);
        let log_weight = f64::from_le_bytes(word()?);
        let targets = u64::from_le_bytes(word()?);
        let moments = (0..targets)
            .map(|_| Ok(Moments { mean: f64::from_le_bytes(word()?), squares: f64::from_le_bytes(word()?) }))
            .collect::<Result<Vec<_>, StateError>>()?;
        let information = Information::decode(rest).map_err(|_| StateError)?;
        if moments.len() == information.responses() {
            Ok(Self { sequence, weight, log_weight, moments, information })
        } else {
            Err(StateError)
        }
    }
}
