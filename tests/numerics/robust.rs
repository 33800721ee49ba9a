//! Robust regression: reference values, the equations it solves, and what a minority of wild rows cannot do.

use faer::Mat;
use lsqd::lsq::{Diagnostics, Error, Loss, Matrices, Questions, Robust, RobustFit, RowDiagnostics, Specification, diagnose_robust, robust};

use super::{Sequence, coefficients, digits, fitted};

fn solved(design: &Mat<f64>, response: &[f64], weights: Option<&[f64]>, asked: Robust) -> RobustFit {
    let response = Mat::from_fn(response.len(), 1, |row, _| response[row]);
    robust(&mut Matrices { design: design.as_ref(), response: response.as_ref(), weights }, &asked).unwrap()
}

/// Coefficients, the intercept first.
fn all(fit: &RobustFit) -> Vec<f64> {
    std::iter::once(fit.intercept).chain(fit.slopes.col(0).iter().copied()).collect()
}

const LOSSES: [Loss; 2] = [Loss::HUBER, Loss::BISQUARE];

/// Brownlee's stack loss plant (*Statistical Theory and Methodology in Science and Engineering*, 1965): air flow, water temperature, acid
/// concentration, loss.
const STACK_LOSS: [[f64; 4]; 21] = [
    [80.0, 27.0, 89.0, 42.0],
    [80.0, 27.0, 88.0, 37.0],
    [75.0, 25.0, 90.0, 37.0],
    [62.0, 24.0, 87.0, 28.0],
    [62.0, 22.0, 87.0, 18.0],
    [62.0, 23.0, 87.0, 18.0],
    [62.0, 24.0, 93.0, 19.0],
    [62.0, 24.0, 93.0, 20.0],
    [58.0, 23.0, 87.0, 15.0],
    [58.0, 18.0, 80.0, 14.0],
    [58.0, 18.0, 89.0, 14.0],
    [58.0, 17.0, 88.0, 13.0],
    [58.0, 18.0, 82.0, 11.0],
    [58.0, 19.0, 93.0, 12.0],
    [50.0, 18.0, 89.0, 8.0],
    [50.0, 18.0, 86.0, 7.0],
    [50.0, 19.0, 72.0, 8.0],
    [50.0, 19.0, 79.0, 8.0],
    [50.0, 20.0, 80.0, 9.0],
    [56.0, 20.0, 82.0, 15.0],
    [70.0, 20.0, 91.0, 15.0],
];

/// What a fit says of its rows, and of the whole.
fn judged(design: &Mat<f64>, response: &[f64], fit: &RobustFit) -> (Diagnostics, RowDiagnostics) {
    let response = Mat::from_fn(response.len(), 1, |row, _| response[row]);
    let mut source = Matrices { design: design.as_ref(), response: response.as_ref(), weights: None };
    let mut rows = RowDiagnostics::default();
    let found = diagnose_robust(&mut source, fit, &Questions { outstanding: 3, ..Questions::default() }, &mut |block| {
        block.copy_rows(0..block.leverage.len(), &mut rows);
        Ok(())
    });
    (found.unwrap(), rows)
}

#[test]
fn a_column_that_repeats_others_changes_nothing_about_the_rows() {
    let response: Vec<f64> = STACK_LOSS.iter().map(|row| row[3]).collect();
    let plain = Mat::from_fn(21, 2, |row, column| STACK_LOSS[row][column]);
    let deficient =
        Mat::from_fn(21, 3, |row, column| if column == 2 { plain[(row, 0)] - 2.0 * plain[(row, 1)] } else { plain[(row, column)] });
    for loss in LOSSES {
        let asked = Robust { loss, ..Robust::default() };
        let (whole, rows) = judged(&plain, &response, &solved(&plain, &response, None, asked));
        let (other, same) = judged(&deficient, &response, &solved(&deficient, &response, None, asked));
        assert!((rows.leverage.iter().sum::<f64>() - 3.0).abs() < 1e-12);
        for row in 0..21 {
            assert!((rows.leverage[row] - same.leverage[row]).abs() < 1e-8, "{loss:?} {row}");
            assert!((rows.weight[row] - same.weight[row]).abs() < 1e-8, "{loss:?} {row}");
            let (one, two) = (&rows.responses[0], &same.responses[0]);
            assert!((one.standardised[row] - two.standardised[row]).abs() < 1e-7, "{loss:?} {row}");
        }
        let numbers = |found: &Diagnostics| found.weights.iter().map(|entry| entry.row).collect::<Vec<_>>();
        assert_eq!(numbers(&whole), numbers(&other));
        assert!(whole.weights.windows(2).all(|pair| pair[0].value <= pair[1].value) && whole.weights.len() == 3);
    }
}

