//! The arithmetic of a fit: which estimator is asked for, what is asked of it besides, and the version that comes of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use faer::Mat;

use super::catalogue::Version;
use super::datasets::Opened;
use super::error::ServiceError;
use super::fit::Plan;
use super::jobs::Running;
use super::rolling::{self, Fold};
use super::source::{self, Source};
use crate::features::{Design, Feature};
use crate::frame::Fault;
use crate::lsq::{self, RowSource};
use crate::model::inputs::{Inputs, Reference, Sample};
use crate::model::version::finite;
use crate::model::{
    Calibrator, Choice, Covariance, Descent, Document, Estimator, FitRecord, FoldRecord, Judging, Moved, Online, PathRecord, Penalty,
    Prior, Selection, Specification, State, Strength, Validation, ValidationRecord,
};

/// The most design columns: the triangular factor alone takes 8·p² bytes.
const WIDEST: usize = 8192;

/// A pretrained model: the version and its state when the fit began.
#[derive(Clone)]
pub(super) struct Pretrained {
    pub(super) version: Arc<Version>,
    pub(super) state: Arc<State>,
}

/// The fit of one estimator.
struct Estimated {
    fit: lsq::Fit,
    /// The estimator with the penalty that was chosen.
    estimator: Estimator,
    selection: Option<Selection>,
    descent: Option<Descent>,
    warnings: Vec<String>,
}

/// What sees each epoch of gradient descent, and may end it.
type Report<'a> = &'a mut dyn FnMut(lsq::Epoch) -> Result<(), lsq::Error>;

