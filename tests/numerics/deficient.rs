//! Rank: what is found, and which of the many solutions is given.

use faer::{Mat, mat};
use lsqd::lsq::{Error, Matrices, Solver, Specification, fit};

use super::{SOLVERS, Sequence, coefficients, digits, fitted, std_errors};

#[test]
fn the_articles_line_is_y_equals_x() {
    let design = mat![[1.0], [2.0], [3.0], [4.0]];
    for solver in SOLVERS {
        let fit = fitted(&design, &[1.0, 2.0, 3.0, 4.0], Specification { solver, ..Specification::default() });
        assert_eq!(coefficients(&fit), [0.0, 1.0], "{solver:?}");
        assert_eq!((fit.rank, fit.exact_fit[0]), (2, true));
        assert_eq!(fit.statistics[0].residual_sum_of_squares, 0.0);
    }
}

#[test]
fn the_articles_code_has_rank_one_and_the_shortest_solution() {
    let design = mat![[1.0, 2.0], [2.0, 4.0], [3.0, 6.0], [4.0, 8.0]];
    for solver in SOLVERS {
        let fit = fitted(&design, &[1.0, 2.0, 3.0, 4.0], Specification { intercept: false, solver, ..Specification::default() });
        assert_eq!(fit.rank, 1, "{solver:?}");
        assert!(digits(&coefficients(&fit), &[0.2, 0.4]) > 15.0, "{:?}", coefficients(&fit));
        assert_eq!(fit.collinear, [[0, 1]]);
        assert!(fit.condition_number.is_infinite());
    }
}

#[test]
fn duplicates_share_their_effect_and_constants_have_none() {
    let mut sequence = Sequence(1);
    let base = sequence.matrix(200, 3);
    // x0, x1, x0 again, 7 everywhere, x0 + x2 (rounded), x2.
    let design = Mat::from_fn(200, 6, |row, column| match column {
        0 | 2 => base[(row, 0)],
        1 => base[(row, 1)],
        3 => 7.0,
        4 => base[(row, 0)] + base[(row, 2)],
        _ => base[(row, 2)],
    });
    let response: Vec<f64> = (0..200).map(|row| 3.0 + 2.0 * base[(row, 0)] - base[(row, 1)] + 0.1 * sequence.next()).collect();
    let reduced = Mat::from_fn(200, 3, |row, column| base[(row, column)]);
    let small = fitted(&reduced, &response, Specification::default());
    for solver in SOLVERS {
        let fit = fitted(&design, &response, Specification { solver, ..Specification::default() });
        assert_eq!(fit.rank, 4, "{solver:?}");
        assert_eq!(fit.constant, [3]);
        assert_eq!(fit.collinear, [vec![0, 2, 4, 5]]);
        let found = coefficients(&fit);
        // Null space: e0 − e2 and e0 + e5 − e4. The shortest solution is orthogonal to both.
        assert!((found[1] - found[3]).abs() < 1e-13 && (found[1] + found[6] - found[5]).abs() < 1e-13, "{found:?}");
        assert_eq!(found[4], 0.0);
        let expected = coefficients(&small);
        let effects = [found[0], found[1] + found[3] + found[5], found[2], found[5] + found[6]];
        assert!(digits(&effects, &expected) > 13.0, "{effects:?} {expected:?}");
        assert!(digits(&[fit.statistics[0].r2], &[small.statistics[0].r2]) > 14.0);
        assert!(std_errors(&fit).iter().all(|error| error.is_finite()));
        assert!(fit.variance_inflation[0].is_infinite() && fit.variance_inflation[1].is_finite());
    }
}

#[test]
fn more_columns_than_rows_is_fitted_exactly_by_the_shortest_solution() {
    let mut sequence = Sequence(2);
    let (rows, columns) = (8, 20);
    let design = sequence.matrix(rows, columns);
    let response: Vec<f64> = (0..rows).map(|_| sequence.next()).collect();
    let fit = fitted(&design, &response, Specification::default());
    assert_eq!((fit.rank, fit.degrees_of_freedom), (8, 0.0));
    for row in 0..rows {
        let mut predicted = [0.0];
        fit.information.predict(&(0..columns).map(|column| design[(row, column)]).collect::<Vec<_>>(), &mut predicted);
        assert!((predicted[0] - response[row]).abs() < 1e-12);
    }
    // The shortest one lies in the row space of the centred design: XᵀX β has to be reachable, so β = X̃ᵀa for some a.
    let means: Vec<f64> = (0..columns).map(|column| (0..rows).map(|row| design[(row, column)]).sum::<f64>() / rows as f64).collect();
    let centred = Mat::from_fn(columns, rows, |column, row| design[(row, column)] - means[column]);
    let slopes = Mat::from_fn(columns, 1, |row, _| fit.information.coefficients()[(row, 0)]);
    let projection = faer::linalg::solvers::Svd::new_thin(centred.as_ref()).unwrap();
    let basis = projection.U().subcols(0, rows - 1);
    let left = &slopes - basis * (basis.transpose() * &slopes);
    assert!(left.norm_l2() < 1e-12 * slopes.norm_l2(), "{}", left.norm_l2());
}

#[test]
fn one_row_and_no_predictors_have_an_answer() {
    let one = fitted(&mat![[5.0]], &[2.0], Specification::default());
    assert_eq!(coefficients(&one), [2.0, 0.0]);
    assert_eq!((one.rank, one.degrees_of_freedom), (1, 0.0));
    let mean = fitted(&Mat::zeros(3, 0), &[1.0, 2.0, 6.0], Specification::default());
    assert_eq!(coefficients(&mean), [3.0]);
    assert_eq!(mean.degrees_of_freedom, 2.0);
}

#[test]
fn what_cannot_be_fitted_is_an_error() {
    let empty = Mat::<f64>::zeros(0, 2);
    let none = Mat::<f64>::zeros(0, 1);
    let refused = fit(&mut Matrices { design: empty.as_ref(), response: none.as_ref(), weights: None }, &Specification::default());
    assert_eq!(refused.unwrap_err(), Error::NoRows);
    let huge = mat![[1e300], [-1e300], [2.0]];
    let response = mat![[1.0], [2.0], [3.0]];
    // Scaling keeps a large column in range; a large response is not.
    assert!(fit(&mut Matrices { design: huge.as_ref(), response: response.as_ref(), weights: None }, &Specification::default()).is_ok());
    let refused = fit(&mut Matrices { design: response.as_ref(), response: huge.as_ref(), weights: None }, &Specification::default());
    assert_eq!(refused.unwrap_err(), Error::Overflow);
    let nan = mat![[1.0], [f64::NAN], [3.0]];
    let refused = fit(&mut Matrices { design: nan.as_ref(), response: response.as_ref(), weights: None }, &Specification::default());
    assert_eq!(refused.unwrap_err(), Error::NonFinite);
    let refused =
        fit(&mut Matrices { design: response.as_ref(), response: response.as_ref(), weights: Some(&[0.0; 3]) }, &Specification::default());
    assert_eq!(refused.unwrap_err(), Error::NoWeight);
    let near = Mat::from_fn(9, 2, |row, column| row as f64 + if column == 1 && row == 4 { 1e-9 } else { 0.0 });
    let response = Mat::from_fn(9, 1, |row, _| (row * row) as f64);
    let specification = Specification { solver: Solver::Cholesky, ..Specification::default() };
    let refused = fit(&mut Matrices { design: near.as_ref(), response: response.as_ref(), weights: None }, &specification);
    assert!(matches!(refused.unwrap_err(), Error::Solver(_)));
}