#[test]
fn rows_off_a_plane_that_most_lie_on_are_named_though_there_is_no_scale() {
    let design = Mat::from_fn(12, 1, |row, _| row as f64);
    let response: Vec<f64> = (0..12).map(|row| 1.0 + 2.0 * f64::from(row) + if row == 4 || row == 9 { 3.0 } else { 0.0 }).collect();
    let fit = solved(&design, &response, None, Robust { loss: Loss::BISQUARE, ..Robust::default() });
    assert_eq!(fit.scale, 0.0);
    let (found, rows) = judged(&design, &response, &fit);
    let mut named: Vec<(u64, f64)> = found.weights[..2].iter().map(|entry| (entry.row, entry.value)).collect();
    named.sort_by_key(|entry| entry.0);
    assert_eq!(named, [(4, 0.0), (9, 0.0)]);
    assert!((rows.responses[0].residual[4] - 3.0).abs() < 1e-12 && !rows.responses[0].standardised[4].is_finite());
    assert_eq!((rows.leverage[4], found.decisive), (0.0, 0));
}

#[test]
fn stack_loss_agrees_with_statsmodels() {
    // RLM of statsmodels 0.15 on centred columns, iterated until the coefficients stood still.
    let reference = [
        (
            Loss::HUBER,
            [-41.026498352400196, 0.8293843346001087, 0.9260659661966444, -0.12784672494578522],
            [9.791898541349111, 0.11100521335450264, 0.30293016310858445, 0.12864961493536758],
            2.440536091720985,
        ),
        (
            Loss::BISQUARE,
            [-42.28535077932961, 0.9275573227555238, 0.6507176872142995, -0.11233315379090215],
            [9.504491924918524, 0.10774704716317102, 0.2940387175093321, 0.12487355962009491],
            2.2818813349511005,
        ),
    ];
    let design = Mat::from_fn(21, 3, |row, column| STACK_LOSS[row][column]);
    let response: Vec<f64> = STACK_LOSS.iter().map(|row| row[3]).collect();
    for (loss, expected, errors, scale) in reference {
        let fit = solved(&design, &response, None, Robust { loss, ..Robust::default() });
        assert!(fit.converged, "{loss:?}");
        assert!(digits(&all(&fit), &expected) > 8.5, "{:?}", all(&fit));
        let own: Vec<f64> = (0..4).map(|place| fit.covariance[(place, place)].sqrt()).collect();
        assert!(digits(&own, &errors) > 8.5, "{own:?}");
        assert!(digits(&[fit.scale], &[scale]) > 8.5, "{}", fit.scale);
        assert!(fit.weights[20] < 0.5 && fit.weights[10] > 0.9);
    }
}

/// A line with noise, every tenth response thrown far off.
fn contaminated(rows: usize) -> (Mat<f64>, Vec<f64>) {
    let mut sequence = Sequence(5);
    let design = sequence.matrix(rows, 3);
    let response = (0..rows)
        .map(|row| {
            let clean = 2.0 + design[(row, 0)] - 3.0 * design[(row, 1)] + 0.5 * design[(row, 2)] + 0.1 * sequence.next();
            if row % 10 == 0 { clean + 50.0 } else { clean }
        })
        .collect();
    (design, response)
}

#[test]
fn the_estimating_equations_hold() {
    let (design, response) = contaminated(400);
    let weights: Vec<f64> = (0..400_i32).map(|row| f64::from(1 + row % 3)).collect();
    for loss in LOSSES {
        let fit = solved(&design, &response, Some(&weights), Robust { loss, ..Robust::default() });
        assert!(fit.converged);
        for column in 0..4 {
            let (mut sum, mut size) = (0.0, 0.0);
            for row in 0..400 {
                let predicted = fit.intercept + (0..3).map(|own| design[(row, own)] * fit.slopes[(own, 0)]).sum::<f64>();
                let along = if column == 3 { 1.0 } else { design[(row, column)] };
                let term = weights[row] * fit.weights[row] * (response[row] - predicted) * along;
                sum += term;
                size += term.abs();
            }
            assert!(sum.abs() < 1e-8 * size, "{loss:?} {sum} {size}");
        }
    }
}

#[test]
fn a_minority_of_wild_rows_has_no_say_under_the_bisquare() {
    let (design, response) = contaminated(400);
    let kept: Vec<usize> = (0..400).filter(|row| row % 10 != 0).collect();
    let clean = Mat::from_fn(kept.len(), 3, |row, column| design[(kept[row], column)]);
    let clean_response: Vec<f64> = kept.iter().map(|row| response[*row]).collect();
    let plain = coefficients(&fitted(&clean, &clean_response, Specification::default()));
    let fit = solved(&design, &response, None, Robust { loss: Loss::BISQUARE, ..Robust::default() });
    assert!(all(&fit).iter().zip(&plain).all(|(own, plain)| (own - plain).abs() < 0.01), "{:?} {plain:?}", all(&fit));
    assert!((0..400).step_by(10).all(|row| fit.weights[row] == 0.0));
    assert_eq!(fit.fit.observations, 360);
}