/// The arithmetic of a fit, on a thread of the pool.
pub(super) fn compute(
    runtime: &tokio::runtime::Handle,
    running: &Running,
    plan: Plan,
    dataset: Arc<Opened>,
) -> Result<(Document, State), ServiceError> {
    let begun = Instant::now();
    let Plan { specification, columns, features, mut warnings, pretrained, mut classifier, extra, before } = plan;
    let first = source::first_row(&dataset, specification.online.window);
    let mut source = Source {
        runtime,
        running,
        dataset,
        columns,
        design: Design::default(),
        targets: specification.target.len(),
        classes: before.as_ref().and(classifier.as_ref()).map(|classifier| classifier.classes.clone()),
        weighted: specification.weights.is_some(),
        cache: None,
        passes: 0,
        skipped: 0,
        first,
        sample: None,
        last: None,
        remade: Vec::new(),
    };
    match before {
        None => source.make_design(features)?,
        Some(_) => source.design = Design::new(features),
    }
    if source.design.width() > WIDEST {
        return Err(ServiceError::TooLarge(format!("the design has {} columns, more than {WIDEST}", source.design.width())));
    }
    if let Some(classifier) = &mut classifier
        && source.classes.is_none()
    {
        // Of classes that the pretrained model knows, the rows at hand may have none.
        source.find_classes(pretrained.as_ref().map_or(&[], |pretrained| pretrained.version.document.responses()))?;
        classifier.classes = source.classes.clone().unwrap_or_default();
    }
    let responses = classifier.as_ref().map_or(&specification.target, |classifier| &classifier.classes).clone();
    source.sample = specification.watch_inputs.then(|| Sample::of(source.design.columns().len(), source.total_rows() - source.first));
    let names = source.design.column_names();
    check_names(&specification, &names)?;
    let prior = match &before {
        Some(before) => before.prior.as_ref().map(|_| started_from(before, names.len())),
        None => pretrained.as_ref().map(|pretrained| prior_slopes(&names, &responses, pretrained)),
    };
    let information = matches!(specification.prior.as_ref().map(|prior| prior.strength), Some(Strength::Information { .. }));
    let (document_fit, state, estimated) = if let (true, Some(pretrained)) = (information, &pretrained) {
        continue_from(&mut source, pretrained, &specification, &responses)?
    } else {
        let most = if let Estimator::Gradient { epochs, .. } = specification.estimator { epochs } else { 0 };
        let estimated = estimate(&mut source, &specification, &names, prior.as_ref(), &mut |epoch| {
            running.descend(epoch.index as u64, most, epoch.loss);
            if running.is_cancelled() { Err(lsq::Error::Interrupted) } else { Ok(()) }
        })?;
        (FitRecord::of(&estimated.fit), State::of(&estimated.fit), Some(estimated))
    };
    let (mut document_fit, mut state) = (document_fit, state);
    // The first rows have no past values, whatever else they lack.
    let without_past = (source.design.reach() as u64).min(source.total_rows()).saturating_sub(source.first);
    if without_past > 0 {
        warnings.push(format!("the first {without_past} rows were left out: the past values that they take are before the first row"));
    }
    if source.skipped > without_past {
        let (skipped, total) = (source.skipped - without_past, source.total_rows());
        warnings.push(format!("{skipped} of {total} rows were left out because a value is missing in them"));
    }
    let mut descent = None;
    let (mut solver, mut estimator, mut selection, mut inflation) =
        ("recursive".to_owned(), specification.estimator.clone(), None, vec![None; names.len()]);
    if let Some(mut estimated) = estimated {
        warnings.extend(warnings_of(&estimated.fit, &names, &responses, &specification));
        warnings.append(&mut estimated.warnings);
        if specification.covariance != Covariance::Classical {
            let codes = if extra.cluster { source.groups()? } else { Vec::new() };
            estimated.fit.assume(&mut source, covariance_of(&specification.covariance, &codes))?;
            (document_fit, state) = (FitRecord::of(&estimated.fit), State::of(&estimated.fit));
        }
        solver = estimated.fit.solver.as_str().to_owned();
        estimator = estimated.estimator;
        selection = estimated.selection;
        descent = estimated.descent;
        inflation = estimated.fit.variance_inflation.iter().map(|factor| finite(*factor)).collect();
    }
    if classifier.is_some() {
        state = state.with_labels();
        let mut judging = Judging::of(responses.len(), 0, None);
        let information = state.information();
        let estimate = (information.coefficients().to_owned(), information.intercept().to_vec());
        lsq::predict(&mut source, &estimate, &mut |told| judging.hear(told))?;
        document_fit.accuracy = judging.accuracy();
    }
    let validation = specification
        .validation
        .as_ref()
        .map(|validation| {
            let segments = match validation {
                Validation::Time { column: Some(_), folds, .. } => {
                    check_order(&mut source)?;
                    segments(&source.moments()?, *folds)
                }
                Validation::Time { column: None, folds, .. } => {
                    let rows = source.total_rows() - source.first - source.skipped;
                    #[allow(clippy::cast_precision_loss)] // rows of a dataset
                    segments(&(0..rows).map(|row| row as f64).collect::<Vec<_>>(), *folds)
                }
                _ => Vec::new(),
            };
            validated(&mut source, validation, &segments, &specification, &estimator, &names, prior.as_ref())
        })
        .transpose()?;
    let (validation, calibrator) = validation.unzip();
    if let Some(classifier) = &mut classifier {
        classifier.calibrator = calibrator.flatten();
    }
    if let Some(window) = specification.online.window {
        let low = source.design.is_extended();
        state = state.with_window(&mut source, low, window)?;
    }
    state = state.with_history(source.history());
    let inputs = source.sample.take().map_or(Inputs::Off, |sample| {
        let summary = &source.dataset.description.summary;
        let missing = source.columns.iter().take(source.design.columns().len()).map(|read| summary.missing(read.column)).collect();
        Inputs::Known(Box::new(Reference::of(sample, &source.design, &state, missing)))
    });
    let moved = match &before {
        Some(before) => moved_again(before, &state),
        None => pretrained.as_ref().map(|pretrained| moved(&names, &responses, pretrained, &state)).unwrap_or_default(),
    };
    let document = Document {
        dataset: specification.dataset,
        dataset_tag: source.dataset.description.tag(),
        estimator,
        solver,
        target: specification.target,
        classifier,
        features: source.design.features().to_vec(),
        intercept: specification.intercept,
        weights: specification.weights,
        online: specification.online,
        variance_inflation: inflation,
        fit: document_fit,
        covariance: specification.covariance,
        selection,
        descent,
        validation,
        prior: specification.prior,
        moved,
        constraints: specification.constraints,
        warnings,
        fit_seconds: begun.elapsed().as_secs_f64(),
        refit: None,
        inputs,
        unlearnt: None,
    };
    Ok((document, state))
}

/// A fit that was made again.
pub(super) enum Refit {
    /// Linear in the response.
    Linear(lsq::Fit),
    /// By an M-estimator.
    Robust(lsq::RobustFit),
}

