//! Lasso and elastic net, slopes within bounds, slopes under equality constraints: optimality conditions, equalities, reference values.

use faer::Mat;
use lsqd::lsq::{
    Bounds, Constraints, ElasticNet, ElasticNetFit, ElasticPenalty, Error, Fit, Matrices, Specification, bounded, constrained, elastic_net,
    fit,
};

use super::{Sequence, digits};

const LASSO: ElasticNet = ElasticNet { penalty: ElasticPenalty::Fixed(0.1), l1_ratio: 1.0, intercept: true, positive: false };

fn auto(folds: u32, one_standard_error: bool) -> ElasticPenalty {
    ElasticPenalty::Auto { folds, seed: 7, one_standard_error, points: 60, smallest: 1e-3 }
}

/// Rows with weights, owned.
struct Problem {
    design: Mat<f64>,
    response: Mat<f64>,
    weights: Option<Vec<f64>>,
}

impl Problem {
    fn rows(&self) -> Matrices<'_> {
        Matrices { design: self.design.as_ref(), response: self.response.as_ref(), weights: self.weights.as_deref() }
    }

    fn net(&self, specification: &ElasticNet) -> ElasticNetFit {
        elastic_net(&mut self.rows(), specification).unwrap()
    }

    fn weight(&self, row: usize) -> f64 {
        self.weights.as_ref().map_or(1.0, |weights| weights[row])
    }

    /// Xᵀ·w·(y − α − Xβ)/Σw of the first response, columns about their means with an intercept; and the mean residual.
    fn gradient(&self, slopes: &Mat<f64>, intercepts: &[f64]) -> (Vec<f64>, f64) {
        let (rows, columns) = self.design.shape();
        let total: f64 = (0..rows).map(|row| self.weight(row)).sum();
        let residual: Vec<f64> = (0..rows)
            .map(|row| {
                let fitted: f64 = (0..columns).map(|column| self.design[(row, column)] * slopes[(column, 0)]).sum();
                self.weight(row) * (self.response[(row, 0)] - fitted - intercepts.first().copied().unwrap_or(0.0))
            })
            .collect();
        let mean = residual.iter().sum::<f64>() / total;
        let gradient = (0..columns)
            .map(|column| {
                let centre: f64 = if intercepts.is_empty() {
                    0.0
                } else {
                    (0..rows).map(|row| self.weight(row) * self.design[(row, column)]).sum::<f64>() / total
                };
                (0..rows).map(|row| (self.design[(row, column)] - centre) * residual[row]).sum::<f64>() / total
            })
            .collect();
        (gradient, mean)
    }
}

/// Integers and quarters, so that other programs can be given the very same numbers.
fn small() -> Problem {
    let design =
        Mat::from_fn(24, 4, |row, column| ((row * (2 * column + 3) + column * column) % (11 + 2 * column)) as f64 - column as f64 * 2.0);
    let response = Mat::from_fn(24, 1, |row, _| 0.5 * design[(row, 0)] - 0.25 * design[(row, 2)] + ((row * 5) % 7) as f64 * 0.25);
    Problem { design, response, weights: None }
}

fn random(seed: u64, rows: usize, columns: usize) -> Problem {
    let mut sequence = Sequence(seed);
    let design = sequence.matrix(rows, columns);
    let response = Mat::from_fn(rows, 1, |row, _| {
        let signal: f64 = (0..columns.min(4)).map(|column| design[(row, column)] * (1.5 - column as f64)).sum();
        signal + 3.0 + 0.3 * sequence.next()
    });
    Problem { design, response, weights: None }
}

fn column(matrix: &Mat<f64>, index: usize) -> Vec<f64> {
    matrix.col(index).iter().copied().collect()
}

/// Slopes of a plain fit.
fn slopes(fit: &Fit) -> Vec<f64> {
    fit.information.coefficients().col(0).iter().copied().collect()
}

/// The largest violation of the optimality conditions of an elastic net.
fn violation(problem: &Problem, specification: &ElasticNet, fit: &ElasticNetFit) -> f64 {
    let (gradient, mean) = problem.gradient(&fit.slopes, &fit.intercepts);
    let (first, second) = (fit.penalty * specification.l1_ratio, fit.penalty * (1.0 - specification.l1_ratio));
    let start = if specification.intercept { mean.abs() } else { 0.0 };
    gradient.iter().enumerate().fold(start, |worst, (index, gradient)| {
        let slope = fit.slopes[(index, 0)];
        let own = gradient - second * slope;
        worst.max(match (slope == 0.0, specification.positive) {
            (true, true) => own - first,
            (true, false) => own.abs() - first,
            (false, _) => (own - first.copysign(slope)).abs(),
        })
    })
}

