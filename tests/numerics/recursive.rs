//! Learning row by row.

use faer::Mat;
use lsqd::lsq::{Block, Gathered, Information, Matrices, Row, Specification};

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
            let mut parts = [0.0; 4];
            information.predict(&row(&design, place), &mut predicted);
            information.contributions(0, &row(&design, place), &mut parts);
            information.update(&row(&design, place), &[response[place]], weights[place], 1.0, &mut innovation).unwrap();
            // Found by a sweep through the triangle and not by the coefficients: the same but for the rounding of what cancels in a prediction.
            let size = response[place].abs() + parts.iter().map(|part| part.abs()).sum::<f64>();
            assert!((response[place] - predicted[0] - innovation[0]).abs() < 1e-14 * size, "row {place}");
        }
        let whole = weighted(&design, &response, Some(&weights), specification);
        assert!(digits(&all(&information), &coefficients(&whole)) > 10.0);
        let (intercept, slopes) = information.std_errors();
        let mut errors = intercept;
        errors.extend(slopes.col(0).iter());
        assert!(digits(&errors, &std_errors(&whole)) > 10.0);
        assert!(digits(&[information.effective_parameters()], &[whole.effective_parameters]) > 10.0);
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
        // The layout before this one had a number less after the seven whole ones and six others.
        let mut older = bytes.clone();
        older.drain(2 + 8 * 13..2 + 8 * 14);
        older[0] -= 1;
        assert_eq!(Information::decode(&older).unwrap().encode(), bytes);
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

/// Rows whose columns, all of about the same size, have a condition number of about the one asked for.
fn conditioned(sequence: &mut Sequence, rows: usize, columns: usize, condition: f64) -> (Mat<f64>, Vec<f64>) {
    let base = sequence.matrix(rows, columns);
    let design = Mat::from_fn(rows, columns, |row, column| match column {
        0 => base[(row, 0)],
        _ => 0.8 * base[(row, 0)] + base[(row, column)] / if column == 1 { condition } else { 1.0 },
    });
    let response = (0..rows).map(|row| 2.0 + design[(row, 0)] - design[(row, 1)] + 0.01 * sequence.next()).collect();
    (design, response)
}

/// Every coefficient agrees to so many digits of itself or of its standard error, whichever is larger.
fn agree(found: &Information, expected: &Information, tolerance: f64, what: &str) {
    let (mut errors, slopes) = expected.std_errors();
    errors.extend(slopes.col(0).iter());
    for ((one, other), error) in all(found).iter().zip(all(expected)).zip(errors) {
        assert!((one - other).abs() <= tolerance * other.abs().max(error), "{what}: {one} is not {other}");
    }
}

#[test]
fn forgetting_keeps_nine_digits_of_the_weighted_fit_up_to_a_condition_of_a_million() {
    for (seed, condition) in [(31, 1.0), (32, 1e3), (33, 1e6)] {
        for factor in [0.999_f64, 0.98, 0.9] {
            let (design, response) = conditioned(&mut Sequence(seed), 1_000, 5, condition);
            let mut information = fitted(&design.subrows(0, 100).to_owned(), &response[..100], Specification::default()).information;
            for place in 100..1_000 {
                information.update(&row(&design, place), &[response[place]], 1.0, factor, &mut [0.0]).unwrap();
            }
            // Rows that no longer show in the last digit are left out.
            let weights: Vec<f64> = (0..1_000).map(|row| factor.powi(999 - row.max(99))).collect();
            let first = weights.iter().position(|weight| *weight > 1e-30).unwrap();
            let batch = weighted(
                &design.subrows(first, 1_000 - first).to_owned(),
                &response[first..],
                Some(&weights[first..]),
                Specification::default(),
            );
            agree(&information, &batch.information, 1e-9, &format!("condition {condition}, factor {factor}"));
        }
    }
}