/// The fit that a stored version came from: of least squares, weighted, ridge, or around a prior, or a robust one.
pub(super) fn again(source: &mut Source<'_>, document: &Document) -> Result<Refit, lsq::Error> {
    if let Some(asked) = robustness(&document.estimator, document.intercept) {
        return lsq::robust(source, &asked).map(Refit::Robust);
    }
    let penalty = match (&document.estimator, &document.prior) {
        (Estimator::Ridge { penalty: Penalty::Fixed(penalty), .. }, _) | (_, Some(Prior { strength: Strength::Number(penalty), .. })) => {
            *penalty
        }
        _ => 0.0,
    };
    // The pretrained model may have learnt since, or be gone: its coefficients of that time stand in the version's own record.
    let prior = document.prior.as_ref().map(|_| started_from(document, source.predictors()));
    let solver = lsq::Solver::parse(&document.solver).unwrap_or_default();
    let asked = lsq::Specification { intercept: document.intercept, penalty, solver, prior: prior.as_ref().map(Mat::as_ref) };
    lsq::fit(source, &asked).map(Refit::Linear)
}

/// The slopes that a prior pulled towards, p×q.
fn started_from(document: &Document, predictors: usize) -> Mat<f64> {
    let from: Vec<f64> = document.moved.iter().map(|moved| moved.from.unwrap_or(0.0)).collect();
    Mat::from_fn(predictors, document.responses().len(), |row, column| from.get(column * predictors + row).copied().unwrap_or(0.0))
}

/// Bounds and constraints speak of design columns, which are known only now.
fn check_names(specification: &Specification, names: &[String]) -> Result<(), ServiceError> {
    let mut faults = Vec::new();
    let mut check = |pointer: String, name: &String, intercept: bool| {
        if !(names.contains(name) || intercept && specification.intercept && name == "(intercept)") {
            faults.push(Fault {
                pointer,
                detail: "the design has no such column; the version's `coefficients` name those it has".to_owned(),
            });
        }
    };
    if let Estimator::Nnls { lower, upper } = &specification.estimator {
        lower.keys().for_each(|name| check("/estimator/lower".to_owned(), name, false));
        upper.keys().for_each(|name| check("/estimator/upper".to_owned(), name, false));
    }
    for (index, constraint) in specification.constraints.iter().enumerate() {
        constraint.coefficients.keys().for_each(|name| check(format!("/constraints/{index}/coefficients"), name, true));
    }
    if faults.is_empty() { Ok(()) } else { Err(ServiceError::Request(faults)) }
}

/// The pretrained model's slopes in this design's columns, p×q; zero where it lacks a column or a response.
fn prior_slopes(names: &[String], responses: &[String], pretrained: &Pretrained) -> Mat<f64> {
    let known = pretrained.version.design.column_names();
    let information = pretrained.state.information();
    let places: BTreeMap<&str, usize> = known.iter().enumerate().map(|(place, name)| (name.as_str(), place)).collect();
    Mat::from_fn(names.len(), responses.len(), |row, column| {
        let response = pretrained.version.document.responses().iter().position(|response| *response == responses[column]);
        match (places.get(names[row].as_str()), response) {
            (Some(&place), Some(response)) => information.coefficients()[(place, response)],
            _ => 0.0,
        }
    })
}

/// How far each slope moved.
fn moved(names: &[String], responses: &[String], pretrained: &Pretrained, state: &State) -> Vec<Moved> {
    let known = pretrained.version.design.column_names();
    let before = pretrained.state.information();
    let after = state.information();
    let mut moved = Vec::new();
    for (response, target) in responses.iter().enumerate() {
        let old = pretrained.version.document.responses().iter().position(|name| name == target);
        for (row, name) in names.iter().enumerate() {
            let place = known.iter().position(|known| known == name);
            let from = place.zip(old).map(|(place, old)| before.coefficients()[(place, old)]);
            moved.push(Moved { target: target.clone(), name: name.clone(), from, to: after.coefficients()[(row, response)] });
        }
    }
    moved
}

/// The same for a fit made anew, whose pretrained model may have learnt since or be gone.
fn moved_again(before: &Document, state: &State) -> Vec<Moved> {
    let coefficients = state.information().coefficients();
    let to = (0..coefficients.ncols()).flat_map(|response| (0..coefficients.nrows()).map(move |row| coefficients[(row, response)]));
    before.moved.iter().zip(to).map(|(moved, to)| Moved { to, ..moved.clone() }).collect()
}

/// Fine-tuning with the pretrained model's own information: its state learns the rows, as if it had seen them with its own.
fn continue_from(
    source: &mut Source<'_>,
    pretrained: &Pretrained,
    specification: &Specification,
    responses: &[String],
) -> Result<(FitRecord, State, Option<Estimated>), ServiceError> {
    let before = &pretrained.version.document;
    // A column may have been whole numbers in one table and floats in the other: it is the same column of X.
    let alike = |(old, new): (&Feature, &Feature)| old.name == new.name && old.encoding == new.encoding && old.columns == new.columns;
    let (old, new) = (pretrained.version.design.features(), source.design.features());
    let same_design = old.len() == new.len() && old.iter().zip(new).all(alike);
    if before.target != specification.target
        || responses != before.responses()
        || before.intercept != specification.intercept
        || !same_design
    {
        return Err(ServiceError::request(
            "/prior/strength",
            "the pretrained model's information needs its own target, classes, intercept and features, levels included; a number needs only names in common",
        ));
    }
    let mut state = pretrained.state.afresh();
    let online = Online::default();
    source.pass(&mut |block| state.learn_block(block))?;
    let record = state.record(&before.fit, &online);
    Ok((record, state.afresh(), None))
}

