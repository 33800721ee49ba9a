//! What an error of one step does to later ones, in y_t = Σ φ_l·y_{t−l} + … + ε_t.
//!
//! Written as a moving average, y_t = … + Σ ψ_j·ε_{t−j} with ψ_0 = 1 and ψ_j = Σ_{l ≤ j} φ_l·ψ_{j−l}, so that the forecast of k steps has
//! the error variance σ²·Σ_{j<k} ψ_j². Coefficients are taken as known: their own errors are not in it.
//!
//! Box, Jenkins, Reinsel & Ljung, *Time Series Analysis*, 5th ed., §5.1–5.2.

/// ψ_0, …, ψ_{count − 1} of an autoregression; `coefficients` are (l, φ_l) with l ≥ 1, in any order, those of one lag to be added up.
#[must_use]
pub fn moving_average(coefficients: &[(usize, f64)], count: usize) -> Vec<f64> {
    let mut weights: Vec<f64> = Vec::with_capacity(count);
    for step in 0..count {
        let of = |&(lag, coefficient): &(usize, f64)| step.checked_sub(lag).map(|before| coefficient * weights[before]);
        let weight = if step == 0 { 1.0 } else { coefficients.iter().filter_map(of).sum() };
        weights.push(weight);
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::moving_average;

    #[test]
    fn one_lag_gives_powers_and_a_random_walk_ones() {
        assert_eq!(moving_average(&[(1, 0.5)], 5), [1.0, 0.5, 0.25, 0.125, 0.0625]);
        assert_eq!(moving_average(&[(1, 1.0)], 4), [1.0; 4]);
        // A second difference that is zero: a line goes on, and its errors add up.
        assert_eq!(moving_average(&[(1, 2.0), (2, -1.0)], 5), [1.0, 2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn a_season_answers_at_its_own_distance() {
        assert_eq!(moving_average(&[(3, 0.5), (3, 0.25)], 8), [1.0, 0.0, 0.0, 0.75, 0.0, 0.0, 0.5625, 0.0]);
        assert_eq!(moving_average(&[], 3), [1.0, 0.0, 0.0]);
    }
}