#[test]
fn elastic_nets_agree_with_scikit_learn() {
    // scikit-learn 1.9.1, ElasticNet(tol=1e-15).
    #[allow(clippy::type_complexity)] // a table, read by its columns
    let cases: [(f64, f64, bool, bool, bool, [f64; 4], f64); 3] = [
        (
            1.0,
            0.2,
            false,
            false,
            true,
            [0.380_733_451_961_604, 0.0, -0.223_937_671_197_163_43, -0.009_507_971_522_604_883],
            1.255_078_585_311_719_2,
        ),
        (0.5, 0.4, false, true, true, [0.338_127_520_698_708_5, 0.0, -0.220_899_986_672_779_32, 0.0], 1.429_488_990_714_530_3),
        (0.7, 0.1, true, false, false, [0.431_748_252_317_978_6, 0.026_762_136_746_775_63, 0.0, 0.055_168_437_973_729_72], 0.0),
    ];
    for (l1_ratio, penalty, positive, weighted, intercept, slopes, level) in cases {
        let mut problem = small();
        problem.weights = weighted.then(|| (0..24).map(|row| 1.0 + f64::from(u8::try_from(row % 3).unwrap())).collect());
        let fit = problem.net(&ElasticNet { penalty: ElasticPenalty::Fixed(penalty), l1_ratio, intercept, positive });
        assert!(digits(&column(&fit.slopes, 0), &slopes) > 12.0, "{l1_ratio} {:?}", fit.slopes);
        if intercept {
            assert!(digits(&fit.intercepts, &[level]) > 12.0);
        }
    }
}

#[test]
fn elastic_nets_meet_the_optimality_conditions_to_rounding() {
    for (seed, rows, columns) in [(1, 60, 8), (2, 40, 60), (3, 500, 30)] {
        for l1_ratio in [1.0, 0.5, 0.0] {
            for penalty in [0.3, 1e-2, 1e-5] {
                for (positive, intercept) in [(false, true), (true, true), (false, false)] {
                    let specification = ElasticNet { penalty: ElasticPenalty::Fixed(penalty), l1_ratio, intercept, positive };
                    let problem = random(seed, rows, columns);
                    let fit = problem.net(&specification);
                    let worst = violation(&problem, &specification, &fit);
                    assert!(worst < 2e-14, "{seed} {l1_ratio} {penalty} {positive} {intercept}: {worst}");
                    assert!(fit.duality_gap < 1e-9, "{seed} {l1_ratio} {penalty}: {}", fit.duality_gap);
                    assert!(!positive || fit.slopes.col(0).iter().all(|slope| *slope >= 0.0));
                }
            }
        }
    }
}

#[test]
fn nearly_collinear_columns_do_not_stop_the_lasso() {
    let mut problem = random(4, 80, 12);
    for row in 0..80 {
        // Two pairs that differ by 1e-7 of their size, one by nothing, far from zero.
        problem.design[(row, 1)] = problem.design[(row, 0)] + 1e-7 * problem.design[(row, 1)] + 1e3;
        problem.design[(row, 5)] = problem.design[(row, 4)] + 1e-7 * problem.design[(row, 5)];
        problem.design[(row, 7)] = problem.design[(row, 6)];
    }
    for penalty in [0.1, 1e-3, 1e-6] {
        let specification = ElasticNet { penalty: ElasticPenalty::Fixed(penalty), ..LASSO };
        let fit = problem.net(&specification);
        let worst = violation(&problem, &specification, &fit);
        assert!(worst < 1e-12, "{penalty}: {worst}");
        assert!(fit.sweeps < 500, "{penalty}: {}", fit.sweeps);
    }
}

