//! How traffic is shared out between versions: a plan of arms with shares and of shadows, and which arm a request goes to.
//!
//! A request with a key goes where weighted rendezvous hashing sends it: each arm i draws uᵢ from a hash of its name and the key, and the
//! least −ln(uᵢ)/wᵢ wins, which is arm i with probability wᵢ/Σw. The same key gets the same arm, and when shares change, a key leaves an arm
//! only for one whose share has grown in proportion to it: an arm that grows keeps every key it had. A request without a key takes its turn
//! in an additive recurrence with the golden ratio, which follows the shares more closely than chance does.
//!
//! Thaler & Ravishankar, *Using name-based mappings to increase hit rates*, IEEE/ACM Trans. Networking 6 (1998); weights by Schindelhauer &
//! Schomaker, *Weighted distributed hash tables*, SPAA 2005. Recurrence: Kuipers & Niederreiter, *Uniform Distribution of Sequences*, 1974.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::name;
use crate::frame::Fault;

/// Arms and shadows of a plan at the most.
pub const MOST: usize = 8;
/// The arm of this name is the champion unless the plan says otherwise.
const CHAMPION: &str = "champion";
/// And if there is none, this one.
const SERVED: &str = "served";

/// An arm: it answers its share of the requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    /// An alias, or a version's number.
    pub name: String,
    /// Above 0; what counts is its proportion to the others.
    pub share: f64,
}

/// Who answers, who only looks on, and by what a caller is known again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Who answers, in the order of the request; at least one.
    pub arms: Vec<Arm>,
    /// Who sees every row and answers nobody.
    pub shadows: Vec<String>,
    /// The arm with which the others are compared.
    pub champion: String,
    /// The header that holds a request's key, in lower case.
    pub header: Option<String>,
}

impl Plan {
    /// A plan from what was asked; `split` is the pointer under which the arms stand.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn new(
        split: &str,
        arms: Vec<(String, f64)>,
        shadows: Vec<String>,
        champion: Option<String>,
        header: Option<String>,
    ) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut fault = |pointer: String, detail: String| faults.push(Fault { pointer, detail });
        if arms.is_empty() {
            fault(split.to_owned(), "a split has at least one alias or version, with its share".to_owned());
        }
        if arms.len() + shadows.len() > MOST {
            fault(split.to_owned(), format!("a split has at most {MOST} members, shadows included"));
        }
        let mut seen: Vec<String> = Vec::new();
        let mut member = |text: &str, pointer: &str| match member(text) {
            Err(detail) => {
                fault(pointer.to_owned(), detail);
                text.to_owned()
            }
            Ok(name) => {
                if seen.contains(&name) {
                    fault(pointer.to_owned(), "this member stands twice in the request".to_owned());
                }
                seen.push(name.clone());
                name
            }
        };
        let place = |text: &str| format!("{split}/{}", crate::frame::escaped(text));
        let named: Vec<(String, f64, String)> = arms.into_iter().map(|(text, share)| (member(&text, &place(&text)), share, text)).collect();
        let shadows: Vec<String> = shadows.iter().enumerate().map(|(index, text)| member(text, &format!("/shadow/{index}"))).collect();
        for (_, share, text) in &named {
            if !(*share > 0.0 && *share <= 1e9) {
                fault(
                    place(text),
                    "a share is a number above 0, of any scale; who is to answer nobody is left out, or a shadow".to_owned(),
                );
            }
        }
        let arms: Vec<Arm> = named.into_iter().map(|(name, share, _)| Arm { name, share }).collect();
        let named = |wanted: &str| arms.iter().find(|arm| arm.name == wanted).map(|arm| arm.name.clone());
        let champion = match champion.as_deref().map(member_name) {
            Some(text) => named(&text).or_else(|| {
                fault("/champion".to_owned(), "`champion` is one of the members that answer".to_owned());
                None
            }),
            None => named(CHAMPION).or_else(|| named(SERVED)).or_else(|| {
                // The first of the largest, whatever order the members came in.
                let largest = |a: &&Arm, b: &&Arm| a.share.total_cmp(&b.share).then_with(|| b.name.cmp(&a.name));
                arms.iter().max_by(largest).map(|arm| arm.name.clone())
            }),
        };
        let header = header.map(|header| header.to_ascii_lowercase());
        if header.as_ref().is_some_and(|header| header.is_empty() || header.len() > name::LONGEST || !header.bytes().all(is_token)) {
            fault("/sticky/header".to_owned(), "`header` is the name of a header".to_owned());
        }
        if faults.is_empty() { Ok(Self { arms, shadows, champion: champion.unwrap_or_default(), header }) } else { Err(faults) }
    }

    /// The names of all members, arms first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.arms.iter().map(|arm| arm.name.as_str()).chain(self.shadows.iter().map(String::as_str))
    }

    /// Whether a member goes by that name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.names().any(|member| member == name)
    }
}

