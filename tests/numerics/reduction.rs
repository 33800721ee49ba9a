//! Principal components: reference values, what they are by definition, and the sketch against the exact ones.

use faer::Mat;
use lsqd::lsq::{Components, Error, Keep, Matrices, Reduction, Sketch, Specification, component_regression, principal_components};

use super::{Sequence, coefficients, digits, fitted};

const VARIANCES: [f64; 2] = [109.87390808613267, 7.174576383891882];
const EXPLAINED: [f64; 2] = [0.9327156883372884, 0.06090472312302101];
const LOADINGS: [[f64; 3]; 2] =
    [[0.9027057100578545, 0.2978926554730135, 0.3104550963411323], [-0.4188982218896092, 0.4437795786702304, 0.7922019725126898]];
const SLOPES: [f64; 3] = [0.8579048522508315, 0.4661811830631579, 0.589549929362569];
const INTERCEPT: f64 = -91.89321437156977;

fn found(design: &Mat<f64>, weights: Option<&[f64]>, asked: &Reduction) -> Components {
    let response = Mat::<f64>::zeros(design.nrows(), 1);
    principal_components(&mut Matrices { design: design.as_ref(), response: response.as_ref(), weights }, asked).unwrap()
}

fn exactly(keep: Keep, standardise: bool) -> Reduction {
    Reduction { keep, standardise, sketch: None }
}

/// Columns of falling variance, mixed by reflections, away from the origin.
fn mixed(rows: usize, predictors: usize, decay: f64) -> Mat<f64> {
    let mut sequence = Sequence(11);
    let mut design = sequence.matrix(rows, predictors);
    let mut size = 1.0;
    for column in 0..predictors {
        design.col_mut(column).iter_mut().for_each(|value| *value *= size);
        size *= decay;
    }
    let axis: Vec<f64> = (0..predictors).map(|_| sequence.next()).collect();
    let square: f64 = axis.iter().map(|value| value * value).sum();
    for row in 0..rows {
        let along: f64 = (0..predictors).map(|column| design[(row, column)] * axis[column]).sum();
        for column in 0..predictors {
            design[(row, column)] += 3.0 - 2.0 * along * axis[column] / square;
        }
    }
    design
}

#[test]
fn acid_and_air_agree_with_scikit_learn() {
    // Three columns of the first rows of a plant's record, PCA of scikit-learn 1.9.
    let rows =
        [[80.0, 27.0, 89.0, 42.0], [75.0, 25.0, 90.0, 37.0], [62.0, 24.0, 87.0, 28.0], [62.0, 22.0, 87.0, 18.0], [58.0, 18.0, 80.0, 14.0]];
    let design = Mat::from_fn(5, 3, |row, column| rows[row][column]);
    let response = Mat::from_fn(5, 1, |row, _| rows[row][3]);
    let mut source = Matrices { design: design.as_ref(), response: response.as_ref(), weights: None };
    let fit = component_regression(&mut source, &exactly(Keep::Count(2), false)).unwrap();
    assert!(digits(&fit.components.variances, &VARIANCES) > 12.0, "{:?}", fit.components.variances);
    assert!(digits(&fit.components.explained, &EXPLAINED) > 12.0);
    for (place, expected) in LOADINGS.iter().enumerate() {
        assert!(digits(fit.components.loadings.col_as_slice(place), expected) > 11.0);
    }
    assert!(digits(fit.slopes.col_as_slice(0), &SLOPES) > 11.0, "{:?}", fit.slopes);
    assert!(digits(&fit.intercepts, &[INTERCEPT]) > 11.0);
}

#[test]
fn loadings_are_orthonormal_and_scores_have_the_variances() {
    let design = mixed(200, 6, 0.7);
    for standardise in [false, true] {
        let components = found(&design, None, &exactly(Keep::Count(6), standardise));
        let identity = components.loadings.transpose() * &components.loadings;
        assert!((0..6).all(|i| (0..6).all(|j| (identity[(i, j)] - f64::from(u8::from(i == j))).abs() < 1e-13)));
        assert!((components.explained.iter().sum::<f64>() - 1.0).abs() < 1e-13);
        let mut scores = vec![vec![0.0; 6]; 200];
        for (row, scores) in scores.iter_mut().enumerate() {
            let x: Vec<f64> = (0..6).map(|column| design[(row, column)]).collect();
            components.project(&x, scores);
        }
        for one in 0..6 {
            for other in 0..6 {
                let product: f64 = scores.iter().map(|row| row[one] * row[other]).sum::<f64>() / 199.0;
                let expected = if one == other { components.variances[one] } else { 0.0 };
                assert!((product - expected).abs() < 1e-12 * components.variances[0], "{one} {other}");
            }
            let largest = components.loadings.col_as_slice(one).iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap();
            assert!(largest > 0.0);
        }
    }
}

#[test]
fn a_part_of_the_variance_keeps_the_fewest_that_explain_it() {
    let design = mixed(300, 8, 0.6);
    let all = found(&design, None, &exactly(Keep::Variance(1.0), false));
    assert_eq!(all.count(), 8);
    for part in [0.3, 0.7, 0.9, 0.99] {
        let kept = found(&design, None, &exactly(Keep::Variance(part), false));
        let sum: f64 = kept.explained.iter().sum();
        assert!(sum >= part && sum - kept.explained.last().unwrap() < part, "{part} {sum}");
        assert_eq!(kept.variances[..], all.variances[..kept.count()]);
    }
}