#[test]
fn the_ends_of_the_elastic_net_are_ridge_and_least_squares() {
    let problem = random(5, 50, 5);
    // 1/(2n)·‖r‖² + ½penalty·‖w‖² is ‖r‖² + n·penalty·‖w‖².
    let ridge = fit(&mut problem.rows(), &Specification { penalty: 50.0 * 0.2, ..Specification::default() }).unwrap();
    let net = problem.net(&ElasticNet { penalty: ElasticPenalty::Fixed(0.2), l1_ratio: 0.0, ..LASSO });
    assert!(digits(&column(&net.slopes, 0), &slopes(&ridge)) > 12.0);
    assert!(digits(&net.intercepts, ridge.information.intercept()) > 12.0);
    assert!((net.effective_parameters - ridge.effective_parameters).abs() < 1e-11);
    let plain = fit(&mut problem.rows(), &Specification::default()).unwrap();
    let net = problem.net(&ElasticNet { penalty: ElasticPenalty::Fixed(0.0), ..LASSO });
    assert!(digits(&column(&net.slopes, 0), &slopes(&plain)) > 12.0);
    assert!((net.effective_parameters - 6.0).abs() < 1e-12);
}

#[test]
fn weights_are_repeated_rows_and_offsets_change_the_intercept_only() {
    let mut problem = random(6, 40, 6);
    let weights: Vec<f64> = (0..40).map(|row| f64::from(u8::try_from(row % 4).unwrap())).collect();
    let order: Vec<usize> = (0..40).flat_map(|row| std::iter::repeat_n(row, row % 4)).collect();
    let repeated = Problem {
        design: Mat::from_fn(order.len(), 6, |row, column| problem.design[(order[row], column)]),
        response: Mat::from_fn(order.len(), 1, |row, _| problem.response[(order[row], 0)]),
        weights: None,
    };
    problem.weights = Some(weights);
    let (one, other) = (problem.net(&LASSO), repeated.net(&LASSO));
    assert!(digits(&column(&one.slopes, 0), &column(&other.slopes, 0)) > 13.0);
    assert!(digits(&one.intercepts, &other.intercepts) > 13.0);
    assert_eq!((one.observations, one.weight), (30, 60.0));
    let moved = Problem { design: Mat::from_fn(40, 6, |row, column| problem.design[(row, column)] + 4096.0), ..problem };
    let moved = moved.net(&LASSO);
    assert!(digits(&column(&moved.slopes, 0), &column(&one.slopes, 0)) > 10.0);
    let shift: f64 = one.slopes.col(0).iter().sum();
    assert!((moved.intercepts[0] - (one.intercepts[0] - 4096.0 * shift)).abs() < 1e-9);
}

#[test]
fn responses_are_fitted_each_by_itself() {
    let mut problem = random(7, 60, 5);
    let mut sequence = Sequence(70);
    let second: Vec<f64> = (0..60).map(|row| 100.0 * (problem.design[(row, 4)] + sequence.next())).collect();
    let first = column(&problem.response, 0);
    problem.response = Mat::from_fn(60, 2, |row, column| if column == 0 { first[row] } else { second[row] });
    let both = problem.net(&LASSO);
    problem.response = Mat::from_fn(60, 1, |row, _| second[row]);
    let alone = problem.net(&LASSO);
    assert!(digits(&column(&both.slopes, 1), &column(&alone.slopes, 0)) > 13.0);
    assert!(digits(&both.intercepts[1..], &alone.intercepts) > 13.0);
}

#[test]
fn cross_validation_equals_fits_without_the_held_out_rows() {
    use lsqd::lsq::fold_of;
    let mut problem = random(8, 90, 7);
    problem.weights = Some((0..90).map(|row| 0.5 + f64::from(u8::try_from(row % 5).unwrap())).collect());
    let specification = ElasticNet { penalty: auto(3, false), l1_ratio: 0.8, ..LASSO };
    let fit = problem.net(&specification);
    assert_eq!(fit.path.len(), 60);
    assert!(fit.path[0].slopes.iter().all(|slope| *slope == 0.0) && fit.path[59].nonzero > 0);
    for point in [0, 10, 35, 59] {
        let mut total = (0.0, 0.0);
        for fold in 0..3 {
            let weights: Vec<f64> = (0..90).map(|row| if fold_of(row as u64, 3, 7) == fold { 0.0 } else { problem.weight(row) }).collect();
            let training = Problem { design: problem.design.clone(), response: problem.response.clone(), weights: Some(weights) };
            let own = training.net(&ElasticNet { penalty: ElasticPenalty::Fixed(fit.path[point].penalty), ..specification });
            for row in (0..90).filter(|row| fold_of(*row as u64, 3, 7) == fold) {
                let fitted: f64 = (0..7).map(|column| problem.design[(row, column)] * own.slopes[(column, 0)]).sum();
                total.0 += problem.weight(row) * (problem.response[(row, 0)] - fitted - own.intercepts[0]).powi(2);
                total.1 += problem.weight(row);
            }
        }
        // Paths of folds end at a duality gap of 1e-10, which the error feels to first order on rows held out.
        assert!(digits(&[fit.path[point].validation_mean.unwrap()], &[total.0 / total.1]) > 4.5, "{point}");
        let own = problem.net(&ElasticNet { penalty: ElasticPenalty::Fixed(fit.path[point].penalty), ..specification });
        for (path, own) in fit.path[point].slopes.iter().zip(own.slopes.col(0).iter()) {
            assert!((path - own).abs() < 1e-6, "{point}");
        }
    }
    let least = fit.path.iter().map(|point| point.validation_mean.unwrap()).fold(f64::INFINITY, f64::min);
    let chosen = fit.path.iter().find(|point| point.penalty == fit.penalty).unwrap();
    assert_eq!(chosen.validation_mean, Some(least));
    assert!(violation(&problem, &specification, &fit) < 1e-14);
    let simpler = problem.net(&ElasticNet { penalty: auto(3, true), ..specification });
    assert!(simpler.penalty > fit.penalty);
    let mean = simpler.path.iter().find(|point| point.penalty == simpler.penalty).unwrap().validation_mean.unwrap();
    assert!(mean <= least + chosen.validation_std_error.unwrap());
}

