//! Answers as a table: which of their members are wanted, and the columns that these make. Not here: how a cell is written.

use super::prediction::{Answer, Question};
use super::version::Document;

/// Members of an answer, of which a caller may want fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The predictions themselves.
    pub predictions: bool,
    /// The lower ends of intervals.
    pub lower: bool,
    /// The upper ends.
    pub upper: bool,
    /// The leverage of each row.
    pub leverage: bool,
    /// Whether a row lies outside what was seen.
    pub extrapolates: bool,
    /// What each feature adds.
    pub contributions: bool,
    /// With each row, the version and the sequence that answered.
    pub version: bool,
}

/// The names of the members, as a caller lists them.
pub const MEMBERS: &str = "predictions, lower, upper, leverage, extrapolates, contributions, scores, version";

impl Wanted {
    /// What is answered to who does not say.
    pub const USUAL: Self =
        Self { predictions: true, lower: true, upper: true, leverage: true, extrapolates: true, contributions: true, version: false };

    /// The members of these names and no others; `None` where a name is none of [`MEMBERS`].
    #[must_use]
    pub fn listed<'n>(names: impl IntoIterator<Item = &'n str>) -> Option<Self> {
        let mut wanted = Self {
            predictions: false,
            lower: false,
            upper: false,
            leverage: false,
            extrapolates: false,
            contributions: false,
            version: false,
        };
        for name in names {
            match name {
                "predictions" => wanted.predictions = true,
                "lower" => wanted.lower = true,
                "upper" => wanted.upper = true,
                "leverage" => wanted.leverage = true,
                "extrapolates" => wanted.extrapolates = true,
                "contributions" => wanted.contributions = true,
                // Those of a classifier; a regression has none.
                "scores" => {}
                "version" => wanted.version = true,
                _ => return None,
            }
        }
        Some(wanted)
    }

    /// Whether nothing is wanted.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        Self::listed([]) == Some(*self)
    }

    /// Of what is wanted, only what is asked for is answered; and what is not wanted is not computed.
    pub fn meet(&mut self, question: &mut Question) {
        self.lower &= question.interval.is_some();
        self.upper &= question.interval.is_some();
        self.contributions &= question.explain;
        if !(self.lower || self.upper) {
            question.interval = None;
        }
        question.explain = self.contributions;
        question.leverage = self.leverage || self.extrapolates;
    }

    /// The columns of a table of answers of a version: one a member, with several targets one a target, whose name it carries then.
    #[must_use]
    pub fn columns(&self, document: &Document) -> Vec<(String, Figure)> {
        let targets = &document.target;
        let named = |target: &str, name: &str| if targets.len() == 1 { name.to_owned() } else { format!("{target}_{name}") };
        let mut columns = Vec::new();
        for (wanted, name) in [(self.predictions, "prediction"), (self.lower, "lower"), (self.upper, "upper")] {
            if !wanted {
                continue;
            }
            for (place, target) in targets.iter().enumerate() {
                let figure = match name {
                    "prediction" => Figure::Prediction(place),
                    "lower" => Figure::Lower(place),
                    _ => Figure::Upper(place),
                };
                columns.push((named(target, name), figure));
            }
        }
        if self.leverage {
            columns.push(("leverage".to_owned(), Figure::Leverage));
        }
        if self.extrapolates {
            columns.push(("extrapolates".to_owned(), Figure::Extrapolates));
        }
        if self.contributions {
            for target in targets {
                for part in std::iter::once("(baseline)").chain(document.features.iter().map(|feature| feature.name.as_str())) {
                    columns.push((named(target, &format!("{part}_contribution")), Figure::Contribution(0)));
                }
            }
            let parts = columns.iter_mut().filter(|(_, figure)| matches!(figure, Figure::Contribution(_)));
            parts.enumerate().for_each(|(place, (_, figure))| *figure = Figure::Contribution(place));
        }
        if self.version {
            columns.push(("version".to_owned(), Figure::Version));
            columns.push(("sequence".to_owned(), Figure::Sequence));
        }
        columns
    }
}

/// What a column of a table of answers holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// The prediction of the target at a place.
    Prediction(usize),
    /// The lower end of its interval.
    Lower(usize),
    /// The upper end.
    Upper(usize),
    /// The row's leverage.
    Leverage,
    /// Whether it lies outside what was seen.
    Extrapolates,
    /// A part of a prediction, by its place among those of a row.
    Contribution(usize),
    /// The version that answered.
    Version,
    /// Its sequence.
    Sequence,
}

impl Answer {
    /// The numbers of a column that holds one each row, and how they lie: the first and the step to the next.
    #[must_use]
    pub fn numbers(&self, figure: Figure, targets: usize, parts: usize) -> Option<(&[f64], usize, usize)> {
        Some(match figure {
            Figure::Prediction(place) => (self.predictions.as_slice(), place, targets),
            Figure::Lower(place) => (self.lower.as_slice(), place, targets),
            Figure::Upper(place) => (self.upper.as_slice(), place, targets),
            Figure::Leverage => (self.leverage.as_slice(), 0, 1),
            Figure::Contribution(place) => (self.contributions.as_slice(), place, parts),
            Figure::Extrapolates | Figure::Version | Figure::Sequence => return None,
        })
    }
}
