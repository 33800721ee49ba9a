//! Gradient descent: the article's iterates, the rates at which it converges and diverges, and where it ends.

use faer::{Mat, mat};
use lsqd::lsq::{Epoch, Error, Gradient, GradientFit, LearningRate, Matrices, Momentum, Specification, fit, gradient};

use super::Sequence;

fn quiet(_: Epoch) -> Result<(), Error> {
    Ok(())
}

fn descended(design: &Mat<f64>, response: &Mat<f64>, weights: Option<&[f64]>, asked: &Gradient<'_>) -> Result<GradientFit, Error> {
    gradient(&mut Matrices { design: design.as_ref(), response: response.as_ref(), weights }, asked, &mut quiet)
}

fn line() -> (Mat<f64>, Mat<f64>) {
    (mat![[1.0], [2.0], [3.0], [4.0]], mat![[1.0], [2.0], [3.0], [4.0]])
}

fn rows(offset: f64) -> (Mat<f64>, Mat<f64>, Vec<f64>) {
    let mut sequence = Sequence(3);
    let base = sequence.matrix(300, 4);
    let design = Mat::from_fn(300, 4, |row, column| [1.0, 10.0, 0.1, 1.0][column] * (base[(row, column)] + 0.5 * base[(row, 0)]) + offset);
    let response = Mat::from_fn(300, 2, |row, column| {
        4.0 + design[(row, column)] - 2.0 * design[(row, 2)] + 0.3 * design[(row, 3)] + 0.2 * sequence.next()
    });
    let weights = (0..300_i32).map(|row| f64::from(1 + row % 4)).collect();
    (design, response, weights)
}

/// The formula itself, row by row: w ← w − rate·(1/Σu)·Xᵀu(Xw + b − y).
fn by_hand(design: &Mat<f64>, response: &Mat<f64>, weights: &[f64], rate: f64, epochs: usize, momentum: Momentum) -> (Vec<f64>, f64) {
    let predictors = design.ncols();
    let (mut slopes, mut intercept) = (vec![0.0; predictors], 0.0);
    let mut velocity = vec![0.0; predictors + 1];
    let total: f64 = weights.iter().sum();
    for _ in 0..epochs {
        let (factor, ahead) = match momentum {
            Momentum::HeavyBall(factor) => (factor, 0.0),
            Momentum::Nesterov(factor) => (factor, factor),
            _ => (0.0, 0.0),
        };
        let mut pull = vec![0.0; predictors + 1];
        for row in 0..design.nrows() {
            let mut residual = intercept + ahead * velocity[predictors] - response[(row, 0)];
            for own in 0..predictors {
                residual += design[(row, own)] * (slopes[own] + ahead * velocity[own]);
            }
            for own in 0..predictors {
                pull[own] += weights[row] * residual * design[(row, own)] / total;
            }
            pull[predictors] += weights[row] * residual / total;
        }
        for (velocity, pull) in velocity.iter_mut().zip(&pull) {
            *velocity = factor * *velocity - rate * pull;
        }
        for (slope, velocity) in slopes.iter_mut().zip(&velocity) {
            *slope += velocity;
        }
        intercept += velocity[predictors];
    }
    (slopes, intercept)
}

#[test]
fn the_articles_first_step() {
    let (design, response) = line();
    let asked = Gradient { learning_rate: LearningRate::Fixed(0.1), epochs: 1, ..Gradient::default() };
    let fit = descended(&design, &response, None, &asked).unwrap();
    // From zero: b = 0.1·mean y, w = 0.1·mean xy.
    assert!((fit.intercepts[0] - 0.25).abs() < 1e-15 && (fit.slopes[(0, 0)] - 0.75).abs() < 1e-15, "{fit:?}");
    assert!(!fit.converged && fit.epochs == 1 && fit.losses.len() == 1);
    // (0.25 + 0.75x − x)² for x in 1…4: 0, 1/16, 1/4, 9/16.
    assert!((fit.loss - 0.875 / 8.0).abs() < 1e-15);
}

