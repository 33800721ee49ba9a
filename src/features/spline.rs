//! Natural cubic splines: cubic between knots, with two continuous derivatives, and a line beyond the outermost.
//!
//! The basis is that of Hastie, Tibshirani & Friedman, *The Elements of Statistical Learning*, 2nd ed. (2009), eq. 5.4 and 5.5, without its
//! constant, which is the intercept's: with knots ξ₁ < … < ξ_K,
//!
//! N₁(x) = x, N₁₊ₖ(x) = d_k(x) − d_{K−1}(x) for k = 1 … K − 2, d_k(x) = ((x − ξ_k)₊³ − (x − ξ_K)₊³)/(ξ_K − ξ_k)
//!
//! of x brought to [0, 1] by the boundary knots, so that columns are of one size whatever the unit. Its span is that of every other basis of
//! the same knots, R's `ns` and patsy's `cr` among them: fitted values, intervals and leverages are the same, coefficients are not.

/// The K − 1 columns at `x`, with K − 2 knots between those of the boundary.
pub(super) fn natural(x: f64, knots: &[f64], boundary: [f64; 2], out: &mut [f64]) {
    let [least, greatest] = boundary;
    let scaled = |value: f64| (value - least) / (greatest - least);
    let u = scaled(x);
    out[0] = u;
    // Of K knots, the last but one is the last within, or the first of the boundary where there is none.
    let last = knots.last().map_or(0.0, |knot| scaled(*knot));
    let cube = |value: f64| if value > 0.0 { value * value * value } else { 0.0 };
    let d = |knot: f64| (cube(u - knot) - cube(u - 1.0)) / (1.0 - knot);
    let before = std::iter::once(0.0).chain(knots.iter().map(|knot| scaled(*knot)));
    for (out, knot) in out[1..].iter_mut().zip(before) {
        // Past the last knot the cubes cancel; what they leave is a line.
        *out = if u >= 1.0 { (last - knot) * (3.0 * u - 1.0 - knot - last) } else { d(knot) - d(last) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOTS: [f64; 3] = [2.0, 5.0, 6.0];
    const BOUNDARY: [f64; 2] = [-1.0, 9.0];

    fn at(x: f64) -> [f64; 4] {
        let mut out = [0.0; 4];
        natural(x, &KNOTS, BOUNDARY, &mut out);
        out
    }

    /// Eq. 5.4 and 5.5 in exact fractions, worked out apart from this code: knots 0, 3/10, 6/10, 7/10, 1, at u = 1/2.
    #[test]
    fn the_basis_is_that_of_the_formula() {
        // d₁ = 1/8, d₂ = (1/5)³/(7/10) = 4/350, d₄ = 0.
        let expected = [0.5, 0.125, 4.0 / 350.0, 0.0];
        for (found, expected) in at(4.0).into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-15, "{found} is not {expected}");
        }
        // At u = 4/5: d₁ = 64/125, d₂ = (1/8)/(7/10) = 5/28, d₃ = (1/125)/(2/5) = 1/50, d₄ = (1/1000)/(3/10) = 1/300.
        let expected = [0.8, 0.512 - 1.0 / 300.0, 5.0 / 28.0 - 1.0 / 300.0, 0.02 - 1.0 / 300.0];
        for (found, expected) in at(7.0).into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-15, "{found} is not {expected}");
        }
    }

    #[test]
    fn beyond_the_data_it_is_a_line_that_goes_on_smoothly() {
        let step = 1e-3;
        for edge in BOUNDARY {
            let beyond = if edge < 0.0 { edge - 3.0 } else { edge + 3.0 };
            for column in 0..4 {
                let bend = |x: f64| at(x + step)[column] - 2.0 * at(x)[column] + at(x - step)[column];
                // Linear: no second difference but rounding's.
                assert!(bend(beyond).abs() < 1e-13, "column {column} bends at {beyond}");
                // The second derivative goes to zero with the distance to the edge: a second difference there is of the third order.
                assert!(bend(edge).abs() < 6.0 * step.powi(3), "column {column} has a corner at {edge}");
            }
        }
    }
}