#[test]
fn all_components_together_are_least_squares() {
    let design = mixed(150, 5, 0.8);
    let mut sequence = Sequence(2);
    let response: Vec<f64> = (0..150).map(|row| 1.0 + design[(row, 0)] - 2.0 * design[(row, 3)] + sequence.next()).collect();
    let expected = coefficients(&fitted(&design, &response, Specification::default()));
    let response = Mat::from_fn(150, 1, |row, _| response[row]);
    for (standardise, sketch) in [(false, None), (true, None), (false, Some(Sketch::default())), (true, Some(Sketch::default()))] {
        let mut source = Matrices { design: design.as_ref(), response: response.as_ref(), weights: None };
        let fit = component_regression(&mut source, &Reduction { keep: Keep::Count(9), standardise, sketch }).unwrap();
        assert_eq!(fit.components.count(), 5);
        assert!(digits(fit.slopes.col_as_slice(0), &expected[1..]) > 10.0, "{standardise} {sketch:?}");
        assert!(digits(&fit.intercepts, &expected[..1]) > 10.0);
    }
}

#[test]
fn no_more_components_than_the_rows_have() {
    let design = mixed(4, 10, 0.9);
    assert_eq!(found(&design, None, &exactly(Keep::Count(10), false)).count(), 3);
    let sketch = Some(Sketch::default());
    assert_eq!(found(&design, None, &Reduction { keep: Keep::Count(10), standardise: false, sketch }).count(), 3);
    let doubled = Mat::from_fn(50, 4, |row, column| if column == 3 { 7.0 } else { mixed(50, 2, 0.9)[(row, column % 2)] });
    for standardise in [false, true] {
        let components = found(&doubled, None, &exactly(Keep::Count(4), standardise));
        assert_eq!(components.count(), 2);
        assert!(components.loadings[(3, 0)].abs() < 1e-14 && components.scale[3] == 1.0);
    }
}

#[test]
fn weights_are_repeats_up_to_the_count_of_rows() {
    let design = mixed(60, 4, 0.7);
    let weights: Vec<f64> = (0..60_i32).map(|row| f64::from(row % 3)).collect();
    let repeats: Vec<usize> = (0..60).flat_map(|row| std::iter::repeat_n(row, row % 3)).collect();
    let repeated = Mat::from_fn(repeats.len(), 4, |row, column| design[(repeats[row], column)]);
    let sketch = Some(Sketch::default());
    for asked in [exactly(Keep::Count(3), true), Reduction { keep: Keep::Count(3), standardise: true, sketch }] {
        let (one, other) = (found(&design, Some(&weights), &asked), found(&repeated, None, &asked));
        for place in 0..3 {
            assert!(digits(one.loadings.col_as_slice(place), other.loadings.col_as_slice(place)) > 7.0);
        }
        assert!(digits(&one.explained, &other.explained) > 10.0);
        assert!(digits(&one.centre, &other.centre) > 13.0);
    }
}

#[test]
fn the_sketch_spans_what_the_exact_components_span() {
    let design = mixed(500, 120, 0.8);
    for (standardise, seed) in [(false, 1), (false, 2), (true, 3)] {
        let exact = found(&design, None, &exactly(Keep::Count(6), standardise));
        let sketch = Some(Sketch { seed, ..Sketch::default() });
        let sketched = found(&design, None, &Reduction { keep: Keep::Count(6), standardise, sketch });
        assert!(standardise || sketched.converged, "{}", sketched.passes);
        if !sketched.converged {
            // Standardised columns leave a flat spectrum, where components are hardly told apart.
            continue;
        }
        assert!(digits(&sketched.variances, &exact.variances) > 12.0);
        // ‖(I − VVᵀ)V̂‖ is the sine of the largest angle.
        let projected = &exact.loadings * (exact.loadings.transpose() * &sketched.loadings);
        assert!((&sketched.loadings - projected).norm_l2() < 1e-6);
    }
    let again = |seed| {
        let sketch = Some(Sketch { seed, ..Sketch::default() });
        found(&design, None, &Reduction { keep: Keep::Count(3), standardise: false, sketch }).loadings
    };
    assert_eq!(again(5), again(5));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let design = mixed(10, 3, 0.9);
    let response = Mat::<f64>::zeros(10, 1);
    let sketch = Some(Sketch::default());
    let refused = [
        exactly(Keep::Count(0), false),
        exactly(Keep::Variance(0.0), false),
        exactly(Keep::Variance(1.5), false),
        Reduction { keep: Keep::Variance(0.5), standardise: false, sketch },
    ];
    for asked in refused {
        let mut source = Matrices { design: design.as_ref(), response: response.as_ref(), weights: None };
        assert!(matches!(principal_components(&mut source, &asked), Err(Error::Solver(_))), "{asked:?}");
    }
    let one = design.subrows(0, 1);
    let mut source = Matrices { design: one, response: response.subrows(0, 1), weights: None };
    assert!(matches!(principal_components(&mut source, &exactly(Keep::Count(1), false)), Err(Error::Solver(_))));
}