#[test]
fn degenerate_problems_have_answers_or_errors() {
    let mut problem = random(9, 20, 3);
    for row in 0..20 {
        problem.design[(row, 1)] = 0.1;
    }
    let fit = problem.net(&LASSO);
    assert_eq!(fit.slopes[(1, 0)], 0.0);
    problem.response = Mat::from_fn(20, 1, |_, _| 2.0);
    let fit = problem.net(&ElasticNet { penalty: auto(4, false), ..LASSO });
    assert!(fit.slopes.col(0).iter().all(|slope| *slope == 0.0));
    assert_eq!(fit.intercepts, [2.0]);
    let refused = |specification: &ElasticNet| matches!(elastic_net(&mut problem.rows(), specification), Err(Error::Solver(_)));
    assert!(refused(&ElasticNet { l1_ratio: 1.5, ..LASSO }));
    assert!(refused(&ElasticNet { penalty: ElasticPenalty::Fixed(-1.0), ..LASSO }));
    assert!(refused(&ElasticNet { penalty: ElasticPenalty::Fixed(f64::NAN), ..LASSO }));
    assert!(refused(&ElasticNet { penalty: auto(1, false), ..LASSO }));
    let few = random(9, 1, 3);
    assert!(matches!(elastic_net(&mut few.rows(), &ElasticNet { penalty: auto(5, false), ..LASSO }), Err(Error::Solver(_))));
    let none = Problem { weights: Some(vec![0.0; 20]), ..random(9, 20, 3) };
    assert_eq!(elastic_net(&mut none.rows(), &LASSO).err(), Some(Error::NoWeight));
    let mut broken = random(9, 20, 3);
    broken.design[(3, 2)] = f64::NAN;
    assert_eq!(elastic_net(&mut broken.rows(), &LASSO).err(), Some(Error::NonFinite));
}

#[test]
fn nonnegative_slopes_agree_with_scipy() {
    // SciPy 1.17.1, optimize.nnls.
    let expected = [0.433_610_218_914_919_96, 0.027_140_508_051_405_634, 0.0, 0.057_255_169_914_008_34];
    let fit = bounded(&mut small().rows(), false, &Bounds::nonnegative(4)).unwrap();
    assert!(digits(&column(&fit.slopes, 0), &expected) > 12.0, "{:?}", fit.slopes);
    assert_eq!(fit.active, [true, true, false, true]);
    assert!(fit.intercepts.is_empty());
}

/// The largest multiplier of the wrong sign, or derivative along a slope that is free.
fn misplaced(problem: &Problem, bounds: &Bounds, slopes: &Mat<f64>, intercepts: &[f64]) -> f64 {
    let (gradient, mean) = problem.gradient(slopes, intercepts);
    let start = if intercepts.is_empty() { 0.0 } else { mean.abs() };
    gradient.iter().enumerate().fold(start, |worst, (index, gradient)| {
        let slope = slopes[(index, 0)];
        assert!(bounds.lower[index] <= slope && slope <= bounds.upper[index]);
        let up = if slope < bounds.upper[index] { *gradient } else { 0.0 };
        let down = if slope > bounds.lower[index] { -gradient } else { 0.0 };
        worst.max(up).max(down)
    })
}

