//! What is said about a fit: covariances without the usual suppositions, the influence of rows, held-out rows, many penalties at once.
//! Literal numbers are those of statsmodels 0.15 and scikit-learn 1.9, in whose conventions the claims are stated.

use faer::{Mat, MatRef, mat};
use lsqd::lsq::{
    Block, Covariance, Error, Estimate, Fit, HeldOut, Matrices, Plan, Questions, RowDiagnostics, RowSource, Specification, Validation,
    covariance, diagnose, fit, ridge_path, validate, validate_least_squares,
};

use super::{Sequence, coefficients, digits, fitted, std_errors};

/// Rows in blocks of a size of their own.
struct Blocks<'a> {
    rows: Matrices<'a>,
    at_once: usize,
}

impl RowSource for Blocks<'_> {
    fn predictors(&self) -> usize {
        self.rows.predictors()
    }

    fn responses(&self) -> usize {
        self.rows.responses()
    }

    fn pass(&mut self, visit: &mut dyn FnMut(&Block<'_>) -> Result<(), Error>) -> Result<(), Error> {
        let Matrices { design, response, weights } = self.rows;
        let mut first = 0;
        while first < response.nrows() {
            let count = self.at_once.min(response.nrows() - first);
            let weights = weights.map(|weights| &weights[first..first + count]);
            let (design, response) = (design.subrows(first, count), response.subrows(first, count));
            visit(&Block { design, design_low: None, response, weights })?;
            first += count;
        }
        Ok(())
    }
}

fn rows<'a>(design: &'a Mat<f64>, response: &'a Mat<f64>, weights: Option<&'a [f64]>) -> Matrices<'a> {
    Matrices { design: design.as_ref(), response: response.as_ref(), weights }
}

/// Twelve rows, two predictors.
fn small() -> (Mat<f64>, Mat<f64>) {
    let design = Mat::from_fn(12, 2, |row, column| if column == 0 { row as f64 } else { ((row * row) % 7) as f64 });
    let response = [1.0, 2.5, 2.0, 4.5, 3.0, 7.5, 5.0, 9.0, 6.5, 8.0, 12.0, 9.5];
    (design, Mat::from_fn(12, 1, |row, _| response[row]))
}

/// A design and responses whose spread grows with the first predictor.
fn uneven(seed: u64, count: usize, predictors: usize, responses: usize) -> (Mat<f64>, Mat<f64>) {
    let mut sequence = Sequence(seed);
    let design = sequence.matrix(count, predictors);
    let slopes = sequence.matrix(predictors, responses);
    let noise = sequence.matrix(count, responses);
    let response =
        &design * slopes + Mat::from_fn(count, responses, |row, column| 2.0 + noise[(row, column)] * (1.0 + design[(row, 0)].abs()));
    (design, response)
}

/// The upper triangle, row by row.
fn upper(matrix: MatRef<'_, f64>) -> Vec<f64> {
    (0..matrix.nrows()).flat_map(|row| (row..matrix.ncols()).map(move |column| matrix[(row, column)])).collect()
}

fn difference(one: &Mat<f64>, other: &Mat<f64>) -> f64 {
    (one - other).norm_max() / other.norm_max()
}

