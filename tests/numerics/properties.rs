//! What holds of every problem, on problems drawn at random; and problems that are hard, with answers that are known exactly.

use faer::Mat;
use lsqd::lsq::{Gathered, Solver, Specification};
use proptest::prelude::*;

use super::{Sequence, coefficients, digits, fitted, std_errors, weighted};

/// A problem of n rows and p predictors with offsets and sizes of its own.
#[derive(Clone, Debug)]
struct Problem {
    design: Mat<f64>,
    response: Vec<f64>,
    intercept: bool,
}

fn problems() -> impl Strategy<Value = Problem> {
    (1_usize..8, 0_usize..60, any::<u64>(), any::<bool>()).prop_map(|(predictors, more, seed, intercept)| {
        let mut sequence = Sequence(seed);
        let rows = predictors + 2 + more;
        let sizes: Vec<(f64, f64)> = (0..predictors).map(|_| (10f64.powf(6.0 * sequence.next()), 20.0 * sequence.next())).collect();
        let design = Mat::from_fn(rows, predictors, |_, column| {
            let (size, offset) = sizes[column];
            size * (sequence.next() + offset)
        });
        let response = (0..rows).map(|row| design[(row, 0)] / sizes[0].0 + sequence.next()).collect();
        Problem { design, response, intercept }
    })
}

fn specification(problem: &Problem) -> Specification<'static> {
    Specification { intercept: problem.intercept, ..Specification::default() }
}