/// 1e7 in `LSQD_STILL_ROWS` is the long form, of some seconds in a release build.
#[test]
fn a_still_input_with_noise_leaves_the_rest_in_place() {
    let rows: u64 = std::env::var("LSQD_STILL_ROWS").map_or(100_000, |rows| rows.parse().unwrap());
    for predictors in [4, 20] {
        let mut sequence = Sequence(34);
        let design = sequence.matrix(200, predictors);
        let truth = |x: &[f64]| 1.0 + x.iter().enumerate().map(|(place, x)| x / (1.0 + place as f64)).sum::<f64>();
        let response: Vec<f64> = (0..200).map(|place| truth(&row(&design, place))).collect();
        let mut information = fitted(&design, &response, Specification::default()).information;
        let still: Vec<f64> = (0..predictors).map(|place| if place == 2 { 0.0 } else { sequence.next() }).collect();
        // The exact weighted fit of many equal rows is their weighted mean.
        let factor = 0.99;
        let (mut mean, mut weight) = (0.0, 0.0);
        for _ in 0..rows {
            let y = truth(&still) + 0.1 * sequence.next();
            information.update(&still, &[y], 1.0, factor, &mut [0.0]).unwrap();
            weight = factor * weight + 1.0;
            mean += (y - mean) / weight;
        }
        let mut predicted = [0.0];
        information.predict(&still, &mut predicted);
        assert!((predicted[0] - mean).abs() < 1e-9, "{} is not {mean}", predicted[0]);
        // What was known of other directions has not drifted: of a contrast, none of whose rows came.
        let before = fitted(&design, &response, Specification::default()).information;
        let mut expected = [0.0];
        let mut far = still.clone();
        far[2] = 1.0;
        information.predict(&far, &mut predicted);
        before.predict(&far, &mut expected);
        assert!((predicted[0] - expected[0]).abs() < 0.05, "{predicted:?} is not {expected:?}");
        let (_, errors) = information.std_errors();
        assert!(all(&information).iter().chain(errors.col(0).iter()).all(|value| value.is_finite()));
        // The world has changed, and varies again: as many rows as coefficients, and it is known.
        let changed = |x: &[f64]| truth(x) + 3.0 * x[2];
        for _ in 0..3 * predictors {
            let x: Vec<f64> = (0..predictors).map(|_| sequence.next()).collect();
            information.update(&x, &[changed(&x)], 1.0, factor, &mut [0.0]).unwrap();
        }
        information.predict(&far, &mut predicted);
        assert!((predicted[0] - changed(&far)).abs() < 0.05, "{} is not {}", predicted[0], changed(&far));
    }
}

#[test]
fn a_row_taken_out_leaves_what_was_there_before_it() {
    let mut sequence = Sequence(35);
    let design = sequence.matrix(60, 9);
    let response: Vec<f64> = (0..60).map(|_| sequence.next()).collect();
    let before = fitted(&design.subrows(0, 40).to_owned(), &response[..40], Specification::default()).information;
    let mut information = before.clone();
    for place in 40..60 {
        information.update(&row(&design, place), &[response[place]], 0.5 + 0.01 * place as f64, 1.0, &mut [0.0]).unwrap();
    }
    for place in 40..60 {
        information.downdate(&row(&design, place), &[response[place]], 0.5 + 0.01 * place as f64, 1.0).unwrap();
    }
    agree(&information, &before, 1e-12, "coefficients");
    assert!(digits(&information.residual_variance(), &before.residual_variance()) > 12.0);
    let ((one, slopes), (other, expected)) = (information.std_errors(), before.std_errors());
    assert!(digits(&one, &other) > 12.0 && digits(slopes.col_as_slice(0), expected.col_as_slice(0)) > 12.0);
    assert_eq!((information.observations(), information.rank()), (before.observations(), before.rank()));
    assert!(information.removal_loss() > 0.0 && information.removal_loss() < 1e-12, "{}", information.removal_loss());
}

#[test]
fn what_only_one_row_knows_is_not_taken_out() {
    let mut sequence = Sequence(36);
    let design = Mat::from_fn(30, 2, |row, column| if column == 1 && row != 29 { 0.0 } else { sequence.next() });
    let response: Vec<f64> = (0..30).map(|_| sequence.next()).collect();
    let mut information = fitted(&design, &response, Specification::default()).information;
    let before = information.encode();
    assert_eq!(information.downdate(&row(&design, 29), &[response[29]], 1.0, 1.0), Err(lsqd::lsq::Error::Removal));
    assert!(information.downdate(&[f64::NAN, 0.0], &[0.0], 1.0, 1.0).is_err());
    assert_eq!(information.encode(), before);
    information.downdate(&row(&design, 3), &[response[3]], 1.0, 1.0).unwrap();
}

