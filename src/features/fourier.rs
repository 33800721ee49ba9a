//! Random Fourier features: a linear model of them comes near one of the Gaussian kernel exp(−γ‖x − x′‖²).
//!
//! z_i(x) = √(2/D)·cos(ω_iᵀx + b_i) with ω_i drawn from N(0, 2γI) and b_i from U[0, 2π), so that z(x)ᵀz(x′) has the kernel as its mean
//! (Rahimi & Recht, "Random Features for Large-Scale Kernel Machines", NIPS 2007, algorithm 1). Where γ is not given it is 1/(2m²) with m the
//! median distance between training rows (Garreau et al., "Large sample analysis of the median heuristic", 2017).
//!
//! The frequencies are drawn by SplitMix64 (Steele et al., 2014) and the transform of Box & Muller (1958), and stored with the version.

use serde::{Deserialize, Serialize};

/// Columns of a feature at the most.
pub const MOST_COLUMNS: usize = 1024;
/// Frequencies at the most, one a column of each component: they are stored with the version.
pub const MOST_FREQUENCIES: usize = 1 << 17;
/// Waves that are worked out side by side.
const TOGETHER: usize = 8;

/// The waves of a feature, for m columns and D components.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Waves {
    /// D.
    pub components: u32,
    /// Another seed draws other waves.
    pub seed: u64,
    /// Whether γ was chosen by the median distance.
    pub median: bool,
    /// γ.
    pub gamma: f64,
    /// Whether columns are standardised first.
    pub standardise: bool,
    /// What is taken off each column (m); zero when they are not standardised.
    pub centre: Vec<f64>,
    /// What each is divided by then (m).
    pub scale: Vec<f64>,
    /// ω, m a component (D×m).
    pub frequencies: Vec<f64>,
    /// b (D).
    pub phases: Vec<f64>,
}

impl Waves {
    /// What is asked for, of so many columns; `gamma` is the median's where it is not given.
    #[must_use]
    pub fn asked(columns: usize, components: u32, gamma: Option<f64>, seed: u64, standardise: bool) -> Self {
        let mut waves = Self {
            components,
            seed,
            median: gamma.is_none(),
            gamma: gamma.unwrap_or(1.0),
            standardise,
            centre: vec![0.0; columns],
            scale: vec![1.0; columns],
            frequencies: Vec::new(),
            phases: Vec::new(),
        };
        waves.draw();
        waves
    }

    pub(super) fn width(&self) -> usize {
        self.components as usize
    }

    pub(super) fn learns(&self) -> bool {
        self.median || self.standardise
    }

    /// Draws the waves of γ.
    pub(super) fn draw(&mut self) {
        let columns = self.centre.len();
        let mut word = self.seed;
        // In (0, 1].
        let mut uniform = || {
            word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            #[allow(clippy::cast_precision_loss)] // 53 bits
            let number = (((mixed ^ (mixed >> 31)) >> 11) + 1) as f64;
            number / 9_007_199_254_740_992.0
        };
        let spread = (2.0 * self.gamma).sqrt();
        self.frequencies.clear();
        self.phases.clear();
        for _ in 0..self.components {
            for _ in 0..columns {
                let radius = (-2.0 * uniform().ln()).sqrt();
                self.frequencies.push(spread * radius * (std::f64::consts::TAU * uniform()).cos());
            }
            self.phases.push(std::f64::consts::TAU * uniform());
        }
    }

    /// The waves at a row.
    pub(super) fn at(&self, cell: impl Fn(usize) -> f64, out: &mut [f64]) {
        let columns = self.centre.len().clamp(1, MOST_COLUMNS);
        let size = (2.0 / f64::from(self.components)).sqrt();
        let mut scaled = [0.0; MOST_COLUMNS];
        let scaled = &mut scaled[..columns];
        scaled.iter_mut().enumerate().for_each(|(column, scaled)| *scaled = (cell(column) - self.centre[column]) / self.scale[column]);
        // Several waves side by side: each sum waits for its own terms alone, in their order.
        let waves = out.chunks_mut(TOGETHER).zip(self.frequencies.chunks(TOGETHER * columns)).zip(self.phases.chunks(TOGETHER));
        for ((out, frequencies), phases) in waves {
            let mut angles = [0.0; TOGETHER];
            for (column, scaled) in scaled.iter().enumerate() {
                let own = frequencies[column..].iter().step_by(columns);
                angles.iter_mut().zip(own).for_each(|(angle, frequency)| *angle += frequency * scaled);
            }
            for ((out, angle), phase) in out.iter_mut().zip(angles).zip(phases) {
                *out = size * (angle + phase).cos();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_rows_come_near_the_kernel() {
        let waves = Waves::asked(2, 8192, Some(0.3), 1, false);
        let at = |x: [f64; 2]| {
            let mut out = vec![0.0; 8192];
            waves.at(|column| x[column], &mut out);
            out
        };
        let row = at([0.5, -1.0]);
        for other in [[0.5, -1.0], [1.0, 0.0], [-0.5, 1.0], [4.0, 3.0]] {
            let product: f64 = row.iter().zip(at(other)).map(|(one, other)| one * other).sum();
            let squared = (other[0] - 0.5).powi(2) + (other[1] + 1.0).powi(2);
            // The mean of 8192 terms in [−2, 2] with a variance of at most 1: six standard errors.
            assert!((product - (-0.3 * squared).exp()).abs() < 6.0 / 8192f64.sqrt(), "{product} at {other:?}");
        }
        assert_eq!(waves, Waves::asked(2, 8192, Some(0.3), 1, false));
        assert_ne!(waves.phases, Waves::asked(2, 8192, Some(0.3), 2, false).phases);
    }
}