fn row(problem: &Problem, row: usize) -> Vec<f64> {
    (0..problem.design.ncols()).map(|column| problem.design[(row, column)]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn residuals_are_orthogonal_and_leverages_sum_to_the_rank(problem in problems()) {
        let fit = fitted(&problem.design, &problem.response, specification(&problem));
        let (rows, predictors) = problem.design.shape();
        prop_assert_eq!(fit.rank, predictors + usize::from(problem.intercept));
        let (mut sum, mut scratch) = (0.0, Gathered::default());
        let mut gradient = vec![0.0; predictors];
        let mut size = vec![0.0; predictors];
        for place in 0..rows {
            let x = row(&problem, place);
            let leverage = fit.information.leverage(&x, &mut scratch);
            prop_assert!((0.0..=1.0 + 1e-12).contains(&leverage));
            sum += leverage;
            let mut predicted = [0.0];
            fit.information.predict(&x, &mut predicted);
            let residual = problem.response[place] - predicted[0];
            for (column, value) in x.iter().enumerate() {
                gradient[column] += value * residual;
                size[column] += (value * problem.response[place]).abs().max((value * predicted[0]).abs());
            }
        }
        prop_assert!((sum - fit.rank as f64).abs() < 1e-10);
        for (gradient, size) in gradient.iter().zip(&size) {
            prop_assert!(gradient.abs() <= 1e-13 * size, "{} of {}", gradient, size);
        }
    }

    #[test]
    fn the_order_of_rows_does_not_matter(problem in problems()) {
        let rows = problem.design.nrows();
        let turned = Mat::from_fn(rows, problem.design.ncols(), |row, column| problem.design[(rows - 1 - row, column)]);
        let response: Vec<f64> = problem.response.iter().rev().copied().collect();
        let (one, other) = (fitted(&problem.design, &problem.response, specification(&problem)), fitted(&turned, &response, specification(&problem)));
        prop_assert!(digits(&coefficients(&one), &coefficients(&other)) > 14.0);
        prop_assert!(digits(&std_errors(&one), &std_errors(&other)) > 12.5);
    }

    #[test]
    fn scaling_a_column_scales_its_coefficient_inversely(problem in problems(), factor in 1e-5..1e5_f64) {
        // A power of two: the scaled data is then the same data.
        let factor = factor.log2().round().exp2();
        let scaled = Mat::from_fn(problem.design.nrows(), problem.design.ncols(), |row, column| {
            problem.design[(row, column)] * if column == 0 { factor } else { 1.0 }
        });
        let (one, other) = (fitted(&problem.design, &problem.response, specification(&problem)), fitted(&scaled, &problem.response, specification(&problem)));
        let place = usize::from(problem.intercept);
        prop_assert!(digits(&[coefficients(&other)[place] * factor], &[coefficients(&one)[place]]) > 14.0);
        prop_assert!(digits(&[other.statistics[0].residual_std], &[one.statistics[0].residual_std]) > 12.0);
    }

    #[test]
    fn all_solvers_agree(problem in problems()) {
        let auto = fitted(&problem.design, &problem.response, specification(&problem));
        for solver in [Solver::Qr, Solver::Svd, Solver::Exact] {
            let other = fitted(&problem.design, &problem.response, Specification { solver, ..specification(&problem) });
            prop_assert!(digits(&coefficients(&auto), &coefficients(&other)) > 14.0, "{:?}", solver);
            prop_assert!(digits(&std_errors(&auto), &std_errors(&other)) > 12.5, "{:?}", solver);
        }
    }

    #[test]
    fn halves_learnt_one_after_the_other_are_the_whole(problem in problems(), weights in any::<u64>()) {
        let rows = problem.design.nrows();
        let mut sequence = Sequence(weights);
        let weights: Vec<f64> = (0..rows).map(|_| 1.5 + sequence.next()).collect();
        let whole = weighted(&problem.design, &problem.response, Some(&weights), specification(&problem));
        let first = rows / 2;
        let half = problem.design.subrows(0, first).to_owned();
        let mut information = weighted(&half, &problem.response[..first], Some(&weights[..first]), specification(&problem)).information;
        for place in first..rows {
            information.update(&row(&problem, place), &[problem.response[place]], weights[place], 1.0, &mut [0.0]).unwrap();
        }
        let expected = coefficients(&whole);
        let mut found = information.intercept().to_vec();
        found.extend(information.coefficients().col(0).iter());
        // Against the standard error where a coefficient is small by chance.
        for ((found, expected), error) in found.iter().zip(&expected).zip(std_errors(&whole)) {
            prop_assert!((found - expected).abs() <= 1e-9 * expected.abs().max(error), "{} {}", found, expected);
        }
    }
}

#[test]
fn high_degree_polynomials_far_from_zero_have_thirteen_digits_and_say_so() {
    // Powers of whole numbers below 2⁵³: exact as floats, and so is the response.
    for (first, degree) in [(20_u32, 4_usize), (50, 5), (60, 6), (30, 7), (20, 8)] {
        let truth: Vec<f64> = (0..=degree).map(|power| [2.0, -1.0, 1.0, -2.0][power % 4]).collect();
        let design =
            Mat::from_fn(25, degree, |row, column| f64::from(first + u32::try_from(row).unwrap()).powi(i32::try_from(column + 1).unwrap()));
        let response: Vec<f64> =
            (0..25).map(|row| truth[0] + (0..degree).map(|column| truth[column + 1] * design[(row, column)]).sum::<f64>()).collect();
        assert!(response.iter().all(|value| value.abs() < 2f64.powi(53)));
        let fit = fitted(&design, &response, Specification::default());
        let reached = digits(&coefficients(&fit), &truth);
        assert!(reached >= 13.0, "degree {degree}: {reached}");
        assert!(fit.digits <= reached + 1.5 && fit.digits > 10.0, "degree {degree}: reached {reached}, said {}", fit.digits);
        assert_eq!(fit.rank, degree + 1);
    }
}

#[test]
fn offsets_and_sizes_far_apart_cost_no_digits() {
    let mut sequence = Sequence(21);
    // Few bits each, so that the response is exact: sizes from 2⁻²⁰ to 2²⁰, offsets of 2²⁷ times the spread.
    let coarse: Mat<f64> = Mat::from_fn(40, 4, |_, _| (sequence.next() * 256.0).round());
    let design = Mat::from_fn(40, 4, |row, column| match column {
        0 => coarse[(row, 0)] * 2f64.powi(-20),
        1 => coarse[(row, 1)] * 2f64.powi(20),
        2 => coarse[(row, 2)] + 2f64.powi(27),
        _ => coarse[(row, 2)] + coarse[(row, 3)] * 2f64.powi(-23),
    });
    let truth = [1.0, 1024.0, 1.0 / 1024.0, -3.0, 2.0];
    let response: Vec<f64> =
        (0..40).map(|row| truth[0] + (0..4).map(|column| truth[column + 1] * design[(row, column)]).sum::<f64>()).collect();
    let fit = fitted(&design, &response, Specification::default());
    let reached = digits(&coefficients(&fit), &truth);
    assert!(reached >= 13.0, "{reached} {:?}", coefficients(&fit));
    assert!(fit.digits <= reached + 1.5 && fit.digits > 10.0, "{reached}, said {}", fit.digits);
}