#[test]
fn a_sliding_window_is_the_fit_of_its_rows() {
    const WINDOW: usize = 300;
    const ROWS: usize = 100_000;
    for (seed, condition) in [(37, 1.0), (38, 1e3), (39, 1e6)] {
        let (design, response) = conditioned(&mut Sequence(seed), ROWS, 5, condition);
        let window = |end: usize| {
            let begin = end - WINDOW;
            fitted(&design.subrows(begin, WINDOW).to_owned(), &response[begin..end], Specification::default()).information
        };
        let mut information = window(WINDOW);
        let mut fits = 0;
        for place in WINDOW..ROWS {
            information.update(&row(&design, place), &[response[place]], 1.0, 1.0, &mut [0.0]).unwrap();
            let old = place - WINDOW;
            let removed = information.downdate(&row(&design, old), &[response[old]], 1.0, 1.0);
            if removed.is_err() || information.removal_loss() > 1e-9 {
                information = window(place + 1);
                fits += 1;
            }
            if place % 2_500 == 0 {
                let batch = window(place + 1);
                agree(&information, &batch, 1e-9, &format!("condition {condition}, row {place}, after {fits} fits"));
                let (one, other) = (information.residual_variance(), batch.residual_variance());
                assert!(digits(&one, &other) > 9.0, "{one:?} {other:?}");
                assert_eq!(information.observations(), batch.observations());
            }
        }
        // Seldom, even where each row costs a part of what may be lost.
        assert!(fits < if condition < 1e6 { 10 } else { ROWS / 10 }, "condition {condition}: {fits} fits");
    }
}

/// Rows of a problem with q responses, of which some have no weight and one is far out.
struct Rows {
    design: Mat<f64>,
    response: Mat<f64>,
    weights: Vec<f64>,
}

impl Rows {
    fn random(sequence: &mut Sequence, rows: usize, predictors: usize, responses: usize) -> Self {
        let mut design = sequence.matrix(rows, predictors);
        if rows > 50 {
            design[(50, 0)] = 300.0;
        }
        let response = sequence.matrix(rows, responses);
        let weights = (0..rows).map(|row| if row % 29 == 3 { 0.0 } else { 1.5 + sequence.next() }).collect();
        Self { design, response, weights }
    }

    fn block(&self) -> Block<'_> {
        Block { design: self.design.as_ref(), design_low: None, response: self.response.as_ref(), weights: Some(&self.weights) }
    }
}

/// What rows leave that are learnt one after the other.
fn row_by_row(begun: &Information, block: &Block<'_>, factor: f64) -> Information {
    let mut information = begun.clone();
    let mut innovations = vec![0.0; begun.responses()];
    let cells = |matrix: faer::MatRef<'_, f64>, row: usize| (0..matrix.ncols()).map(|column| matrix[(row, column)]).collect::<Vec<_>>();
    for place in 0..block.rows() {
        let high = cells(block.design, place);
        let low = block.design_low.map(|low| cells(low, place));
        let weight = block.weights.map_or(1.0, |weights| weights[place]);
        let x = Row { high: &high, low: low.as_deref() };
        information.update(x, &cells(block.response, place), weight, factor, &mut innovations).unwrap();
    }
    information
}

fn as_a_block(begun: &Information, block: &Block<'_>, factor: f64) -> Information {
    let mut information = begun.clone();
    information.update_block(block, factor).unwrap();
    information
}

/// Both know the same, and meet the next row alike.
fn know_the_same(together: &Information, single: &Information, next: &[f64], tolerance: f64, what: &str) {
    let near = |one: &[f64], other: &[f64], of: &str| {
        for (one, other) in one.iter().zip(other) {
            assert!((one - other).abs() <= tolerance * other.abs().max(1.0), "{what}, {of}: {one} is not {other}");
        }
    };
    for response in 0..single.responses() {
        near(
            together.coefficients().col(response).try_as_col_major().unwrap().as_slice(),
            single.coefficients().col(response).try_as_col_major().unwrap().as_slice(),
            "slope",
        );
    }
    near(together.intercept(), single.intercept(), "intercept");
    let alike = |one: &[f64], other: &[f64], of: &str| {
        let digits = digits(one, other);
        assert!(digits > -tolerance.log10(), "{what}, {of}: {digits} digits of {other:?} in {one:?}");
    };
    alike(&together.residual_variance(), &single.residual_variance(), "variance");
    for response in 0..single.responses() {
        alike(together.std_errors().1.col_as_slice(response), single.std_errors().1.col_as_slice(response), "standard error");
    }
    alike(&[together.effective_observations()], &[single.effective_observations()], "effective rows");
    alike(&[together.leverage(next, &mut Gathered::default())], &[single.leverage(next, &mut Gathered::default())], "leverage");
    assert_eq!((together.observations(), together.rank()), (single.observations(), single.rank()), "{what}");
    let step = |information: &Information| {
        let (mut information, mut innovations) = (information.clone(), vec![0.0; single.responses()]);
        let leverage = information.update(next, &vec![0.5; single.responses()], 1.0, 0.99, &mut innovations).unwrap();
        (leverage, innovations)
    };
    let ((one_leverage, one), (other_leverage, other)) = (step(together), step(single));
    near(&one, &other, "next innovation");
    alike(&[one_leverage], &[other_leverage], "next leverage");
}