fn intercepts(fit: &lsq::Fit, responses: usize) -> Vec<f64> {
    let found = fit.information.intercept();
    if found.is_empty() { vec![0.0; responses] } else { found.to_vec() }
}

/// One estimator on some rows.
fn estimate(
    source: &mut dyn RowSource,
    specification: &Specification,
    names: &[String],
    prior: Option<&Mat<f64>>,
    report: Report<'_>,
) -> Result<Estimated, lsq::Error> {
    let (intercept, responses) = (specification.intercept, source.responses());
    let plain = lsq::Specification { intercept, solver: specification.solver, ..lsq::Specification::default() };
    let done = |fit| Estimated { fit, estimator: specification.estimator.clone(), selection: None, descent: None, warnings: Vec::new() };
    if !specification.constraints.is_empty() {
        return constrained(source, specification, names).map(done);
    }
    match &specification.estimator {
        Estimator::Ols => match (&specification.prior, prior) {
            (Some(asked), Some(prior)) => {
                let Strength::Number(penalty) = asked.strength else {
                    return Err(lsq::Error::Solver("a prior's strength is a number here"));
                };
                Ok(done(lsq::fit(source, &lsq::Specification { penalty, prior: Some(prior.as_ref()), ..plain })?))
            }
            _ => Ok(done(lsq::fit(source, &plain)?)),
        },
        Estimator::Ridge { penalty: Penalty::Fixed(penalty), .. } => {
            Ok(done(lsq::fit(source, &lsq::Specification { penalty: *penalty, ..plain })?))
        }
        Estimator::Ridge { penalty: Penalty::Chosen(_), penalties } => {
            let path = lsq::ridge_path(source, intercept, penalties)?;
            let best = path.points.get(path.best).ok_or(lsq::Error::Solver("there is no penalty to choose from"))?.penalty;
            let points = path.points.iter().map(|point| PathRecord {
                penalty: point.penalty,
                score: finite(point.leave_one_out),
                std_error: None,
                gcv: finite(point.generalised_cross_validation),
                effective_parameters: finite(point.effective_parameters),
                nonzero: None,
            });
            let selection = Selection { by: "leave_one_out".to_owned(), penalty: best, path: points.collect() };
            Ok(Estimated {
                fit: lsq::fit(source, &lsq::Specification { penalty: best, ..plain })?,
                estimator: Estimator::Ridge { penalty: Penalty::Fixed(best), penalties: penalties.clone() },
                selection: Some(selection),
                descent: None,
                warnings: Vec::new(),
            })
        }
        Estimator::Lasso { penalty, choice, positive } => {
            let mut estimated = elastic_net(source, intercept, *penalty, 1.0, *choice, *positive)?;
            let penalty = Penalty::Fixed(estimated.1);
            estimated.0.estimator = Estimator::Lasso { penalty, choice: *choice, positive: *positive };
            Ok(estimated.0)
        }
        Estimator::ElasticNet { penalty, l1_ratio, choice, positive } => {
            let mut estimated = elastic_net(source, intercept, *penalty, *l1_ratio, *choice, *positive)?;
            let penalty = Penalty::Fixed(estimated.1);
            estimated.0.estimator = Estimator::ElasticNet { penalty, l1_ratio: *l1_ratio, choice: *choice, positive: *positive };
            Ok(estimated.0)
        }
        Estimator::Huber { .. } | Estimator::Bisquare { .. } => robust(source, specification),
        Estimator::Nnls { lower, upper } => {
            let bound = |bounds: &BTreeMap<String, f64>, otherwise: f64| {
                names.iter().map(|name| bounds.get(name).copied().unwrap_or(otherwise)).collect()
            };
            let bounds = lsq::Bounds { lower: bound(lower, 0.0), upper: bound(upper, f64::INFINITY) };
            let found = lsq::bounded(source, intercept, &bounds)?;
            let free = found.active.iter().filter(|active| **active).count() + usize::from(intercept);
            #[allow(clippy::cast_precision_loss)]
            let given = lsq::Given {
                slopes: found.slopes.as_ref(),
                intercepts: &found.intercepts,
                active: &found.active,
                effective_parameters: free as f64,
            };
            let mut estimated = done(lsq::around(source, &plain, &given)?);
            estimated.warnings.push(
                "standard errors and intervals take it as known which coefficients are at a bound; those have none of their own".to_owned(),
            );
            Ok(estimated)
        }
        Estimator::Gradient { learning_rate, momentum, batch_size, epochs, tolerance, seed } => {
            let none: [f64; 0] = [];
            let asked = lsq::Gradient {
                intercept,
                learning_rate: match learning_rate {
                    Penalty::Fixed(rate) => lsq::LearningRate::Fixed(*rate),
                    Penalty::Chosen(_) => lsq::LearningRate::Auto,
                },
                momentum: if *momentum > 0.0 { lsq::Momentum::HeavyBall(*momentum) } else { lsq::Momentum::None },
                batch_size: batch_size.and_then(|size| usize::try_from(size).ok()),
                epochs: usize::try_from(*epochs).unwrap_or(usize::MAX),
                tolerance: *tolerance,
                seed: *seed,
                start: prior.map(|prior| (prior.as_ref(), &none[..])),
            };
            let found = lsq::gradient(source, &asked, report)?;
            let intercepts = if intercept { found.intercepts } else { vec![0.0; responses] };
            #[allow(clippy::cast_precision_loss)]
            let given = lsq::Given {
                slopes: found.slopes.as_ref(),
                intercepts: &intercepts,
                active: &vec![true; names.len()],
                effective_parameters: (names.len() + usize::from(intercept)) as f64,
            };
            let mut estimated = done(lsq::around(source, &plain, &given)?);
            if !found.converged {
                estimated.warnings.push(format!("gradient descent had not converged after {} epochs", found.epochs));
            }
            estimated.descent = Some(Descent {
                epochs: found.epochs as u64,
                converged: found.converged,
                learning_rate: found.learning_rate,
                losses: found.losses.into_iter().take(1000).collect(),
            });
            Ok(estimated)
        }
        Estimator::Pca { components, standardise, sketch } => {
            principal_components(source, *components, *standardise, *sketch, specification)
        }
    }
}

