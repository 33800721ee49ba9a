//! Learning row by row.

use faer::Mat;
use lsqd::lsq::{Information, Specification};

use super::{Sequence, coefficients, digits, fitted, std_errors, weighted};

fn row(design: &Mat<f64>, row: usize) -> Vec<f64> {
    (0..design.ncols()).map(|column| design[(row, column)]).collect()
}

fn all(information: &Information) -> Vec<f64> {
    let mut all = information.intercept().to_vec();
    all.extend(information.coefficients().col(0).iter());
    all
}

/// What is replayed after a crash has been looked at by nobody; the errors must be those of then to the last bit.
#[test]
fn errors_do_not_depend_on_who_looked_before() {
    let mut sequence = Sequence(5);
    let design = sequence.matrix(300, 3);
    let response: Vec<f64> = (0..300).map(|row| design[(row, 0)] + sequence.next()).collect();
    let begun = weighted(&design.subrows(0, 20).to_owned(), &response[..20], None, Specification::default());
    let (mut looked_at, mut alone) = (begun.information.clone(), begun.information);
    for place in 20..300 {
        let (mut seen, mut unseen) = ([0.0], [0.0]);
        looked_at.settle();
        looked_at.update(&row(&design, place), &[response[place]], 1.0, 0.99, &mut seen).unwrap();
        alone.update(&row(&design, place), &[response[place]], 1.0, 0.99, &mut unseen).unwrap();
        assert_eq!(seen[0].to_bits(), unseen[0].to_bits(), "row {place}");
    }
    assert!(looked_at.encode() == alone.encode());
}

#[test]
fn forgetting_factor_one_equals_batch() {
    let mut sequence = Sequence(11);
    for (penalty, nearness) in [(0.0, 1.0), (0.0, 1e-4), (2.0, 1.0)] {
        let base = sequence.matrix(400, 4);
        let design = Mat::from_fn(400, 4, |row, column| match column {
            1 => base[(row, 0)] + nearness * base[(row, 1)],
            _ => base[(row, column)] * 10.0 + 1e3,
        });
        let response: Vec<f64> = (0..400).map(|row| 5.0 + design[(row, 1)] + sequence.next()).collect();
        let weights: Vec<f64> = (0..400).map(|_| 1.0 + 0.5 * sequence.next()).collect();
        let specification = Specification { penalty, ..Specification::default() };
        let head = design.subrows(0, 50).to_owned();
        let begun = weighted(&head, &response[..50], Some(&weights[..50]), specification);
        let mut information = begun.information;
        for place in 50..400 {
            let mut innovation = [0.0];
            let mut predicted = [0.0];
            information.predict(&row(&design, place), &mut predicted);
            information.update(&row(&design, place), &[response[place]], weights[place], 1.0, &mut innovation).unwrap();
            assert_eq!(response[place] - predicted[0], innovation[0]);
        }
        let whole = weighted(&design, &response, Some(&weights), specification);
        assert!(digits(&all(&information), &coefficients(&whole)) > 10.0);
        if penalty == 0.0 {
            let (intercept, slopes) = information.std_errors();
            let mut errors = intercept;
            errors.extend(slopes.col(0).iter());
            assert!(digits(&errors, &std_errors(&whole)) > 10.0);
        }
    }
}

#[test]
fn learning_from_a_deficient_fit_ends_where_the_batch_does() {
    let mut sequence = Sequence(12);
    let design = Mat::from_fn(60, 3, |row, column| match column {
        // A duplicate for the first 20 rows, and a column that is constant for the first 30.
        1 if row < 20 => f64::from(u8::try_from(row).unwrap()),
        0 => f64::from(u8::try_from(row).unwrap()),
        2 if row < 30 => 4.0,
        _ => sequence.next(),
    });
    let response: Vec<f64> = (0..60).map(|_| sequence.next()).collect();
    let begun = fitted(&design.subrows(0, 20).to_owned(), &response[..20], Specification::default());
    assert_eq!(begun.rank, 2);
    let mut information = begun.information;
    for place in 20..60 {
        information.update(&row(&design, place), &[response[place]], 1.0, 1.0, &mut [0.0]).unwrap();
        if place == 29 {
            let batch = fitted(&design.subrows(0, 30).to_owned(), &response[..30], Specification::default());
            assert_eq!((information.rank(), batch.rank), (3, 3));
            assert!(digits(&all(&information), &coefficients(&batch)) > 10.0, "{:?} {:?}", all(&information), coefficients(&batch));
        }
    }
    let batch = fitted(&design, &response, Specification::default());
    assert_eq!((information.rank(), batch.rank), (4, 4));
    assert!(digits(&all(&information), &coefficients(&batch)) > 10.0, "{:?} {:?}", all(&information), coefficients(&batch));
}