#[test]
fn a_weight_of_two_is_two_rows() {
    let (design, response) = contaminated(60);
    let weights: Vec<f64> = (0..60_i32).map(|row| f64::from(row % 3)).collect();
    let repeats: Vec<usize> = (0..60).flat_map(|row| std::iter::repeat_n(row, row % 3)).collect();
    let repeated = Mat::from_fn(repeats.len(), 3, |row, column| design[(repeats[row], column)]);
    let repeated_response: Vec<f64> = repeats.iter().map(|row| response[*row]).collect();
    for loss in LOSSES {
        let asked = Robust { loss, ..Robust::default() };
        let (one, other) = (solved(&design, &response, Some(&weights), asked), solved(&repeated, &repeated_response, None, asked));
        assert!(digits(&all(&one), &all(&other)) > 8.0, "{loss:?} {:?} {:?}", all(&one), all(&other));
        assert!(digits(&[one.scale], &[other.scale]) > 8.0);
    }
}

#[test]
fn a_loss_that_never_bends_is_least_squares() {
    let (design, response) = contaminated(200);
    let plain = fitted(&design, &response, Specification::default());
    let fit = solved(&design, &response, None, Robust { loss: Loss::Huber { threshold: 1e6 }, ..Robust::default() });
    assert!(digits(&all(&fit), &coefficients(&plain)) > 13.0);
    let errors: Vec<f64> = (0..4).map(|place| fit.covariance[(place, place)].sqrt()).collect();
    assert!(digits(&errors, &super::std_errors(&plain)) > 10.0);
}

#[test]
fn a_majority_on_a_plane_is_found_with_scale_zero() {
    let mut sequence = Sequence(9);
    let design = sequence.matrix(100, 2);
    let response: Vec<f64> = (0..100)
        .map(|row| 1.0 + 2.0 * design[(row, 0)] - design[(row, 1)] + if row % 5 == 0 { 30.0 * sequence.next() } else { 0.0 })
        .collect();
    let fit = solved(&design, &response, None, Robust { loss: Loss::BISQUARE, ..Robust::default() });
    assert!(fit.converged && fit.scale == 0.0, "{} {}", fit.scale, fit.rounds);
    assert!(digits(&all(&fit), &[1.0, 2.0, -1.0]) > 12.0, "{:?}", all(&fit));
    // The article's line: nothing is left over from the beginning.
    let line = Mat::from_fn(4, 1, |row, _| [1.0, 2.0, 3.0, 4.0][row]);
    let fit = solved(&line, &[1.0, 2.0, 3.0, 4.0], None, Robust::default());
    assert_eq!((all(&fit), fit.scale, fit.converged), (vec![0.0, 1.0], 0.0, true));
    assert_eq!(fit.weights, [1.0; 4]);
}

#[test]
fn a_deficient_design_has_the_shortest_solution() {
    let (design, response) = contaminated(120);
    let doubled = Mat::from_fn(120, 5, |row, column| match column {
        3 => design[(row, 0)],
        4 => 7.0,
        own => design[(row, own)],
    });
    for loss in LOSSES {
        let asked = Robust { loss, ..Robust::default() };
        let (small, fit) = (solved(&design, &response, None, asked), solved(&doubled, &response, None, asked));
        assert!(fit.converged, "{loss:?}");
        let half = 0.5 * small.slopes[(0, 0)];
        let expected = [small.intercept, half, small.slopes[(1, 0)], small.slopes[(2, 0)], half, 0.0];
        assert!(digits(&all(&fit), &expected) > 7.5, "{:?} {expected:?}", all(&fit));
        // The pseudo-inverse shares the variance out as well: that of x + x is that of x.
        let shared = fit.covariance[(1, 1)] + fit.covariance[(4, 4)] + 2.0 * fit.covariance[(1, 4)];
        assert!(digits(&[shared, fit.covariance[(0, 0)]], &[small.covariance[(1, 1)], small.covariance[(0, 0)]]) > 7.0);
    }
}

#[test]
fn it_moves_with_the_units() {
    let (design, response) = contaminated(200);
    let moved = Mat::from_fn(200, 3, |row, column| 1e-3 * design[(row, column)] + 10.0);
    let moved_response: Vec<f64> = response.iter().map(|value| 1e4 * value - 5.0).collect();
    for loss in LOSSES {
        let asked = Robust { loss, ..Robust::default() };
        let (one, other) = (solved(&design, &response, None, asked), solved(&moved, &moved_response, None, asked));
        let slopes: Vec<f64> = (0..3).map(|own| one.slopes[(own, 0)] * 1e7).collect();
        assert!(digits(&all(&other)[1..], &slopes) > 8.0, "{loss:?}");
        assert!(digits(&[other.scale], &[1e4 * one.scale]) > 8.0);
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let design = Mat::from_fn(5, 1, |row, _| [1.0, 2.0, 3.0, 4.0, 5.0][row]);
    let two = Mat::from_fn(5, 2, |row, column| design[(row, 0)] + if column == 0 { 1.0 } else { 2.0 });
    let mut rows = Matrices { design: design.as_ref(), response: two.as_ref(), weights: None };
    assert!(matches!(robust(&mut rows, &Robust::default()), Err(Error::Solver(_))));
    let mut rows = Matrices { design: design.as_ref(), response: design.as_ref(), weights: None };
    let asked = Robust { loss: Loss::Huber { threshold: 0.0 }, ..Robust::default() };
    assert!(matches!(robust(&mut rows, &asked), Err(Error::Solver(_))));
}