/// Regression on principal components, with the errors of the coefficients that follow from those of the components'.
fn principal_components(
    source: &mut dyn RowSource,
    components: u64,
    standardise: bool,
    sketch: bool,
    specification: &Specification,
) -> Result<Estimated, lsq::Error> {
    let reduction = lsq::Reduction {
        keep: lsq::Keep::Count(usize::try_from(components).unwrap_or(usize::MAX)),
        standardise,
        sketch: sketch.then(lsq::Sketch::default),
    };
    let found = lsq::component_regression(source, &reduction)?;
    let kept = &found.components;
    let (width, count) = (kept.centre.len(), kept.count());
    #[allow(clippy::cast_precision_loss)]
    let given = lsq::Given {
        slopes: found.slopes.as_ref(),
        intercepts: &found.intercepts,
        active: &vec![true; width],
        effective_parameters: (count + 1) as f64,
    };
    let mut fit = lsq::around(source, &lsq::Specification { solver: specification.solver, ..lsq::Specification::default() }, &given)?;
    // The components' coefficients are independent with variances s²/Σwz², and Σwz² is Σw·(n − 1)/n·variance whatever the weights' unit;
    // slopes are loadings/scale times them.
    #[allow(clippy::cast_precision_loss)]
    let rows = fit.observations as f64;
    let total = fit.weight * ((rows - 1.0) / rows);
    let root =
        Mat::from_fn(width, count, |row, column| kept.loadings[(row, column)] / kept.scale[row] / (total * kept.variances[column]).sqrt());
    let slopes = &root * root.transpose();
    let centre = faer::ColRef::from_slice(&kept.centre);
    let with_level = &slopes * centre;
    let level = 1.0 / fit.weight + centre.transpose() * &with_level;
    let unscaled = Mat::from_fn(width + 1, width + 1, |row, column| match (row, column) {
        (0, 0) => level,
        (0, other) | (other, 0) => -with_level[other - 1],
        _ => slopes[(row - 1, column - 1)],
    });
    let covariances: Vec<Mat<f64>> =
        fit.information.residual_variance().iter().map(|variance| &unscaled * faer::Scale(*variance)).collect();
    if covariances.iter().all(|covariance| covariance.norm_max().is_finite()) {
        fit.information.set_raw_covariance(&covariances, None)?;
    }
    let mut warnings = vec![format!(
        "the {count} components explain {:.4} of the predictors' variance; standard errors and intervals take the components as known",
        kept.explained.iter().sum::<f64>()
    )];
    if !kept.converged {
        warnings.push("the sketch had not converged: ask for the exact components".to_owned());
    }
    Ok(Estimated { fit, estimator: specification.estimator.clone(), selection: None, descent: None, warnings })
}