#[test]
fn covariances_are_those_of_statsmodels() {
    let (design, response) = small();
    let mut source = rows(&design, &response, None);
    let fit = fit(&mut source, &Specification::default()).unwrap();
    let groups = [0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 1];
    let cases: [(Covariance<'_>, [f64; 6]); 7] = [
        (
            Covariance::Classical,
            [1.0338513423659, -0.086852217764618, -0.17990345486855, 0.0181354289182, -0.0067265954532961, 0.11316507644957],
        ),
        (
            Covariance::Hc0,
            [0.29622286540794, -0.014519428595041, -0.087030216176301, 0.010918035052614, -0.013865319018905, 0.086474899665173],
        ),
        (
            Covariance::Hc1,
            [0.39496382054392, -0.019359238126722, -0.11604028823507, 0.014557380070152, -0.018487092025207, 0.11529986622023],
        ),
        (
            Covariance::Hc2,
            [0.38732290780874, -0.019176825881247, -0.11855319594182, 0.014617643413468, -0.019043722908213, 0.12105793805886],
        ),
        (
            Covariance::Hc3,
            [0.51190611943763, -0.025740388673115, -0.16182996140187, 0.019718458834284, -0.026437170733155, 0.17046092717402],
        ),
        (
            Covariance::Hac { lags: 2 },
            [0.17069740889575, -0.0043293741806932, -0.074481265639095, 0.0018015893582058, -0.0023927906855475, 0.053361569932426],
        ),
        (
            Covariance::Cluster { groups: &groups },
            [0.014178745892975, -0.00020081029077197, -0.021112198673186, 0.0095392103819808, -0.019052937962322, 0.070707821519373],
        ),
    ];
    for (kind, expected) in cases {
        let found = covariance(&mut source, &fit, kind).unwrap();
        // The literals have 14 digits; statsmodels' own products lose some of them.
        assert!(digits(&upper(found[0].as_ref()), &expected) > 10.0, "{kind:?} {found:?}");
    }
    let weights: Vec<f64> = (0..12).map(|row| f64::from(1 + row % 3)).collect();
    let mut source = rows(&design, &response, Some(&weights));
    let fit = lsqd::lsq::fit(&mut source, &Specification::default()).unwrap();
    let found = covariance(&mut source, &fit, Covariance::Hc3).unwrap();
    let expected = [1.1490159097436, -0.072981302343662, -0.32409383839235, 0.025735477964796, -0.023537386836104, 0.27740701359517];
    assert!(digits(&upper(found[0].as_ref()), &expected) > 10.0, "{found:?}");
}

#[test]
fn one_covariance_is_the_limit_of_another() {
    let (design, response) = uneven(3, 500, 4, 2);
    let mut source = rows(&design, &response, None);
    let fit = fit(&mut source, &Specification::default()).unwrap();
    let mut of = |kind| covariance(&mut source, &fit, kind).unwrap();
    let classical = of(Covariance::Classical);
    let (intercept_errors, slope_errors) = fit.information.std_errors();
    for response in 0..2 {
        let diagonal: Vec<f64> = (0..5).map(|place| classical[response][(place, place)].sqrt()).collect();
        let mut expected = vec![intercept_errors[response]];
        expected.extend(slope_errors.col(response).iter());
        assert!(digits(&diagonal, &expected) > 13.0);
    }
    // Without lags nothing is correlated; groups of one row are White's, with his degrees of freedom.
    let alone: Vec<u32> = (0..500).rev().collect();
    let pairs = [(of(Covariance::Hac { lags: 0 }), of(Covariance::Hc0)), (of(Covariance::Cluster { groups: &alone }), of(Covariance::Hc1))];
    for (one, other) in pairs {
        assert!((0..2).all(|response| difference(&one[response], &other[response]) < 1e-13));
    }
}

#[test]
fn covariances_do_not_depend_on_how_rows_are_cut() {
    let (design, response) = uneven(4, 700, 3, 1);
    let groups: Vec<u32> = (0..700).map(|row| (row * 7 % 41) as u32).collect();
    let fit = fitted(&design, response.col_as_slice(0), Specification::default());
    for kind in [Covariance::Hc3, Covariance::Hac { lags: 25 }, Covariance::Cluster { groups: &groups }] {
        let whole = covariance(&mut rows(&design, &response, None), &fit, kind).unwrap();
        for at_once in [1, 10, 64, 333] {
            let mut source = Blocks { rows: rows(&design, &response, None), at_once };
            assert!(difference(&covariance(&mut source, &fit, kind).unwrap()[0], &whole[0]) < 1e-12, "{kind:?} {at_once}");
        }
    }
}

#[test]
fn bartlett_weights_are_moving_sums() {
    // S from its definition, in raw coordinates, without an intercept.
    let (design, response) = uneven(5, 60, 2, 1);
    let mut source = rows(&design, &response, None);
    let fit = fit(&mut source, &Specification { intercept: false, ..Specification::default() }).unwrap();
    let fitted = &design * fit.information.coefficients();
    let scores = Mat::from_fn(60, 2, |row, column| design[(row, column)] * (response[(row, 0)] - fitted[(row, 0)]));
    let lags = 7;
    let mut middle = scores.transpose() * &scores;
    for lag in 1..=lags {
        let own = scores.subrows(lag, 60 - lag).transpose() * scores.subrows(0, 60 - lag);
        let weight = 1.0 - lag as f64 / (lags + 1) as f64;
        middle += faer::Scale(weight) * (&own + own.transpose());
    }
    let gram = design.transpose() * &design;
    let determinant = gram[(0, 0)] * gram[(1, 1)] - gram[(0, 1)] * gram[(1, 0)];
    let inverse = mat![[gram[(1, 1)], -gram[(0, 1)]], [-gram[(1, 0)], gram[(0, 0)]]] * faer::Scale(1.0 / determinant);
    let expected = &inverse * middle * &inverse;
    assert!(difference(&covariance(&mut source, &fit, Covariance::Hac { lags }).unwrap()[0], &expected) < 1e-13);
}

#[test]
fn a_far_origin_and_odd_units_cost_no_digits() {
    let (design, response) = uneven(6, 300, 3, 1);
    // Powers of two, so that the same problem is stated exactly; at a distance that keeps 26 bits of each cell.
    let cut = Mat::from_fn(300, 3, |row, column| (design[(row, column)] * 2.0_f64.powi(20)).round() * 2.0_f64.powi(-20));
    let moved = Mat::from_fn(300, 3, |row, column| (cut[(row, column)] + 65536.0) * [1024.0, 1.0, 2.0_f64.powi(-9)][column]);
    let near = fitted(&cut, response.col_as_slice(0), Specification::default());
    let far = fitted(&moved, response.col_as_slice(0), Specification::default());
    for kind in [Covariance::Hc3, Covariance::Hac { lags: 5 }] {
        let near = covariance(&mut rows(&cut, &response, None), &near, kind).unwrap();
        let far = covariance(&mut rows(&moved, &response, None), &far, kind).unwrap();
        let scale = [1024.0, 1.0, 2.0_f64.powi(-9)];
        let back = Mat::from_fn(3, 3, |i, j| far[0][(1 + i, 1 + j)] * scale[i] * scale[j]);
        assert!(difference(&back, &near[0].submatrix(1, 1, 3, 3).to_owned()) < 1e-12, "{kind:?}");
    }
}

#[test]
fn duplicates_share_their_covariance_and_constants_have_none() {
    let (design, response) = uneven(7, 200, 3, 1);
    let wide = Mat::from_fn(200, 5, |row, column| match column {
        0..3 => design[(row, column)],
        3 => 7.0,
        _ => design[(row, 0)],
    });
    let small = fitted(&design, response.col_as_slice(0), Specification::default());
    let large = fitted(&wide, response.col_as_slice(0), Specification::default());
    let expected = covariance(&mut rows(&design, &response, None), &small, Covariance::Hc3).unwrap();
    let found = covariance(&mut rows(&wide, &response, None), &large, Covariance::Hc3).unwrap();
    // Effects: both copies together.
    let effects = Mat::from_fn(4, 6, |row, column| f64::from(u8::from(row == column || (row == 1 && column == 5))));
    assert!(difference(&(&effects * &found[0] * effects.transpose()), &expected[0]) < 1e-12);
    assert!((0..6).all(|place| found[0][(4, place)] == 0.0));
    assert!((found[0][(1, 1)] - found[0][(5, 5)]).abs() < 1e-14 * found[0][(1, 1)]);
    // The same of the rows' own figures, and of the test, which counts independent predictors.
    let of =
        |design: &Mat<f64>, fit: &Fit| diagnose(&mut rows(design, &response, None), fit, &Questions::default(), &mut |_| Ok(())).unwrap();
    let (small, large) = (of(&design, &small).responses.remove(0), of(&wide, &large).responses.remove(0));
    let figures =
        |of: &lsqd::lsq::ResponseDiagnostics| [of.press, of.breusch_pagan.statistic, of.breusch_pagan.p, of.cooks_distances[0].value];
    assert!(digits(&figures(&large), &figures(&small)) > 11.0);
}

#[test]
fn what_does_not_fit_the_rows_is_an_error() {
    let (design, response) = small();
    let mut source = rows(&design, &response, None);
    let fit = fit(&mut source, &Specification::default()).unwrap();
    let refused = [
        Covariance::Hac { lags: 12 },
        Covariance::Cluster { groups: &[0; 11] },
        Covariance::Cluster { groups: &[0; 13] },
        Covariance::Cluster { groups: &[0; 12] },
        Covariance::Cluster { groups: &[12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] },
    ];
    for kind in refused {
        assert!(matches!(covariance(&mut source, &fit, kind), Err(Error::Solver(_))), "{kind:?}");
    }
    assert!(matches!(ridge_path(&mut source, true, &[-1.0]), Err(Error::Solver(_))));
    let plans = [Plan::KFold { folds: 1, seed: 0 }, Plan::HoldOut { fraction: 1.0, seed: 0 }, Plan::Time { folds: 0, segment: &|_| 0 }];
    for plan in plans {
        assert!(matches!(validate_least_squares(&mut source, plan, &Specification::default(), None), Err(Error::Solver(_))), "{plan:?}");
    }
}

/// All figures of all rows.
fn every_row(source: &mut dyn RowSource, fit: &Fit) -> RowDiagnostics {
    let mut all = RowDiagnostics::default();
    diagnose(source, fit, &Questions::default(), &mut |rows| {
        assert_eq!(rows.first as usize, all.leverage.len());
        all.leverage.extend(&rows.leverage);
        all.responses.resize(rows.responses.len(), lsqd::lsq::RowFigures::default());
        for (all, own) in all.responses.iter_mut().zip(&rows.responses) {
            all.residual.extend(&own.residual);
            all.standardised.extend(&own.standardised);
            all.studentised.extend(&own.studentised);
            all.cooks_distance.extend(&own.cooks_distance);
            all.dffits.extend(&own.dffits);
        }
        Ok(())
    })
    .unwrap();
    all
}

#[test]
fn influence_is_that_of_statsmodels() {
    let (design, response) = small();
    let mut source = Blocks { rows: rows(&design, &response, None), at_once: 5 };
    let fit = fit(&mut source, &Specification::default()).unwrap();
    let all = every_row(&mut source, &fit);
    let leverage = [
        0.40763950283426,
        0.24374642467107,
        0.40327110094129,
        0.12943990847158,
        0.10039523636175,
        0.2843101565344,
        0.12504550418639,
        0.27858963024598,
        0.17767434603984,
        0.32591398408654,
        0.22645483384471,
        0.2975193717822,
    ];
    let studentised = [
        -0.12828856988573,
        0.33622039043871,
        -0.63816019352496,
        0.50558506000573,
        -1.0512431537832,
        1.7182302074937,
        -0.87807793190529,
        1.3919554482652,
        -1.0845655638002,
        -0.63082144044913,
        1.7852217282631,
        -0.82422029255127,
    ];
    let cooks_distance = [
        0.0042384282672747,
        0.013472752287086,
        0.098207990627802,
        0.013811144352835,
        0.040635319179242,
        0.32125178321886,
        0.037689454438205,
        0.22587886818297,
        0.083089661510531,
        0.068730464546467,
        0.25019994995424,
        0.099449384607502,
    ];
    let dffits = [
        -0.10642240053839,
        0.19087957297722,
        -0.52461381837004,
        0.19495256499161,
        -0.35118330404731,
        1.0829667183073,
        -0.33195129706639,
        0.86500101752089,
        -0.50413430872724,
        -0.43863197222977,
        0.96591769805139,
        -0.53639380165612,
    ];
    let own = &all.responses[0];
    assert!(digits(&all.leverage, &leverage) > 12.0 && digits(&own.studentised, &studentised) > 12.0);
    assert!(digits(&own.cooks_distance, &cooks_distance) > 12.0 && digits(&own.dffits, &dffits) > 12.0);
    let questions = Questions { outstanding: 3, effects_of: &[10], ..Questions::default() };
    let found = diagnose(&mut source, &fit, &questions, &mut |_| Ok(())).unwrap();
    let dfbetas = [-0.24378067297641, 0.76708150950707, -0.078955869234304];
    assert!(digits(found.effects[0].dfbetas.col_as_slice(0), &dfbetas) > 11.0);
    let own = &found.responses[0];
    let tests = [
        own.durbin_watson,
        own.skewness,
        own.kurtosis,
        own.jarque_bera.statistic,
        own.jarque_bera.p,
        own.omnibus.statistic,
        own.omnibus.p,
        own.breusch_pagan.statistic,
        own.breusch_pagan.p,
    ];
    let expected = [
        3.4075403007819,
        0.45467457142359,
        1.6828025586846,
        1.2809624815023,
        0.52703873048955,
        2.6647301015516,
        0.26385249823721,
        3.0487805500541,
        0.21775378631837,
    ];
    assert!(digits(&tests, &expected) > 11.0, "{tests:?}");
    let quantiles = [-1.5786962400541, -1.1714630245983, -0.48944302875865, 1.0362408341567, 2.242797337355];
    assert!(digits(&own.quantiles, &quantiles) > 12.0);
    assert_eq!(own.cooks_distances.iter().map(|row| row.row).collect::<Vec<_>>(), [5, 10, 7]);
    assert_eq!(own.studentised.iter().map(|row| row.row).collect::<Vec<_>>(), [10, 5, 7]);
    assert_eq!(found.leverages.iter().map(|row| row.row).collect::<Vec<_>>(), [0, 2, 9]);
}

#[test]
fn influence_is_what_a_fit_without_the_row_shows() {
    let (design, response) = uneven(8, 40, 3, 1);
    let mut sequence = Sequence(9);
    let weights: Vec<f64> = (0..40).map(|row| if row == 17 { 0.0 } else { 1.5 + sequence.next() }).collect();
    let mut source = rows(&design, &response, Some(&weights));
    let whole = fit(&mut source, &Specification::default()).unwrap();
    let all = every_row(&mut source, &whole);
    let questions = Questions { effects_of: &[4, 30, 4], ..Questions::default() };
    let found = diagnose(&mut source, &whole, &questions, &mut |_| Ok(())).unwrap();
    assert!((all.leverage.iter().sum::<f64>() - 4.0).abs() < 1e-13);
    assert_eq!(all.leverage[17], 0.0);
    assert_eq!(found.effects.len(), 2);
    let mut press = 0.0;
    for row in (0..40).filter(|row| *row != 17) {
        let mut without = weights.clone();
        without[row] = 0.0;
        let other = fit(&mut rows(&design, &response, Some(&without)), &Specification::default()).unwrap();
        let mut predicted = [0.0];
        other.information.predict(&(0..3).map(|column| design[(row, column)]).collect::<Vec<_>>(), &mut predicted);
        let error = response[(row, 0)] - predicted[0];
        press += weights[row] * error * error;
        let deviation = other.statistics[0].residual_std;
        // r/√(1 − h) = e·√(1 − h) for the error e of the prediction.
        let studentised = weights[row].sqrt() * error * (1.0 - all.leverage[row]).sqrt() / deviation;
        assert!(digits(&[all.responses[0].studentised[row]], &[studentised]) > 10.0, "{row}");
        if let Some(effects) = found.effects.iter().find(|effects| effects.row == row as u64) {
            let (one, errors) = (coefficients(&whole), std_errors(&whole));
            let expected: Vec<f64> = (coefficients(&other).iter().zip(&one).zip(&errors))
                .map(|((other, one), error)| (one - other) / (deviation * error / whole.statistics[0].residual_std))
                .collect();
            assert!(digits(effects.dfbetas.col_as_slice(0), &expected) > 10.0);
        }
    }
    assert!(digits(&[found.responses[0].press], &[press]) > 12.0);
}

#[test]
fn a_row_that_decides_a_coefficient_alone_has_no_residual() {
    let (design, response) = uneven(10, 30, 2, 1);
    let marked = Mat::from_fn(30, 3, |row, column| if column < 2 { design[(row, column)] } else { f64::from(u8::from(row == 12)) });
    let mut source = rows(&marked, &response, None);
    let fit = fit(&mut source, &Specification::default()).unwrap();
    let found = diagnose(&mut source, &fit, &Questions { effects_of: &[12], ..Questions::default() }, &mut |_| Ok(())).unwrap();
    assert_eq!((found.decisive, found.leverages[0].row), (1, 12));
    assert!(found.effects[0].dfbetas[(0, 0)].is_nan());
    assert!(found.responses[0].cooks_distances.iter().all(|row| row.row != 12));
    assert!(found.responses[0].press.is_finite());
    let kinds = [Covariance::Hc2, Covariance::Hc3];
    assert!(
        kinds.iter().all(|kind| covariance(&mut source, &fit, *kind).unwrap()[0]
            .col_iter()
            .all(|column| column.iter().all(|cell| cell.is_finite())))
    );
}

#[test]
fn a_visitor_that_has_seen_enough_ends_it() {
    let (design, response) = small();
    let mut source = rows(&design, &response, None);
    let fit = fit(&mut source, &Specification::default()).unwrap();
    let ended = diagnose(&mut source, &fit, &Questions::default(), &mut |_| Err(Error::Interrupted));
    assert_eq!(ended.unwrap_err(), Error::Interrupted);
}

fn estimate(source: &mut dyn RowSource, specification: &Specification<'_>) -> Result<Estimate, Error> {
    let fit = fit(source, specification)?;
    Ok((fit.information.coefficients().to_owned(), fit.information.intercept().to_vec()))
}

/// Every figure of a validation.
fn figures(found: &[Validation]) -> Vec<f64> {
    let scores = found.iter().flat_map(|own| own.folds.iter().chain([&own.pooled]));
    scores.flat_map(|score| [score.rows as f64, score.rmse, score.mae, score.r2]).collect()
}

#[test]
fn two_passes_say_what_many_fits_say() {
    let (design, response) = uneven(11, 230, 4, 2);
    let mut sequence = Sequence(12);
    let weights: Vec<f64> = (0..230).map(|row| if row % 50 == 3 { 0.0 } else { 1.5 + sequence.next() }).collect();
    let constant =
        Mat::from_fn(230, 4, |row, column| if column == 3 { f64::from(u8::from(row == 100)) } else { design[(row, column)] + 1e3 });
    let segment = |row: u64| (row / 46) as u32;
    let plans = [
        Plan::KFold { folds: 5, seed: 1 },
        Plan::HoldOut { fraction: 0.25, seed: 1 },
        Plan::Time { folds: 4, segment: &segment },
        Plan::LeaveOneOut,
    ];
    for (design, tolerance) in [(&design, 12.0), (&constant, 9.0)] {
        for weights in [None, Some(weights.as_slice())] {
            for (intercept, penalty) in [(true, 0.0), (true, 3.0), (false, 0.5)] {
                let specification = Specification { intercept, penalty, ..Specification::default() };
                for plan in plans {
                    let mut source = Blocks { rows: rows(design, &response, weights), at_once: 71 };
                    let fast = validate_least_squares(&mut source, plan, &specification, None).unwrap();
                    let slow = validate(&mut source, plan, &mut |rows| estimate(rows, &specification), None).unwrap();
                    assert!(digits(&figures(&fast), &figures(&slow)) > tolerance, "{plan:?} {specification:?} {fast:?} {slow:?}");
                }
            }
        }
    }
}

#[test]
fn every_row_is_held_out_once_and_folds_sum_to_the_whole() {
    let (design, response) = uneven(13, 101, 2, 1);
    let mut source = rows(&design, &response, None);
    let found = validate_least_squares(&mut source, Plan::KFold { folds: 4, seed: 7 }, &Specification::default(), None).unwrap();
    let own = &found[0];
    assert_eq!((own.folds.len(), own.pooled.rows), (4, 101));
    let squares: f64 = own.folds.iter().map(|fold| fold.rmse * fold.rmse * fold.rows as f64).sum();
    assert!(digits(&[(squares / 101.0).sqrt()], &[own.pooled.rmse]) > 14.0);
    let mean = own.folds.iter().map(|fold| fold.r2).sum::<f64>() / 4.0;
    assert!(digits(&[own.r2.mean], &[mean]) > 14.0 && own.r2.std > 0.0);
    let segment = |row: u64| (row / 34) as u32;
    let in_time = validate_least_squares(&mut source, Plan::Time { folds: 2, segment: &segment }, &Specification::default(), None).unwrap();
    assert_eq!(in_time[0].folds.iter().map(|fold| fold.rows).collect::<Vec<_>>(), [34, 33]);
}

#[test]
fn an_estimator_never_sees_what_it_is_asked_about() {
    let design = Mat::from_fn(60, 1, |row, _| row as f64);
    let mut source = Blocks { rows: rows(&design, &design, None), at_once: 13 };
    let mut seen = Vec::new();
    let segment = |row: u64| (row / 20) as u32;
    let mut told = Vec::new();
    let estimate = &mut |rows: &mut dyn RowSource| {
        let mut latest = 0.0_f64;
        rows.pass(&mut |block| {
            latest = latest.max(block.design.norm_max());
            Ok(())
        })?;
        seen.push(latest);
        Ok((mat![[2.0]], vec![1.0]))
    };
    let mut listener = |held_out: &HeldOut<'_>| {
        for (place, row) in held_out.rows.iter().enumerate() {
            assert_eq!(held_out.response[(place, 0)], *row as f64);
            assert_eq!(held_out.predicted[(place, 0)], 2.0 * *row as f64 + 1.0);
            told.push((*row, held_out.fold));
        }
    };
    validate(&mut source, Plan::Time { folds: 2, segment: &segment }, estimate, Some(&mut listener)).unwrap();
    assert_eq!(seen, [19.0, 39.0]);
    told.sort_unstable();
    assert_eq!(told, (20..60).map(|row| (row, usize::from(row >= 40))).collect::<Vec<_>>());
}