#[test]
fn blocks_are_their_rows_one_after_the_other() {
    for (predictors, responses) in [(1, 1), (3, 2), (4, 1), (7, 3), (8, 1), (11, 2), (19, 1), (50, 1), (50, 3)] {
        let mut sequence = Sequence(40 + predictors as u64);
        let head = Rows::random(&mut sequence, 2 * predictors + 2, predictors, responses);
        let mut source = Matrices { design: head.design.as_ref(), response: head.response.as_ref(), weights: None };
        let begun = lsqd::lsq::fit(&mut source, &Specification::default()).unwrap().information;
        for rows in (0..=9).chain([63, 64, 65, 128, 495, 497, 1_000]) {
            let rows = Rows::random(&mut sequence, rows, predictors, responses);
            let next: Vec<f64> = (0..predictors).map(|_| sequence.next()).collect();
            for factor in [1.0, 0.99] {
                for weights in [None, Some(rows.weights.as_slice())] {
                    let block = Block { weights, ..rows.block() };
                    let what = format!("{} rows, {predictors} by {responses}, factor {factor}", block.rows());
                    let together = as_a_block(&begun, &block, factor);
                    know_the_same(&together, &row_by_row(&begun, &block, factor), &next, 1e-11, &what);
                    assert_eq!(as_a_block(&begun, &block, factor).encode(), together.encode());
                    assert_eq!(Information::decode(&together.encode()).unwrap().encode(), together.encode());
                }
            }
        }
    }
}

/// Blocks follow on blocks and on rows.
#[test]
fn a_long_stream_of_blocks_is_the_fit_of_all_rows() {
    for (condition, intercept, rows, tolerance) in
        [(1.0, true, 100_000, 1e-10), (20.0, false, 100_000, 1e-10), (1e3, true, 100_000, 1e-10), (1e6, true, 1_500, 1e-9)]
    {
        let (design, response) = conditioned(&mut Sequence(42), rows, 5, condition);
        let specification = Specification { intercept, ..Specification::default() };
        let response_column = Mat::from_fn(rows, 1, |row, _| response[row]);
        let mut information = fitted(&design.subrows(0, 100).to_owned(), &response[..100], specification).information;
        let mut begin = 100;
        for count in [1_000, 1, 7, 331, 4_999].into_iter().cycle() {
            let count = count.min(rows - begin);
            if count == 0 {
                break;
            }
            let (design, response) = (design.subrows(begin, count), response_column.subrows(begin, count));
            information.update_block(&Block { design, design_low: None, response, weights: None }, 1.0).unwrap();
            begin += count;
        }
        let batch = fitted(&design, &response, specification).information;
        agree(&information, &batch, tolerance, &format!("condition {condition}"));
        assert!(digits(&information.residual_variance(), &batch.residual_variance()) > 10.0);
        assert_eq!(information.observations(), batch.observations());
    }
}