/// A character of a header's name (RFC 9110, §5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A number as it is written, an alias in its normal form; what is neither stays as it is.
fn member_name(text: &str) -> String {
    member(text).unwrap_or_else(|_| text.to_owned())
}

fn member(text: &str) -> Result<String, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse::<u64>().map(|number| number.to_string()).map_err(|_| "this is no version's number".to_owned());
    }
    let name = name::alias(text).map_err(|error| error.to_string())?;
    if name == "latest" {
        return Err("`latest` moves with every fit, tried or not; name an alias or a version".to_owned());
    }
    Ok(name)
}

/// A plan made ready to choose by.
#[derive(Clone, Debug)]
pub struct Split {
    salt: String,
    shares: Vec<f64>,
    seeds: Vec<u64>,
    /// Upper ends of the arms' parts of [0, 1).
    ends: Vec<f64>,
}

/// The golden ratio's fraction, of 2⁶⁴.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Split {
    /// The split of a plan for a model: one caller is in different arms of different models.
    #[must_use]
    pub fn new(model: &str, plan: &Plan) -> Self {
        let total: f64 = plan.arms.iter().map(|arm| arm.share).sum();
        let ends = plan.arms.iter().scan(0.0, |sum, arm| {
            *sum += arm.share / total;
            Some(*sum)
        });
        Self {
            salt: model.to_owned(),
            ends: ends.collect(),
            shares: plan.arms.iter().map(|arm| arm.share).collect(),
            seeds: plan.arms.iter().map(|arm| hash(&[arm.name.as_bytes()])).collect(),
        }
    }

    /// The arm of a key, which stays the same for as long as the shares do.
    #[must_use]
    pub fn of_key(&self, key: &[u8]) -> usize {
        let key = hash(&[self.salt.as_bytes(), key]);
        let race = |place: usize| -unit(mixed(key ^ self.seeds[place])).ln() / self.shares[place];
        (0..self.shares.len()).min_by(|a, b| race(*a).total_cmp(&race(*b))).unwrap_or(0)
    }

    /// The arm of the request that takes this turn.
    #[must_use]
    pub fn of_turn(&self, turn: u64) -> usize {
        let place = unit(turn.wrapping_mul(GOLDEN));
        self.ends.iter().position(|end| place < *end).unwrap_or(self.ends.len().saturating_sub(1))
    }

    /// The share of an arm, of 1.
    #[must_use]
    pub fn share(&self, arm: usize) -> f64 {
        self.shares[arm] / self.shares.iter().sum::<f64>()
    }
}