/// Lasso and elastic net; with the fit goes the penalty that was used.
fn elastic_net(
    source: &mut dyn RowSource,
    intercept: bool,
    penalty: Penalty,
    l1_ratio: f64,
    choice: Choice,
    positive: bool,
) -> Result<(Estimated, f64), lsq::Error> {
    let asked = match penalty {
        Penalty::Fixed(penalty) => lsq::ElasticPenalty::Fixed(penalty),
        Penalty::Chosen(_) => lsq::ElasticPenalty::Auto {
            folds: choice.folds,
            seed: choice.seed,
            one_standard_error: choice.one_standard_error,
            points: 100,
            smallest: 1e-3,
        },
    };
    let found = lsq::elastic_net(source, &lsq::ElasticNet { penalty: asked, l1_ratio, intercept, positive })?;
    let given = lsq::Given {
        slopes: found.slopes.as_ref(),
        intercepts: &found.intercepts,
        active: &found.active,
        effective_parameters: found.effective_parameters,
    };
    // The active columns' information holds the quadratic part of the penalty, n·penalty·(1 − l1_ratio) in the units of a sum of squares.
    let quadratic = found.weight * found.penalty * (1.0 - l1_ratio);
    let specification = lsq::Specification { intercept, penalty: quadratic, ..lsq::Specification::default() };
    let fit = lsq::around(source, &specification, &given)?;
    let selection = matches!(penalty, Penalty::Chosen(_)).then(|| Selection {
        by: "cross_validation".to_owned(),
        penalty: found.penalty,
        path: found
            .path
            .iter()
            .map(|point| PathRecord {
                penalty: point.penalty,
                score: point.validation_mean.and_then(finite),
                std_error: point.validation_std_error.and_then(finite),
                gcv: None,
                effective_parameters: None,
                nonzero: Some(point.nonzero as u64),
            })
            .collect(),
    });
    let warnings = vec![
        "standard errors and intervals are conditional on the penalty and on which coefficients it left: they know nothing of the choice"
            .to_owned(),
    ];
    Ok((Estimated { fit, estimator: Estimator::Ols, selection, descent: None, warnings }, found.penalty))
}

/// What is asked of a robust fit; `None` for other estimators.
fn robustness(estimator: &Estimator, intercept: bool) -> Option<lsq::Robust> {
    let (loss, rounds) = match *estimator {
        Estimator::Huber { threshold, rounds } => (lsq::Loss::Huber { threshold }, rounds),
        Estimator::Bisquare { threshold, rounds } => (lsq::Loss::Bisquare { threshold }, rounds),
        _ => return None,
    };
    Some(lsq::Robust { loss, intercept, rounds: usize::try_from(rounds).unwrap_or(usize::MAX), ..lsq::Robust::default() })
}

fn robust(source: &mut dyn RowSource, specification: &Specification) -> Result<Estimated, lsq::Error> {
    let asked =
        robustness(&specification.estimator, specification.intercept).ok_or(lsq::Error::Solver("this estimator is not a robust one"))?;
    let found = lsq::robust(source, &asked)?;
    let mut warnings = Vec::new();
    if !found.converged {
        warnings.push(format!("the reweighting had not settled after {} rounds", found.rounds));
    }
    #[allow(clippy::cast_precision_loss)]
    let lowered = found.weights.iter().filter(|weight| **weight < 0.5).count();
    if lowered > 0 {
        warnings.push(format!("{lowered} of {} rows count for less than half of their weight", found.weights.len()));
    }
    Ok(Estimated { fit: found.into_fit()?, estimator: specification.estimator.clone(), selection: None, descent: None, warnings })
}