#[test]
fn a_number_for_the_rate_gives_the_iterates_of_the_formula() {
    let (design, response, weights) = rows(2.0);
    let response = response.subcols(0, 1).to_owned();
    for momentum in [Momentum::None, Momentum::HeavyBall(0.5), Momentum::Nesterov(0.8)] {
        let asked = Gradient { learning_rate: LearningRate::Fixed(0.01), momentum, epochs: 40, tolerance: 0.0, ..Gradient::default() };
        let fit = descended(&design, &response, Some(&weights), &asked).unwrap();
        let (slopes, intercept) = by_hand(&design, &response, &weights, 0.01, 40, momentum);
        assert!((fit.intercepts[0] - intercept).abs() < 1e-12, "{momentum:?} {} {intercept}", fit.intercepts[0]);
        assert!((0..4).all(|own| (fit.slopes[(own, 0)] - slopes[own]).abs() < 1e-12), "{momentum:?}");
    }
}

#[test]
fn every_way_ends_at_least_squares() {
    let (design, response, weights) = rows(100.0);
    let mut source = Matrices { design: design.as_ref(), response: response.as_ref(), weights: Some(&weights) };
    let expected = fit(&mut source, &Specification::default()).unwrap();
    let ways = [
        (Momentum::None, None),
        (Momentum::HeavyBall(0.5), None),
        (Momentum::Nesterov(0.5), None),
        (Momentum::Accelerated, None),
        (Momentum::None, Some(16)),
        (Momentum::HeavyBall(0.5), Some(16)),
        (Momentum::Nesterov(0.5), Some(50)),
    ];
    for (momentum, batch_size) in ways {
        let asked = Gradient { momentum, batch_size, epochs: 5000, tolerance: 1e-11, seed: 4, ..Gradient::default() };
        let found = descended(&design, &response, Some(&weights), &asked).unwrap();
        assert!(found.converged, "{momentum:?} {batch_size:?} {}", found.epochs);
        for response in 0..2 {
            for own in 0..4 {
                let (got, want) = (found.slopes[(own, response)], expected.information.coefficients()[(own, response)]);
                assert!((got - want).abs() < 1e-8, "{momentum:?} {batch_size:?} {got} {want}");
            }
            assert!((found.intercepts[response] - expected.information.intercept()[response]).abs() < 1e-6);
        }
        let residual: f64 = expected.statistics.iter().map(|figures| figures.residual_sum_of_squares).sum();
        assert!((found.loss - 0.5 * residual / expected.weight).abs() < 1e-12 * found.loss.max(1.0));
    }
}

#[test]
fn the_loss_falls_at_the_automatic_rate() {
    let (design, response, weights) = rows(5.0);
    for batch_size in [None, Some(10)] {
        let asked = Gradient { batch_size, epochs: 200, ..Gradient::default() };
        let found = descended(&design, &response, Some(&weights), &asked).unwrap();
        assert!(found.losses.windows(2).all(|pair| pair[1] <= pair[0] * (1.0 + 1e-9)), "{batch_size:?}");
    }
}

#[test]
fn a_rate_that_is_too_large_is_an_error_that_names_a_good_one() {
    let (design, response) = line();
    // Second moments of (1, x): [[1, 2.5], [2.5, 7.5]], largest eigenvalue (8.5 + √67.25)/2.
    let limit = 4.0 / (8.5 + 67.25_f64.sqrt());
    let at = |rate: f64| {
        let asked = Gradient { learning_rate: LearningRate::Fixed(rate), epochs: 100_000, tolerance: 1e-10, ..Gradient::default() };
        descended(&design, &response, None, &asked)
    };
    assert!(at(limit * 0.99).unwrap().converged);
    let Err(Error::Diverged(text)) = at(limit * 1.01) else { panic!("no divergence") };
    let named: f64 = text.parse().unwrap();
    assert!((named / limit - 1.0).abs() < 1e-3, "{named} {limit}");
    for batch_size in [None, Some(1), Some(2)] {
        let asked = Gradient { learning_rate: LearningRate::Fixed(1e200), batch_size, ..Gradient::default() };
        assert!(matches!(descended(&design, &response, None, &asked), Err(Error::Diverged(_))), "{batch_size:?}");
    }
}

