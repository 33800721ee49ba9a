//! `Accept: text/plain` on a version: the summary table as statisticians know it.

use std::fmt::Write as _;

use super::models::{coefficients, dataset, fit_now};
use crate::model::State;
use crate::service::{Holder, Version};

/// The table.
pub(super) fn table(holder: &Holder, version: &Version, state: &State) -> String {
    let document = &version.document;
    let fit = fit_now(version, state);
    let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), significant);
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{} version {}, sequence {}", version.model, version.number, state.sequence());
    let _ = writeln!(
        text,
        "dataset {}   observations {}   rank {}   degrees of freedom {}   solver {}",
        dataset(holder, document).unwrap_or("-"),
        fit.observations,
        fit.rank,
        significant(fit.degrees_of_freedom),
        document.solver
    );
    let _ = writeln!(text, "condition number {}   digits {}", shown(fit.condition_number), shown(fit.digits));
    if let Some(accuracy) = fit.accuracy {
        let _ = writeln!(text, "accuracy on the training rows {}", significant(accuracy));
    }
    if let Some(labels) = document.validation.as_ref().and_then(|validation| validation.labels.as_ref()) {
        let (accuracy, loss) = (shown(labels.pooled.accuracy), shown(labels.pooled.log_loss));
        let _ = writeln!(text, "on held-out rows: accuracy {accuracy}   log-loss {loss}");
    }
    let lines = coefficients(version, state);
    let width = lines.iter().map(|line| line.name.chars().count()).max().unwrap_or(0).max(11);
    for (target, record) in document.responses().iter().zip(&fit.targets) {
        let _ = writeln!(text, "\n{} {target}", if document.classifier.is_some() { "class" } else { "target" });
        let _ = writeln!(
            text,
            "R² {}   adjusted R² {}   s {}   F {} (p {})",
            shown(record.r2),
            shown(record.adjusted_r2),
            shown(record.residual_std),
            shown(record.f),
            shown(record.f_p)
        );
        let _ = writeln!(text, "log-likelihood {}   AIC {}   BIC {}", shown(record.log_likelihood), shown(record.aic), shown(record.bic));
        let _ = writeln!(
            text,
            "\n{:width$} {:>14} {:>14} {:>11} {:>11} {:>14} {:>14}",
            "coefficient", "estimate", "std. error", "t", "P>|t|", "2.5 %", "97.5 %"
        );
        for line in lines.iter().filter(|line| line.target == *target) {
            let _ = writeln!(
                text,
                "{:width$} {:>14} {:>14} {:>11} {:>11} {:>14} {:>14}",
                line.name,
                significant(line.estimate),
                shown(line.std_error),
                shown(line.t),
                shown(line.p),
                shown(line.lower),
                shown(line.upper)
            );
        }
    }
    for warning in &document.warnings {
        let _ = writeln!(text, "\nwarning: {warning}");
    }
    text
}

/// Six significant digits.
fn significant(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let magnitude = value.abs().log10().floor();
    if (-4.0..9.0).contains(&magnitude) {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // between 0 and 9
        let decimals = (5.0 - magnitude).clamp(0.0, 9.0) as usize;
        let text = format!("{value:.decimals$}");
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    } else {
        format!("{value:.4e}")
    }
}

#[cfg(test)]
mod tests {
    use super::significant;

    #[test]
    fn six_digits_whatever_the_size() {
        for (value, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (-3_482_258.634, "-3482259"),
            (0.995_479_004_6, "0.995479"),
            (4.86e9, "4.8600e9"),
            (1.5e-7, "1.5000e-7"),
            (12.5, "12.5"),
        ] {
            assert_eq!(significant(value), text);
        }
    }
}