#[test]
fn forgetting_equals_the_exponentially_weighted_fit() {
    let mut sequence = Sequence(13);
    let design = sequence.matrix(500, 3);
    let response: Vec<f64> = (0..500).map(|row| design[(row, 0)] + 0.2 * sequence.next()).collect();
    let factor = 0.98_f64;
    let begun = fitted(&design.subrows(0, 100).to_owned(), &response[..100], Specification::default());
    let mut information = begun.information;
    for place in 100..500 {
        information.update(&row(&design, place), &[response[place]], 1.0, factor, &mut [0.0]).unwrap();
    }
    let weights: Vec<f64> = (0..500).map(|row| factor.powi(499 - row.max(99))).collect();
    let batch = weighted(&design, &response, Some(&weights), Specification::default());
    for (recursive, batch) in all(&information).iter().zip(coefficients(&batch)) {
        assert!((recursive - batch).abs() < 1e-8, "{recursive} {batch}");
    }
}

#[test]
fn constant_input_under_forgetting_stays_finite_and_learns_again_at_once() {
    let mut sequence = Sequence(14);
    let design = sequence.matrix(200, 4);
    let truth = |x: &[f64]| 1.0 + x[0] - 2.0 * x[1] + 0.5 * x[3];
    let response: Vec<f64> = (0..200).map(|place| truth(&row(&design, place))).collect();
    let mut information = fitted(&design, &response, Specification::default()).information;
    // Third input zero: what was learnt there does not contradict what comes after.
    let still = [0.3, -0.2, 0.0, 0.9];
    for _ in 0..100_000 {
        information.update(&still, &[truth(&still)], 1.0, 0.99, &mut [0.0]).unwrap();
    }
    assert!(all(&information).iter().all(|value| value.is_finite()));
    let mut predicted = [0.0];
    information.predict(&[-0.5, 0.5, 0.5, -0.5], &mut predicted);
    assert!((predicted[0] - truth(&[-0.5, 0.5, 0.5, -0.5])).abs() < 1e-9, "{predicted:?}");
    // The world has changed: a few varied rows are enough to follow it.
    for _ in 0..40 {
        let x: Vec<f64> = (0..4).map(|_| sequence.next()).collect();
        information.update(&x, &[truth(&x) + 3.0 * x[2]], 1.0, 0.99, &mut [0.0]).unwrap();
    }
    information.predict(&[0.0, 0.0, 1.0, 0.0], &mut predicted);
    assert!((predicted[0] - 4.0).abs() < 1e-5, "{predicted:?}");
}

#[test]
fn stored_and_read_it_goes_on_bit_for_bit() {
    let mut sequence = Sequence(15);
    let design = sequence.matrix(80, 3);
    let response: Vec<f64> = (0..80).map(|_| sequence.next()).collect();
    for factor in [1.0, 0.95] {
        let mut live = fitted(&design.subrows(0, 10).to_owned(), &response[..10], Specification::default()).information;
        let mut stored = Information::decode(&live.encode()).unwrap();
        for place in 10..80 {
            live.update(&row(&design, place), &[response[place]], 1.0, factor, &mut [0.0]).unwrap();
            // Looking at one between updates changes nothing.
            live.settle();
            stored.update(&row(&design, place), &[response[place]], 1.0, factor, &mut [0.0]).unwrap();
            if place % 7 == 0 {
                stored = Information::decode(&stored.encode()).unwrap();
            }
        }
        assert_eq!(live.encode(), stored.encode());
        let bytes = live.encode();
        for cut in 0..bytes.len() {
            assert!(Information::decode(&bytes[..cut]).is_err());
        }
    }
}

#[test]
fn a_row_that_cannot_be_learnt_changes_nothing() {
    let mut information = fitted(&Sequence(16).matrix(20, 2), &[1.0; 20], Specification::default()).information;
    let before = information.encode();
    for (x, y) in [([1e200, 0.0], 1.0), ([0.0, 0.0], 1e200), ([f64::NAN, 0.0], 1.0), ([0.0, 0.0], f64::INFINITY)] {
        assert!(information.update(&x, &[y], 1.0, 1.0, &mut [0.0]).is_err());
        assert_eq!(information.encode(), before);
    }
}
