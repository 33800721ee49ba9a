//! Problems whose answers are known: ill-conditioned ones with exact solutions, weights, penalties, large ones.

use faer::linalg::solvers::{Llt, Solve as _};
use faer::{Mat, Side};
use lsqd::lsq::{Gathered, Solver, Specification};

use super::{Sequence, coefficients, digits, fitted, std_errors, weighted};

/// A response that small integers give exactly, for columns of floats with few bits.
fn exact_problem(sequence: &mut Sequence, rows: usize, columns: usize, nearness: f64, offset: f64) -> (Mat<f64>, Vec<f64>, Vec<f64>) {
    let coarse = |value: f64| (value * 1024.0).round() / 1024.0;
    let base = Mat::from_fn(rows, columns, |_, _| coarse(sequence.next()));
    // Column 1 is column 0 but for a power of two times another one: nearly collinear, and exact.
    let design = Mat::from_fn(rows, columns, |row, column| match column {
        1 => base[(row, 0)] + nearness * base[(row, 1)],
        2 => base[(row, 2)] + offset,
        _ => base[(row, column)],
    });
    let truth: Vec<f64> = (0..=columns).map(|column| f64::from(u8::try_from(column % 7).unwrap()) - 2.5).collect();
    let response =
        (0..rows).map(|row| truth[0] + (0..columns).map(|column| design[(row, column)] * truth[column + 1]).sum::<f64>()).collect();
    (design, response, truth)
}

#[test]
fn near_collinear_columns_and_offsets_cost_no_digits() {
    let mut sequence = Sequence(3);
    for exponent in [0, 10, 20, 24] {
        let (design, response, truth) = exact_problem(&mut sequence, 60, 5, (-f64::from(exponent)).exp2(), 2.0f64.powi(16));
        for solver in [Solver::Auto, Solver::Qr, Solver::Exact] {
            let fit = fitted(&design, &response, Specification { solver, ..Specification::default() });
            let reached = digits(&coefficients(&fit), &truth);
            assert!(reached >= 13.0, "2^-{exponent} {solver:?}: {reached}");
            assert!(fit.digits <= reached + 1.5 && fit.digits > 10.0, "2^-{exponent} {solver:?}: {reached}, said {}", fit.digits);
        }
    }
}

#[test]
fn weights_are_repeated_rows() {
    let mut sequence = Sequence(4);
    let design = sequence.matrix(40, 3);
    let response: Vec<f64> = (0..40).map(|row| design[(row, 0)] - design[(row, 2)] + 0.3 * sequence.next()).collect();
    let weights: Vec<f64> = (0..40).map(|row| f64::from(u8::try_from(row % 4).unwrap())).collect();
    let order: Vec<usize> = (0..40).flat_map(|row| std::iter::repeat_n(row, row % 4)).collect();
    let repeated = Mat::from_fn(order.len(), 3, |row, column| design[(order[row], column)]);
    let responses: Vec<f64> = order.iter().map(|row| response[*row]).collect();
    let once = weighted(&design, &response, Some(&weights), Specification::default());
    let many = fitted(&repeated, &responses, Specification::default());
    assert!(digits(&coefficients(&once), &coefficients(&many)) > 14.0);
    assert_eq!(once.observations, 30);
    let (one, other) = (&once.statistics[0], &many.statistics[0]);
    assert!(digits(&[one.residual_sum_of_squares, one.r2], &[other.residual_sum_of_squares, other.r2]) > 13.0);
}

#[test]
fn ridge_solves_its_normal_equations() {
    let mut sequence = Sequence(5);
    let (rows, columns, penalty) = (50, 6, 2.5);
    let design = Mat::from_fn(rows, columns, |_, column| sequence.next() * f64::from(u8::try_from(column + 1).unwrap()) + 3.0);
    let response: Vec<f64> = (0..rows).map(|row| design[(row, 1)] + sequence.next()).collect();
    let means: Vec<f64> = (0..columns).map(|column| (0..rows).map(|row| design[(row, column)]).sum::<f64>() / rows as f64).collect();
    let level = response.iter().sum::<f64>() / rows as f64;
    let centred = Mat::from_fn(rows, columns, |row, column| design[(row, column)] - means[column]);
    let right = centred.transpose() * Mat::from_fn(rows, 1, |row, _| response[row] - level);
    let mut gram = centred.transpose() * &centred;
    for column in 0..columns {
        gram[(column, column)] += penalty;
    }
    let slopes = Llt::new(gram.as_ref(), Side::Lower).unwrap().solve(&right);
    for solver in [Solver::Auto, Solver::Cholesky, Solver::Qr, Solver::Exact] {
        let fit = fitted(&design, &response, Specification { penalty, solver, ..Specification::default() });
        let found = coefficients(&fit);
        let expected: Vec<f64> = slopes.col(0).iter().copied().collect();
        assert!(digits(&found[1..], &expected) > 12.0, "{solver:?}");
        assert!(fit.effective_parameters < 7.0 && fit.effective_parameters > 1.0);
    }
    let none = fitted(&design, &response, Specification::default());
    let tiny = fitted(&design, &response, Specification { penalty: 1e-300, ..Specification::default() });
    assert_eq!(coefficients(&none), coefficients(&tiny));
}

#[test]
fn large_well_conditioned_problems_keep_thirteen_digits_in_plain_precision() {
    let mut sequence = Sequence(6);
    let (rows, columns) = (60_000, 45);
    let design = sequence.matrix(rows, columns);
    let response: Vec<f64> = (0..rows).map(|row| 100.0 + design[(row, 0)] + 2.0 * design[(row, 7)] + sequence.next()).collect();
    let plain = fitted(&design, &response, Specification::default());
    let exact = fitted(&design, &response, Specification { solver: Solver::Exact, ..Specification::default() });
    assert_eq!(plain.solver, Solver::Cholesky);
    // A coefficient whose truth is zero is small against its own standard error: its digits are counted against that.
    let errors = std_errors(&exact);
    for ((plain, exact), error) in coefficients(&plain).iter().zip(coefficients(&exact)).zip(&errors) {
        assert!((plain - exact).abs() < 1e-13 * exact.abs().max(*error), "{plain} {exact}");
    }
    assert!(digits(&std_errors(&plain), &errors) > 13.0);
    assert!(digits(&[plain.information.maximum_leverage()], &[exact.information.maximum_leverage()]) > 11.0);
}

#[test]
fn leverages_sum_to_the_rank_and_residuals_are_orthogonal() {
    let mut sequence = Sequence(7);
    let design = sequence.matrix(300, 5);
    let response: Vec<f64> = (0..300).map(|_| sequence.next()).collect();
    let fit = fitted(&design, &response, Specification::default());
    let (mut sum, mut largest, mut scratch) = (0.0, 0.0_f64, Gathered::default());
    let mut gradient = [0.0; 6];
    for row in 0..300 {
        let x: Vec<f64> = (0..5).map(|column| design[(row, column)]).collect();
        let leverage = fit.information.leverage(&x, &mut scratch);
        assert!((0.0..=1.0).contains(&leverage));
        sum += leverage;
        largest = largest.max(leverage);
        let mut predicted = [0.0];
        fit.information.predict(&x, &mut predicted);
        let residual = response[row] - predicted[0];
        gradient[0] += residual;
        x.iter().enumerate().for_each(|(column, x)| gradient[1 + column] += x * residual);
    }
    assert!((sum - 6.0).abs() < 1e-12);
    assert!((largest - fit.information.maximum_leverage()).abs() < 1e-13);
    assert!(gradient.iter().all(|value| value.abs() < 1e-12), "{gradient:?}");
}