/// Where a Gram matrix would lose digits, and where nothing is known of a direction yet, a block is its rows to the last bit.
#[test]
fn blocks_that_a_gram_matrix_would_blur_are_learnt_row_by_row() {
    let mut sequence = Sequence(43);
    for (condition, apart) in [(1.0, true), (20.0, true), (200.0, false), (1e6, false)] {
        let (design, response) = conditioned(&mut sequence, 1_300, 5, condition);
        let begun = fitted(&design.subrows(0, 300).to_owned(), &response[..300], Specification::default()).information;
        let response = Mat::from_fn(1_000, 1, |row, _| response[300 + row]);
        let block = Block { design: design.subrows(300, 1_000), design_low: None, response: response.as_ref(), weights: None };
        let (together, single) = (as_a_block(&begun, &block, 1.0), row_by_row(&begun, &block, 1.0));
        assert_eq!(together.encode() != single.encode(), apart, "condition {condition}");
        know_the_same(&together, &single, &row(&design, 0), 1e-11, &format!("condition {condition}"));
        let clean = Mat::from_fn(1_000, 1, |place, _| 3.0 + block.design[(place, 1)]);
        let exact = Block { response: clean.as_ref(), ..block };
        let begun = fitted(&design.subrows(0, 300).to_owned(), &[3.0; 300], Specification::default()).information;
        assert!(as_a_block(&begun, &exact, 0.9).encode() == row_by_row(&begun, &exact, 0.9).encode(), "nothing is left of the response");
        let low = Mat::from_fn(1_000, 5, |place, column| block.design[(place, column)] * 1e-17);
        let precise = Block { design_low: Some(low.as_ref()), ..block };
        assert!(as_a_block(&begun, &precise, 1.0).encode() == row_by_row(&begun, &precise, 1.0).encode(), "low parts");
    }
    let rows = Rows::random(&mut sequence, 60, 10, 1);
    let begun = fitted(&sequence.matrix(4, 10), &[0.3, 0.1, 0.7, 0.2], Specification::default()).information;
    assert!(begun.rank() < 11);
    let together = as_a_block(&begun, &rows.block(), 1.0);
    assert_eq!(together.encode(), row_by_row(&begun, &rows.block(), 1.0).encode());
    assert_eq!(together.rank(), 11);
}

#[test]
fn blocks_of_constant_input_neither_blow_up_nor_blind() {
    let mut sequence = Sequence(44);
    let rows = Rows::random(&mut sequence, 1_000, 6, 1);
    let begun = fitted(&rows.design, rows.response.col_as_slice(0), Specification::default()).information;
    let still = Mat::from_fn(1_000, 6, |_, column| rows.design[(0, column)]);
    let said = Mat::from_fn(1_000, 1, |_, _| 2.0 + 0.01 * sequence.next());
    let constant = Block { design: still.as_ref(), design_low: None, response: said.as_ref(), weights: None };
    for factor in [0.99, 0.9] {
        let (mut together, mut single) = (begun.clone(), begun.clone());
        for _ in 0..50 {
            together.update_block(&constant, factor).unwrap();
            single = row_by_row(&single, &constant, factor);
        }
        let mut predicted = [0.0];
        together.predict(&row(&still, 0), &mut predicted);
        assert!((predicted[0] - 2.0).abs() < 0.01, "{predicted:?}");
        together.update_block(&rows.block(), factor).unwrap();
        single = row_by_row(&single, &rows.block(), factor);
        know_the_same(&together, &single, &row(&rows.design, 7), 1e-10, &format!("factor {factor}"));
    }
}

#[test]
fn the_largest_leverage_is_that_of_the_rows_of_a_block_as_they_are_known_after_it() {
    for (predictors, size) in [(3, 60), (11, 1_200)] {
        let mut sequence = Sequence(45);
        let head = sequence.matrix(50, predictors);
        let begun = fitted(&head, &vec![0.5; 50], Specification::default()).information;
        let rows = Rows::random(&mut sequence, size, predictors, 1);
        let mut information = as_a_block(&begun, &rows.block(), 1.0);
        let thinned = information.maximum_leverage();
        information.raise_maximum_leverage(&rows.block());
        let mut scratch = Gathered::default();
        let largest = (0..size)
            .filter(|place| rows.weights[*place] > 0.0)
            .map(|place| information.leverage(&row(&rows.design, place), &mut scratch))
            .fold(thinned, f64::max);
        assert!(largest > thinned);
        assert!((information.maximum_leverage() - largest).abs() <= 1e-12 * largest, "{} is not {largest}", information.maximum_leverage());
    }
}

#[test]
fn a_block_with_a_row_that_cannot_be_learnt_changes_nothing() {
    let mut information = fitted(&Sequence(41).matrix(20, 2), &[1.0; 20], Specification::default()).information;
    let before = information.encode();
    for bad in [f64::NAN, f64::INFINITY, 1e160] {
        let mut rows = Rows::random(&mut Sequence(46), 20, 2, 1);
        rows.design[(17, 1)] = bad;
        assert!(information.update_block(&rows.block(), 1.0).is_err());
        assert_eq!(information.encode(), before);
    }
}