#[test]
fn mini_batches_are_the_seeds() {
    let (design, response, weights) = rows(0.0);
    let found = |seed: u64| {
        let rate = LearningRate::Fixed(0.005);
        let asked = Gradient { learning_rate: rate, batch_size: Some(7), epochs: 3, seed, tolerance: 0.0, ..Gradient::default() };
        descended(&design, &response, Some(&weights), &asked).unwrap()
    };
    let (one, again, other) = (found(1), found(1), found(2));
    assert_eq!((one.losses.clone(), one.slopes.clone()), (again.losses, again.slopes));
    assert_ne!(one.losses, other.losses);
    // Batches of one row, by hand: two equal rows, and one without weight between them.
    let asked =
        Gradient { learning_rate: LearningRate::Fixed(0.1), batch_size: Some(1), epochs: 1, intercept: false, ..Gradient::default() };
    let three = mat![[2.0], [5.0], [2.0]];
    let responses = mat![[3.0], [9.0], [3.0]];
    let found = descended(&three, &responses, Some(&[1.0, 0.0, 1.0]), &asked).unwrap();
    // w = 0.1·6, then 0.6 + 0.1·2·(3 − 1.2).
    assert!((found.slopes[(0, 0)] - 0.96).abs() < 1e-15, "{found:?}");
}

#[test]
fn it_goes_on_from_given_coefficients() {
    let (design, response, weights) = rows(1.0);
    let asked = |epochs: usize| Gradient { learning_rate: LearningRate::Fixed(0.01), epochs, tolerance: 0.0, ..Gradient::default() };
    let whole = descended(&design, &response, Some(&weights), &asked(20)).unwrap();
    let half = descended(&design, &response, Some(&weights), &asked(10)).unwrap();
    let start = Some((half.slopes.as_ref(), half.intercepts.as_slice()));
    let rest = descended(&design, &response, Some(&weights), &Gradient { start, ..asked(10) }).unwrap();
    for response in 0..2 {
        assert!((whole.intercepts[response] - rest.intercepts[response]).abs() < 1e-12);
        assert!((0..4).all(|own| (whole.slopes[(own, response)] - rest.slopes[(own, response)]).abs() < 1e-12));
    }
    // At the solution there is nothing to do.
    let mut source = Matrices { design: design.as_ref(), response: response.as_ref(), weights: Some(&weights) };
    let best = fit(&mut source, &Specification::default()).unwrap();
    let start = Some((best.information.coefficients(), best.information.intercept()));
    let found = descended(&design, &response, Some(&weights), &Gradient { start, ..Gradient::default() }).unwrap();
    assert!(found.converged && found.epochs == 0);
}

#[test]
fn the_watcher_sees_every_epoch_and_can_end_it() {
    let (design, response) = line();
    let mut seen = Vec::new();
    let asked = Gradient { learning_rate: LearningRate::Fixed(0.01), ..Gradient::default() };
    let outcome = gradient(&mut Matrices { design: design.as_ref(), response: response.as_ref(), weights: None }, &asked, &mut |epoch| {
        seen.push(epoch);
        if epoch.index == 5 { Err(Error::Interrupted) } else { Ok(()) }
    });
    assert!(matches!(outcome, Err(Error::Interrupted)));
    assert_eq!(seen.iter().map(|epoch| epoch.index).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert!(seen.iter().all(|epoch| epoch.learning_rate == 0.01 && epoch.gradient_norm > 0.0));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (design, response) = line();
    let wide = mat![[1.0, 2.0]];
    let refused = [
        Gradient { learning_rate: LearningRate::Fixed(-1.0), ..Gradient::default() },
        Gradient { momentum: Momentum::HeavyBall(1.0), ..Gradient::default() },
        Gradient { batch_size: Some(0), ..Gradient::default() },
        Gradient { batch_size: Some(2), momentum: Momentum::Accelerated, ..Gradient::default() },
        Gradient { start: Some((wide.as_ref(), &[])), ..Gradient::default() },
    ];
    for asked in refused {
        assert!(matches!(descended(&design, &response, None, &asked), Err(Error::Solver(_))), "{asked:?}");
    }
}
