//! What the numbers promise: the article's examples, rank, penalties, learning row by row.
#![allow(clippy::unwrap_used)]

mod deficient;
mod exact;
mod gradient;
mod inference;
mod penalised;
mod properties;
mod recursive;
mod reduction;
mod robust;
mod strd;

use faer::Mat;
use lsqd::lsq::{Fit, Matrices, Solver, Specification, fit};

/// A fit of one response.
pub(crate) fn fitted(design: &Mat<f64>, response: &[f64], specification: Specification<'_>) -> Fit {
    weighted(design, response, None, specification)
}

/// The same with weights.
pub(crate) fn weighted(design: &Mat<f64>, response: &[f64], weights: Option<&[f64]>, specification: Specification<'_>) -> Fit {
    let response = Mat::from_fn(response.len(), 1, |row, _| response[row]);
    fit(&mut Matrices { design: design.as_ref(), response: response.as_ref(), weights }, &specification).unwrap()
}

/// Coefficients, the intercept first if there is one.
pub(crate) fn coefficients(fit: &Fit) -> Vec<f64> {
    let information = &fit.information;
    let mut all = information.intercept().to_vec();
    all.extend(information.coefficients().col(0).iter());
    all
}

/// Standard errors in the same order.
pub(crate) fn std_errors(fit: &Fit) -> Vec<f64> {
    let (mut all, slopes) = fit.information.std_errors();
    all.extend(slopes.col(0).iter());
    all
}

/// A sequence of numbers in (−1, 1) that is the same everywhere (Knuth's 64-bit linear congruence).
pub(crate) struct Sequence(pub(crate) u64);

impl Sequence {
    pub(crate) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        #[allow(clippy::cast_precision_loss)]
        let unit = (self.0 >> 11) as f64 / (1_u64 << 53) as f64;
        2.0 * unit - 1.0
    }

    pub(crate) fn matrix(&mut self, rows: usize, columns: usize) -> Mat<f64> {
        Mat::from_fn(rows, columns, |_, _| self.next())
    }
}

/// Decimal digits in which the worst of two lists agrees.
pub(crate) fn digits(got: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    got.iter()
        .zip(expected)
        .map(|(got, expected)| {
            let difference = (got - expected).abs();
            let difference = if *expected == 0.0 { difference } else { difference / expected.abs() };
            assert!(!difference.is_nan(), "{got} {expected}");
            if difference == 0.0 { 16.0 } else { -difference.log10() }
        })
        .fold(16.0, f64::min)
}

pub(crate) const SOLVERS: [Solver; 4] = [Solver::Auto, Solver::Qr, Solver::Svd, Solver::Exact];