/// The first eight bytes of SHA-256: the same in every release.
fn hash(parts: &[&[u8]]) -> u64 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    digest.iter().take(8).fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// A permutation of words in which each bit depends on all (Steele, Lea & Flood, *Fast splittable pseudorandom number generators*, 2014).
fn mixed(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A number in (0, 1).
fn unit(word: u64) -> f64 {
    ((word >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn plan(arms: &[(&str, f64)]) -> Plan {
        let arms = arms.iter().map(|(name, share)| ((*name).to_owned(), *share)).collect();
        Plan::new("", arms, Vec::new(), None, None).unwrap()
    }

    fn split(arms: &[(&str, f64)]) -> Split {
        Split::new("price", &plan(arms))
    }

    fn keys() -> impl Iterator<Item = String> {
        (0..20_000).map(|number| format!("user-{number}"))
    }

    /// Σ (observed − expected)²/expected.
    fn chi_square(counts: &[f64], shares: &[f64]) -> f64 {
        let (rows, total): (f64, f64) = (counts.iter().sum(), shares.iter().sum());
        counts.iter().zip(shares).map(|(count, share)| (count - rows * share / total).powi(2) / (rows * share / total)).sum()
    }

    #[test]
    fn keys_are_shared_out_by_the_shares() {
        // 99.9% quantiles of chi-square with 1, 2 and 3 degrees of freedom.
        for (arms, limit) in [
            (&[("champion", 90.0), ("challenger", 10.0)][..], 10.83),
            (&[("a", 0.7), ("b", 0.2), ("c", 0.1)], 13.82),
            (&[("a", 1.0), ("b", 1.0), ("c", 1.0), ("4", 97.0)], 16.27),
        ] {
            let (split, shares) = (split(arms), arms.iter().map(|arm| arm.1).collect::<Vec<_>>());
            let mut counts = vec![0.0; arms.len()];
            keys().for_each(|key| counts[split.of_key(key.as_bytes())] += 1.0);
            let found = chi_square(&counts, &shares);
            assert!(found < limit, "{counts:?}: {found}");
        }
    }

    #[test]
    fn a_key_leaves_an_arm_only_for_one_that_grew() {
        let steps: [[f64; 3]; 6] =
            [[90.0, 5.0, 5.0], [80.0, 15.0, 5.0], [60.0, 30.0, 10.0], [60.0, 30.0, 30.0], [1.0, 30.0, 30.0], [10.0, 300.0, 300.0]];
        let made = |shares: &[f64; 3]| split(&[("champion", shares[0]), ("b", shares[1]), ("c", shares[2])]);
        for pair in steps.windows(2) {
            let (before, after) = (made(&pair[0]), made(&pair[1]));
            let growth: Vec<f64> = (0..3).map(|arm| after.shares[arm] / before.shares[arm]).collect();
            let mut moved = 0;
            for key in keys() {
                let (from, to) = (before.of_key(key.as_bytes()), after.of_key(key.as_bytes()));
                moved += usize::from(from != to);
                assert!(from == to || growth[to] > growth[from], "{key} went from {from} to {to}");
            }
            assert_eq!(moved == 0, growth.iter().all(|own| *own == growth[0]), "{pair:?}");
        }
        // One that joins takes keys, and moves none between the others.
        let (two, three) = (split(&[("a", 2.0), ("b", 1.0)]), split(&[("a", 2.0), ("b", 1.0), ("c", 1.0)]));
        assert!(keys().all(|key| [two.of_key(key.as_bytes()), 2].contains(&three.of_key(key.as_bytes()))));
    }

    #[test]
    fn models_do_not_share_their_canaries() {
        let plan = plan(&[("a", 1.0), ("b", 1.0)]);
        let (one, other) = (Split::new("one", &plan), Split::new("other", &plan));
        let same = keys().filter(|key| one.of_key(key.as_bytes()) == other.of_key(key.as_bytes())).count();
        // Half of 20,000, give or take four standard deviations.
        assert!((9_717..=10_283).contains(&same), "{same}");
    }

    #[test]
    fn arms_of_keys_are_the_same_in_every_release() {
        let split = split(&[("champion", 50.0), ("challenger", 50.0)]);
        let found: Vec<usize> = (0..16).map(|number| split.of_key(format!("user-{number}").as_bytes())).collect();
        assert_eq!(found, [1, 0, 0, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1]);
    }

    #[test]
    fn turns_follow_the_shares_closer_than_chance_at_any_moment() {
        let split = split(&[("a", 90.0), ("b", 10.0)]);
        let mut taken = 0.0;
        for turn in 0..100_000_u64 {
            taken += f64::from(u8::from(split.of_turn(turn) == 1));
            let error = (taken - (turn + 1) as f64 * 0.1).abs();
            assert!(error < 5.0, "after {turn} turns {taken}");
        }
        assert_eq!(split.of_turn(7), split.of_turn(7));
    }

    #[test]
    fn what_is_wrong_with_a_plan_is_named() {
        let made = |arms: &[(&str, f64)], shadows: &[&str], champion: Option<&str>, header: Option<&str>| {
            let arms = arms.iter().map(|(name, share)| ((*name).to_owned(), *share)).collect();
            let shadows = shadows.iter().map(|name| (*name).to_owned()).collect();
            let plan = Plan::new("/split", arms, shadows, champion.map(str::to_owned), header.map(str::to_owned));
            plan.map_err(|faults| faults.into_iter().map(|fault| fault.pointer).collect::<Vec<_>>())
        };
        for (arms, shadows, champion, header, pointers) in [
            (&[][..], &[][..], None, None, &["/split"][..]),
            (&[("a", 0.0), ("b", -1.0), ("c", f64::NAN)], &[], None, None, &["/split/a", "/split/b", "/split/c"]),
            (&[("a", 1.0)], &["a"], None, None, &["/shadow/0"]),
            (&[("7", 1.0), ("07", 1.0)], &[], None, None, &["/split/07"]),
            (&[("latest", 1.0)], &["x@y"], None, None, &["/split/latest", "/shadow/0"]),
            (&[("a", 1.0)], &[], Some("b"), Some("user id"), &["/champion", "/sticky/header"]),
            (&[("a", 1.0)], &["b", "c", "d", "e", "f", "g", "h", "i"], None, None, &["/split"]),
        ] {
            assert_eq!(made(arms, shadows, champion, header).unwrap_err(), pointers);
        }
        // The champion does not depend on the order in which a client writes an object.
        for (arms, wanted) in [
            (&[("challenger", 10.0), ("champion", 90.0)][..], "champion"),
            (&[("canary", 99.0), ("served", 1.0)], "served"),
            (&[("b", 1.0), ("a", 1.0), ("c", 0.5)], "a"),
            (&[("2", 1.0), ("1", 3.0)], "1"),
        ] {
            assert_eq!(
                made(arms, &[], None, Some("X-User")).map(|plan| (plan.champion, plan.header)),
                Ok((wanted.to_owned(), Some("x-user".to_owned())))
            );
        }
    }
}