fn constrained(source: &mut dyn RowSource, specification: &Specification, names: &[String]) -> Result<lsq::Fit, lsq::Error> {
    let constraints = &specification.constraints;
    let responses = source.responses();
    let value = |row: usize, name: &str| constraints[row].coefficients.get(name).copied().unwrap_or(0.0);
    let asked = lsq::Constraints {
        slopes: Mat::from_fn(constraints.len(), names.len(), |row, column| value(row, &names[column])),
        intercept: specification.intercept.then(|| (0..constraints.len()).map(|row| value(row, "(intercept)")).collect()),
        values: Mat::from_fn(constraints.len(), responses, |row, _| constraints[row].value),
    };
    let found = lsq::constrained(source, specification.intercept, &asked)?;
    #[allow(clippy::cast_precision_loss)]
    let spent = found.observations as f64 - found.degrees_of_freedom;
    let given = lsq::Given {
        slopes: found.slopes.as_ref(),
        intercepts: &found.intercepts,
        active: &vec![true; names.len()],
        effective_parameters: spent,
    };
    let plain = lsq::Specification { intercept: specification.intercept, ..lsq::Specification::default() };
    let mut fit = lsq::around(source, &plain, &given)?;
    let covariances: Vec<Mat<f64>> =
        fit.information.residual_variance().iter().map(|variance| &found.unscaled_covariance * faer::Scale(*variance)).collect();
    if covariances.iter().all(|covariance| covariance.norm_max().is_finite()) {
        fit.information.set_raw_covariance(&covariances, None)?;
    }
    Ok(fit)
}

fn covariance_of<'a>(covariance: &Covariance, codes: &'a [u32]) -> lsq::Covariance<'a> {
    match covariance {
        Covariance::Classical => lsq::Covariance::Classical,
        Covariance::Hc0 => lsq::Covariance::Hc0,
        Covariance::Hc1 => lsq::Covariance::Hc1,
        Covariance::Hc2 => lsq::Covariance::Hc2,
        Covariance::Hc3 => lsq::Covariance::Hc3,
        Covariance::Hac { lags } => lsq::Covariance::Hac { lags: usize::try_from(*lags).unwrap_or(usize::MAX) },
        Covariance::Cluster { .. } => lsq::Covariance::Cluster { groups: codes },
    }
}

/// Past values are those of rows before in the dataset, which has to be in the order of time then.
fn check_order(source: &mut Source<'_>) -> Result<(), ServiceError> {
    let row = if source.design.past().is_empty() { None } else { source.out_of_order()? };
    row.map_or(Ok(()), |row| {
        let detail = format!("row {row} of the dataset comes before the row above it by this column: past values are those of rows above");
        Err(ServiceError::request("/validation/column", detail))
    })
}

/// The segment of time, in 0..=folds, of each row: as many rows in each as ties allow.
fn segments(moments: &[f64], folds: u32) -> Vec<u32> {
    let mut sorted = moments.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let count = u64::from(folds) + 1;
    let cuts: Vec<f64> = (1..count)
        .filter_map(|index| sorted.get(usize::try_from(index * sorted.len() as u64 / count).unwrap_or(usize::MAX)).copied())
        .collect();
    #[allow(clippy::cast_possible_truncation)] // at most `folds`
    moments.iter().map(|moment| cuts.iter().filter(|cut| *cut <= moment).count() as u32).collect()
}