#[test]
fn a_path_of_penalties_is_that_of_scikit_learn() {
    let (design, response) = small();
    let path = ridge_path(&mut rows(&design, &response, None), true, &[0.1, 1.0, 10.0, 100.0]).unwrap();
    let found: Vec<f64> = path.points.iter().map(|point| point.leave_one_out).collect();
    assert!(digits(&found, &[3.2805038454548, 3.2459449869991, 3.0827295675913, 4.7856426786568]) > 12.0, "{found:?}");
    assert_eq!(path.best, 2);
}

#[test]
fn a_path_says_what_leaving_each_row_out_says() {
    let (design, response) = uneven(14, 90, 4, 1);
    let mut sequence = Sequence(15);
    let weights: Vec<f64> = (0..90).map(|row| if row == 8 { 0.0 } else { 1.5 + sequence.next() }).collect();
    // A far origin, odd units, a constant, and a column that is nearly another: no power of two for all of them.
    let hard = Mat::from_fn(90, 6, |row, column| match column {
        0..4 => 100.0 + design[(row, column)] * [1e-3, 1.0, 30.0, 1.0][column],
        4 => 5.0,
        _ => 100.0 + design[(row, 1)] + 1e-6 * design[(row, 3)],
    });
    for design in [&design, &hard] {
        for weights in [None, Some(weights.as_slice())] {
            for intercept in [true, false] {
                let mut source = Blocks { rows: rows(design, &response, weights), at_once: 37 };
                let path = ridge_path(&mut source, intercept, &[1e-3, 0.7, 50.0]).unwrap();
                for point in &path.points {
                    let specification = Specification { intercept, penalty: point.penalty, ..Specification::default() };
                    let whole = fit(&mut source, &specification).unwrap();
                    let left_out = validate_least_squares(&mut source, Plan::LeaveOneOut, &specification, None).unwrap();
                    let figures = &whole.statistics[0];
                    let free = 1.0 - whole.effective_parameters / whole.observations as f64;
                    let expected = [
                        left_out[0].pooled.rmse.powi(2),
                        whole.effective_parameters,
                        figures.residual_sum_of_squares / whole.weight / (free * free),
                    ];
                    let found = [point.leave_one_out, point.effective_parameters, point.generalised_cross_validation];
                    assert!(digits(&found, &expected) > 8.0, "{intercept} {point:?} {expected:?}");
                }
            }
        }
    }
}

#[test]
fn a_path_of_its_own_finds_a_penalty_where_columns_outnumber_rows() {
    let (design, response) = uneven(16, 20, 50, 1);
    let path = ridge_path(&mut rows(&design, &response, None), true, &[]).unwrap();
    assert_eq!(path.points.len(), 100);
    assert!(
        path.points.windows(2).all(|pair| pair[0].penalty < pair[1].penalty && pair[0].effective_parameters > pair[1].effective_parameters)
    );
    assert!(path.points[0].effective_parameters < 20.0 + 1e-9 && path.points[99].effective_parameters > 1.0);
    let best = path.points[path.best];
    assert!(path.points.iter().all(|point| point.leave_one_out >= best.leave_one_out));
}