#[test]
fn bounded_slopes_meet_the_optimality_conditions_to_rounding() {
    for seed in 10..30 {
        let mut problem = random(seed, 60, 9);
        let mut sequence = Sequence(seed + 100);
        if seed % 2 == 0 {
            // Collinear: one column twice, another the sum of two.
            for row in 0..60 {
                problem.design[(row, 4)] = problem.design[(row, 0)];
                problem.design[(row, 5)] = problem.design[(row, 1)] + problem.design[(row, 2)];
            }
        }
        problem.weights = (seed % 3 == 0).then(|| (0..60).map(|row| f64::from(u8::try_from(row % 3).unwrap())).collect());
        let infinite = |value: f64, bound: f64| if value > 0.5 { bound } else { value };
        let lower: Vec<f64> = (0..9).map(|_| infinite(sequence.next(), f64::NEG_INFINITY)).collect();
        let upper = lower.iter().map(|lower| lower.max(-1.0) + 1.0 + infinite(sequence.next(), f64::INFINITY)).collect();
        for bounds in [Bounds { lower, upper }, Bounds::nonnegative(9)] {
            let fit = bounded(&mut problem.rows(), seed % 4 < 2, &bounds).unwrap();
            let worst = misplaced(&problem, &bounds, &fit.slopes, &fit.intercepts);
            assert!(worst < 1e-13, "{seed}: {worst}");
            assert!(fit.iterations < 100);
        }
    }
}

#[test]
fn bounds_that_do_not_bind_change_nothing() {
    let problem = random(31, 50, 5);
    let plain = fit(&mut problem.rows(), &Specification::default()).unwrap();
    for size in [1e3, f64::INFINITY] {
        let bounds = Bounds { lower: vec![-size; 5], upper: vec![size; 5] };
        let fit = bounded(&mut problem.rows(), true, &bounds).unwrap();
        assert!(digits(&column(&fit.slopes, 0), &slopes(&plain)) > 14.0);
        assert!(digits(&fit.intercepts, plain.information.intercept()) > 14.0);
        assert_eq!(fit.active, [true; 5]);
    }
    let fixed = Bounds { lower: vec![0.5; 5], upper: vec![0.5; 5] };
    assert_eq!(column(&bounded(&mut problem.rows(), true, &fixed).unwrap().slopes, 0), [0.5; 5]);
    let crossed = Bounds { lower: vec![1.0; 5], upper: vec![0.0; 5] };
    assert!(matches!(bounded(&mut problem.rows(), true, &crossed), Err(Error::Solver(_))));
    assert!(matches!(bounded(&mut problem.rows(), true, &Bounds::nonnegative(4)), Err(Error::Solver(_))));
}

#[test]
fn a_constraint_equals_the_fit_it_leaves() {
    // β₀ + β₁ = 1 and β₂ = 2β₃ leave y − x₁ = α + β₀(x₀ − x₁) + β₃(2x₂ + x₃) + β₄x₄.
    let problem = random(32, 70, 5);
    let design = Mat::from_fn(70, 3, |row, column| match column {
        0 => problem.design[(row, 0)] - problem.design[(row, 1)],
        1 => 2.0 * problem.design[(row, 2)] + problem.design[(row, 3)],
        _ => problem.design[(row, 4)],
    });
    let response = Mat::from_fn(70, 1, |row, _| problem.response[(row, 0)] - problem.design[(row, 1)]);
    let plain =
        fit(&mut Matrices { design: design.as_ref(), response: response.as_ref(), weights: None }, &Specification::default()).unwrap();
    let constraints = Constraints {
        slopes: Mat::from_fn(2, 5, |row, column| [[1.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, -2.0, 0.0]][row][column]),
        intercept: None,
        values: Mat::from_fn(2, 1, |row, _| if row == 0 { 1.0 } else { 0.0 }),
    };
    let found = constrained(&mut problem.rows(), true, &constraints).unwrap();
    let free = slopes(&plain);
    let expected = [free[0], 1.0 - free[0], 2.0 * free[1], free[1], free[2]];
    assert!(digits(&column(&found.slopes, 0), &expected) > 13.0);
    assert!(digits(&found.intercepts, plain.information.intercept()) > 13.0);
    assert_eq!((found.rank, found.constraints), (4, 2));
    assert!(digits(&[found.residual_sum_of_squares[0]], &[plain.statistics[0].residual_sum_of_squares]) > 12.0);
    let (level, errors) = plain.information.std_errors();
    let sigma = (found.residual_sum_of_squares[0] / found.degrees_of_freedom).sqrt();
    let own = |place: usize| sigma * found.unscaled_covariance[(place, place)].sqrt();
    let expected = [level[0], errors[(0, 0)], errors[(0, 0)], 2.0 * errors[(1, 0)], errors[(1, 0)], errors[(2, 0)]];
    assert!(digits(&(0..6).map(own).collect::<Vec<f64>>(), &expected) > 12.0);
}