fn validated(
    source: &mut Source<'_>,
    validation: &Validation,
    segments: &[u32],
    specification: &Specification,
    estimator: &Estimator,
    names: &[String],
    prior: Option<&Mat<f64>>,
) -> Result<(ValidationRecord, Option<Calibrator>), ServiceError> {
    let segment = |row: u64| usize::try_from(row).ok().and_then(|row| segments.get(row)).copied().unwrap_or(0);
    let plan = match validation {
        Validation::KFold { folds, seed } => lsq::Plan::KFold { folds: *folds, seed: *seed },
        Validation::Loo => lsq::Plan::LeaveOneOut,
        Validation::Holdout { fraction, seed } => lsq::Plan::HoldOut { fraction: *fraction, seed: *seed },
        Validation::Time { folds, .. } => lsq::Plan::Time { folds: *folds, segment: &segment },
    };
    let penalty = match estimator {
        Estimator::Ols => Some(0.0),
        Estimator::Ridge { penalty: Penalty::Fixed(penalty), .. } => Some(*penalty),
        _ => None,
    };
    let simple = specification.prior.is_none() && specification.constraints.is_empty() && specification.solver == lsq::Solver::Auto;
    // What a class will be is not forecast step by step.
    let with_past = !source.design.past().is_empty() && source.classes.is_none();
    let mut kept: Vec<lsq::Estimate> = Vec::new();
    let responses = source.responses();
    let mut judging = source.classes.is_some().then(|| Judging::of(responses, source.total_rows(), specification.calibration));
    let mut hear = judging.as_mut().map(|judging| |told: &lsq::HeldOut<'_>| judging.hear(told));
    let listener: lsq::Listener<'_> = match &mut hear {
        Some(hear) => Some(hear),
        None => None,
    };
    let mut estimated = |rows: &mut dyn RowSource| {
        let estimated = estimate(rows, specification, names, prior, &mut |_| Ok(()))?;
        let found = (estimated.fit.information.coefficients().to_owned(), intercepts(&estimated.fit, responses));
        if with_past {
            kept.push(found.clone());
        }
        Ok(found)
    };
    let found = match penalty {
        // Leaving rows out by their leverage takes the columns as given, and one by one they are too many folds.
        _ if source.design.learns() && matches!(validation, Validation::Loo) => {
            return Err(ServiceError::request(
                "/validation/kind",
                "`loo` is for features that learn nothing from the rows that are left out; ask for `kfold`",
            ));
        }
        // What features learn, they learn in each fold from its training rows.
        _ if source.design.learns() => {
            let design = source.design.clone();
            let found = lsq::validate_remade(source, plan, &mut estimated, listener);
            source.design = design;
            found?
        }
        // A penalty chosen by the data is chosen anew in each fold: choosing it is part of the fit.
        Some(penalty) if simple && !with_past && *estimator == specification.estimator => {
            let asked = lsq::Specification { intercept: specification.intercept, penalty, ..lsq::Specification::default() };
            lsq::validate_least_squares(source, plan, &asked, listener)?
        }
        _ if matches!(validation, Validation::Loo) => {
            return Err(ServiceError::request(
                "/validation/kind",
                "`loo` is for `ols` and `ridge` with a penalty of its own; ask for `kfold`",
            ));
        }
        _ => lsq::validate(source, plan, &mut estimated, listener)?,
    };
    let record =
        |score: &lsq::FoldScore| FoldRecord { rows: score.rows, rmse: finite(score.rmse), mae: finite(score.mae), r2: finite(score.r2) };
    let steps = match validation {
        Validation::Time { steps, .. } if with_past => {
            let steps = steps.unwrap_or_else(|| u32::try_from(source.design.horizon()).unwrap_or(1));
            if source.total_rows().saturating_mul(source.columns.len() as u64) > rolling::CELLS {
                let detail = "a series of so many rows and columns is not forecast from every row: fit it without `validation`".to_owned();
                return Err(ServiceError::TooLarge(detail));
            }
            let series = source.series()?;
            let designs = source.remade.iter().chain(std::iter::repeat(&source.design));
            let folds: Vec<Fold<'_>> = kept.iter().zip(designs).map(|(estimate, design)| Fold { design, estimate }).collect();
            rolling::scores(source.running, &series, segments, &folds, &specification.target, steps)?
        }
        _ => Vec::new(),
    };
    let (labels, calibrator) = judging.map(|judging| judging.conclude(!matches!(validation, Validation::Loo))).unzip();
    let record = ValidationRecord {
        steps,
        plan: validation.clone(),
        folds: found.iter().map(|found| found.folds.iter().map(record).collect()).collect(),
        pooled: found.iter().map(|found| record(&found.pooled)).collect(),
        labels,
    };
    Ok((record, calibrator.flatten()))
}

/// What a reader must know before trusting the fit, in plain words.
fn warnings_of(fit: &lsq::Fit, names: &[String], responses: &[String], specification: &Specification) -> Vec<String> {
    let named = |columns: &[usize]| {
        columns.iter().map(|column| names.get(*column).map_or("the intercept", String::as_str)).collect::<Vec<_>>().join(", ")
    };
    let mut warnings = Vec::new();
    if !fit.constant.is_empty() && specification.intercept {
        warnings.push(format!("these columns do not vary, so they tell nothing that the intercept does not: {}", named(&fit.constant)));
    }
    for group in &fit.collinear {
        warnings.push(format!(
            "the design is rank deficient: these columns are linear combinations of one another, and share their effect by the minimum-norm solution: {}",
            named(group)
        ));
    }
    if fit.degrees_of_freedom <= 0.0 {
        warnings.push("there are no degrees of freedom left: standard errors, tests and intervals are not defined".to_owned());
    }
    for (target, exact) in responses.iter().zip(&fit.exact_fit) {
        if *exact {
            warnings
                .push(format!("the fit of {target} is exact to rounding: its residuals are zero, so F is infinite and tests mean nothing"));
        }
    }
    if fit.digits < 6.0 {
        warnings.push(format!(
            "the problem is so ill-conditioned that only about {:.0} digits of the worst coefficient can be trusted",
            fit.digits.max(0.0)
        ));
    }
    if matches!(specification.estimator, Estimator::Ridge { .. }) || specification.prior.is_some() {
        warnings.push("standard errors and intervals are conditional on the penalty".to_owned());
    }
    warnings
}
