//! Answers as a table: which of their members are wanted, and the columns that these make. Not here: how a cell is written.

use super::prediction::{Answer, Question};
use super::version::Document;

/// Members of an answer, of which a caller may want fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The predictions themselves.
    pub predictions: bool,
    /// The scores of the classes, of a classifier.
    pub scores: bool,
    /// Their probabilities, of one that is calibrated.
    pub probabilities: bool,
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
pub const MEMBERS: &str = "predictions, lower, upper, leverage, extrapolates, contributions, scores, probabilities, version";

impl Wanted {
    const NOTHING: Self = Self {
        predictions: false,
        scores: false,
        probabilities: false,
        lower: false,
        upper: false,
        leverage: false,
        extrapolates: false,
        contributions: false,
        version: false,
    };
    /// What is answered to who does not say.
    pub const USUAL: Self = Self {
        predictions: true,
        scores: true,
        probabilities: true,
        lower: true,
        upper: true,
        leverage: true,
        extrapolates: true,
        contributions: true,
        version: false,
    };

    /// The members of these names and no others; `None` where a name is none of [`MEMBERS`].
    #[must_use]
    pub fn listed<'n>(names: impl IntoIterator<Item = &'n str>) -> Option<Self> {
        let mut wanted = Self::NOTHING;
        for name in names {
            *match name {
                "predictions" => &mut wanted.predictions,
                "scores" => &mut wanted.scores,
                "probabilities" => &mut wanted.probabilities,
                "lower" => &mut wanted.lower,
                "upper" => &mut wanted.upper,
                "leverage" => &mut wanted.leverage,
                "extrapolates" => &mut wanted.extrapolates,
                "contributions" => &mut wanted.contributions,
                "version" => &mut wanted.version,
                _ => return None,
            } = true;
        }
        Some(wanted)
    }

    /// Whether nothing is wanted.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::NOTHING
    }

    /// Of what is wanted, only what is asked for, and what the version has, is answered; and what is not wanted is not computed.
    pub fn meet(&mut self, question: &mut Question, document: &Document) {
        self.scores &= document.classifier.is_some();
        self.probabilities &= document.classifier.as_ref().is_some_and(|classifier| classifier.calibrator.is_some());
        question.probabilities = self.probabilities;
        self.lower &= question.interval.is_some();
        self.upper &= question.interval.is_some();
        self.contributions &= question.explain;
        if !(self.lower || self.upper) {
            question.interval = None;
        }
        question.explain = self.contributions;
        question.leverage = self.leverage || self.extrapolates;
    }

    /// The columns of a table of answers of a version: one a member, with several responses one a response, whose name it carries then.
    #[must_use]
    pub fn columns(&self, document: &Document) -> Vec<(String, Figure)> {
        let targets = document.responses();
        let named = |target: &str, name: &str| if targets.len() == 1 { name.to_owned() } else { format!("{target}_{name}") };
        let mut columns = Vec::new();
        let label = document.classifier.as_ref().filter(|_| self.predictions);
        columns.extend(label.map(|classifier| ("prediction".to_owned(), Figure::Label { boolean: classifier.boolean })));
        let members: [(bool, &str, OfResponse); 5] = [
            (self.predictions && document.classifier.is_none(), "prediction", Figure::Prediction),
            (self.scores, "score", Figure::Score),
            (self.probabilities, "probability", Figure::Probability),
            (self.lower, "lower", Figure::Lower),
            (self.upper, "upper", Figure::Upper),
        ];
        for (_, name, figure) in members.into_iter().filter(|(wanted, ..)| *wanted) {
            columns.extend(targets.iter().enumerate().map(|(place, target)| (named(target, name), figure(place))));
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

/// The figure of the response at a place.
type OfResponse = fn(usize) -> Figure;

/// What a column of a table of answers holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// The prediction of the target at a place.
    Prediction(usize),
    /// The label that a classifier gives.
    Label {
        /// Whether it is a boolean, and not a text.
        boolean: bool,
    },
    /// The score of the class at a place.
    Score(usize),
    /// Its probability.
    Probability(usize),
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
    pub fn numbers(&self, figure: Figure, responses: usize, parts: usize) -> Option<(&[f64], usize, usize)> {
        Some(match figure {
            Figure::Prediction(place) => (self.predictions.as_slice(), place, responses),
            Figure::Score(place) => (self.scores.as_slice(), place, responses),
            Figure::Probability(place) => (self.probabilities.as_slice(), place, responses),
            Figure::Lower(place) => (self.lower.as_slice(), place, responses),
            Figure::Upper(place) => (self.upper.as_slice(), place, responses),
            Figure::Leverage => (self.leverage.as_slice(), 0, 1),
            Figure::Contribution(place) => (self.contributions.as_slice(), place, parts),
            Figure::Label { .. } | Figure::Extrapolates | Figure::Version | Figure::Sequence => return None,
        })
    }
}