#[test]
fn constraints_hold_to_rounding_whatever_the_scales() {
    let mut problem = random(33, 60, 4);
    for row in 0..60 {
        problem.design[(row, 0)] += 1e6;
        problem.design[(row, 1)] *= 1e-5;
        problem.design[(row, 3)] = problem.design[(row, 2)] + 1e-6 * problem.design[(row, 3)];
    }
    let mut sequence = Sequence(34);
    let constraints = Constraints { slopes: sequence.matrix(2, 4), intercept: Some(vec![1.0, 0.25]), values: sequence.matrix(2, 1) };
    let found = constrained(&mut problem.rows(), true, &constraints).unwrap();
    for row in 0..2 {
        let own = constraints.intercept.as_ref().unwrap()[row] * found.intercepts[0];
        let terms: Vec<f64> = (0..4).map(|column| constraints.slopes[(row, column)] * found.slopes[(column, 0)]).chain([own]).collect();
        let size: f64 = terms.iter().map(|term| term.abs()).sum();
        assert!((terms.iter().sum::<f64>() - constraints.values[(row, 0)]).abs() < 4.0 * f64::EPSILON * size);
    }
    assert_eq!(found.rank, 3);
}

#[test]
fn dummies_with_a_sum_of_zero_are_determined() {
    // One column a level and an intercept: collinear, but for the constraint. The intercept is then the mean of the levels' means.
    let levels = [3_usize, 1, 0, 2, 2, 1, 0, 3, 3, 0, 1, 2, 2, 0];
    let design = Mat::from_fn(14, 4, |row, column| if levels[row] == column { 1.0 } else { 0.0 });
    let response = Mat::from_fn(14, 1, |row, _| levels[row] as f64 * 2.0 + (row % 3) as f64);
    let problem = Problem { design, response, weights: None };
    let constraints = Constraints { slopes: Mat::from_fn(1, 4, |_, _| 1.0), intercept: None, values: Mat::zeros(1, 1) };
    let found = constrained(&mut problem.rows(), true, &constraints).unwrap();
    let mean = |level: usize| {
        let own: Vec<f64> = (0..14).filter(|row| levels[*row] == level).map(|row| problem.response[(row, 0)]).collect();
        own.iter().sum::<f64>() / own.len() as f64
    };
    let middle = (0..4).map(mean).sum::<f64>() / 4.0;
    assert!(digits(&found.intercepts, &[middle]) > 13.0);
    assert!(digits(&column(&found.slopes, 0), &[mean(0) - middle, mean(1) - middle, mean(2) - middle, mean(3) - middle]) > 13.0);
    assert_eq!((found.rank, found.constraints), (4, 1));
}

#[test]
fn repeated_constraints_count_once_and_contradictions_are_errors() {
    let problem = random(35, 30, 3);
    let constraint = |second: f64| Constraints {
        slopes: Mat::from_fn(2, 3, |row, column| (row + 1) as f64 * [1.0, 1.0, -1.0][column]),
        intercept: None,
        values: Mat::from_fn(2, 1, |row, _| if row == 0 { 0.5 } else { second }),
    };
    let found = constrained(&mut problem.rows(), false, &constraint(1.0)).unwrap();
    assert_eq!((found.rank, found.constraints), (2, 1));
    assert!(matches!(constrained(&mut problem.rows(), false, &constraint(1.1)), Err(Error::Solver(_))));
    let named = Constraints { intercept: Some(vec![1.0, 2.0]), ..constraint(1.0) };
    assert!(matches!(constrained(&mut problem.rows(), false, &named), Err(Error::Solver(_))));
    let none = Constraints { slopes: Mat::zeros(0, 3), intercept: None, values: Mat::zeros(0, 1) };
    let plain = fit(&mut problem.rows(), &Specification::default()).unwrap();
    let found = constrained(&mut problem.rows(), true, &none).unwrap();
    assert!(digits(&column(&found.slopes, 0), &slopes(&plain)) > 13.0);
}
