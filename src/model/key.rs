//! Keys: what one is, what it allows, which names it shows, and how its secret is made and recognised.
//!
//! A key is `lsqd_<id>.<secret>`: eight bytes that name it and thirty-two that nobody guesses, both from the system's source of randomness.
//! What is kept is the HMAC-SHA-256 of id and secret under a pepper of the database. Slow hashes are for passwords, which can be guessed;
//! 256 random bits cannot, so a fast one is enough, and can be afforded for each request. It is keyed so that a digest taken from one database
//! neither says nor opens anything in another, and the id is in it so that it cannot be put in the place of another key's.

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use sha2::Sha256;
use unicode_normalization::UnicodeNormalization as _;

/// Bytes of a pepper.
pub const PEPPER: usize = 32;
/// Bytes of a digest.
pub const DIGEST: usize = 32;
/// What a key begins with, so that it is known for one wherever it turns up.
const PREFIX: &str = "lsqd_";
const ID: usize = 8;
const SECRET: usize = 32;
/// Patterns of one key, for models and for datasets each.
const MOST_PATTERNS: usize = 64;

/// What a key allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// To read models, datasets and jobs.
    Read,
    /// To have rows predicted.
    Predict,
    /// To have models learn rows and labels.
    Update,
    /// To upload, fit, change and delete.
    Write,
    /// Everything, the keys themselves included.
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Read, Self::Predict, Self::Update, Self::Write, Self::Admin];

    /// Its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Predict => "predict",
            Self::Update => "update",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }

    /// The scope of a word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == word)
    }
}

/// Several scopes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// Every one.
    pub const ALL: Self = Self::of(&Scope::ALL);

    /// Those of a list.
    #[must_use]
    pub const fn of(list: &[Scope]) -> Self {
        let (mut bits, mut place) = (0, 0);
        while place < list.len() {
            bits |= 1 << list[place] as u8;
            place += 1;
        }
        Self(bits)
    }

    /// Those that words with commas between them name.
    ///
    /// # Errors
    /// A word that is none, or none at all.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        let list = words.map(|word| Scope::parse(word).ok_or(KeyError::Scope)).collect::<Result<Vec<_>, _>>()?;
        if list.is_empty() { Err(KeyError::NoScope) } else { Ok(Self::of(&list)) }
    }

    /// Whether one is among them.
    #[must_use]
    pub const fn has(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8) != 0
    }

    /// Whether they are enough where one of `needed` is: `admin` always is.
    #[must_use]
    pub const fn meet(self, needed: Self) -> bool {
        self.0 & needed.0 != 0 || self.has(Scope::Admin)
    }

    /// One after the other.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.has(*scope))
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = self.iter().map(Scope::as_str).collect();
        formatter.write_str(&words.join(","))
    }
}

/// Why a key cannot be made so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A word that is no scope.
    #[error("a scope is read, predict, update, write or admin")]
    Scope,
    /// No scope at all.
    #[error("a key has at least one scope: read, predict, update, write or admin")]
    NoScope,
    /// `admin` and patterns: who may make keys may make one without patterns.
    #[error("a key of scope admin sees every name, since it can make keys that do; leave the patterns out, or the scope")]
    AdminSeesAll,
    /// A pattern that no name can match.
    #[error(
        "a pattern has 1 to 128 characters, none of them a control character or `/`, and for models no `@`; a key has at most 64 of them"
    )]
    Pattern,
    /// A label that is none.
    #[error("the name of a key has 1 to 128 characters, none of them a control character")]
    Name,
    /// An end that is over.
    #[error("the end of a key is in the future")]
    Past,
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}

/// A pattern of names: `*` is any run of characters, `?` any one, everything else itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// The pattern in NFC, as names are.
    ///
    /// # Errors
    /// No name could match it.
    pub fn new(text: &str) -> Result<Self, KeyError> {
        let text: String = text.nfc().collect();
        let bad = |character: char| character.is_control() || character == '/';
        if text.is_empty() || text.chars().count() > super::name::LONGEST || text.chars().any(bad) {
            return Err(KeyError::Pattern);
        }
        Ok(Self(text))
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a name in NFC is one of its. Steps are at most the product of both lengths.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let (mut pattern, mut rest) = (self.0.as_str(), name);
        // Where to go on if what follows the last star does not fit here: after the star, one character later.
        let mut again: Option<(&str, &str)> = None;
        loop {
            let mut characters = pattern.chars();
            match (characters.next(), rest.chars().next()) {
                (Some('*'), _) => {
                    pattern = characters.as_str();
                    again = Some((pattern, rest));
                    continue;
                }
                (None, None) => return true,
                (Some(wanted), Some(found)) if wanted == found || wanted == '?' => {
                    (pattern, rest) = (characters.as_str(), &rest[found.len_utf8()..]);
                    continue;
                }
                _ => {}
            }
            let Some((after, from)) = again else { return false };
            let Some(passed) = from.chars().next() else { return false };
            (pattern, rest) = (after, &from[passed.len_utf8()..]);
            again = Some((pattern, rest));
        }
    }
}

/// Names that a key shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Names {
    /// Every one.
    #[default]
    All,
    /// Those that match one of the patterns.
    Matching(Vec<Pattern>),
}

impl Names {
    /// Those that match one of a list of patterns; without a list, all.
    ///
    /// # Errors
    /// A pattern is none, or there are none or too many.
    pub fn new(patterns: Option<&[String]>) -> Result<Self, KeyError> {
        let Some(patterns) = patterns else { return Ok(Self::All) };
        if patterns.is_empty() || patterns.len() > MOST_PATTERNS {
            return Err(KeyError::Pattern);
        }
        patterns.iter().map(|text| Pattern::new(text)).collect::<Result<_, _>>().map(Self::Matching)
    }

    /// Whether a name, in whatever normal form, is one of them.
    #[must_use]
    pub fn have(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Matching(patterns) => {
                let name: String = name.nfc().collect();
                patterns.iter().any(|pattern| pattern.matches(&name))
            }
        }
    }

    /// The patterns, if they are not all names.
    #[must_use]
    pub fn patterns(&self) -> Option<Vec<&str>> {
        match self {
            Self::All => None,
            Self::Matching(patterns) => Some(patterns.iter().map(Pattern::as_str).collect()),
        }
    }
}

/// What a key allows, to whom, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What people call it.
    pub name: Option<String>,
    /// What may be done with it.
    pub scopes: Scopes,
    /// The models that it shows.
    pub models: Names,
    /// The datasets that it shows.
    pub datasets: Names,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
}

impl Grant {
    /// Whether a key can be made so now.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn check(&self, now: Timestamp) -> Result<(), KeyError> {
        if self.scopes == Scopes::default() {
            return Err(KeyError::NoScope);
        }
        if self.scopes.has(Scope::Admin) && (self.models != Names::All || self.datasets != Names::All) {
            return Err(KeyError::AdminSeesAll);
        }
        if self.models.patterns().is_some_and(|patterns| patterns.iter().any(|pattern| pattern.contains('@'))) {
            return Err(KeyError::Pattern);
        }
        let named = |name: &String| (1..=super::name::LONGEST).contains(&name.chars().count()) && !name.chars().any(char::is_control);
        if !self.name.as_ref().is_none_or(named) {
            return Err(KeyError::Name);
        }
        if self.expires_at.is_some_and(|end| end <= now) { Err(KeyError::Past) } else { Ok(()) }
    }

    /// Whether its time is over.
    #[must_use]
    pub fn has_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }
}

/// A key that was made, with its secret: shown once, kept nowhere.
pub struct Token {
    id: String,
    secret: String,
}

impl Token {
    /// A new one.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn random() -> Result<Self, KeyError> {
        Ok(Self { id: hexadecimal(&random::<ID>()?), secret: hexadecimal(&random::<SECRET>()?) })
    }

    /// The one that a text is, if it has the form of one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('.')?;
        let of = |part: &str, bytes: usize| part.len() == 2 * bytes && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (of(id, ID) && of(secret, SECRET)).then(|| Self { id: id.to_owned(), secret: secret.to_owned() })
    }

    /// The part that may be seen: it names the key.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// All of it.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}.{}", self.id, self.secret)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Token").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Makes digests under a pepper, and compares with them.
#[derive(Clone)]
pub struct Digester(Hmac<Sha256>);

impl Digester {
    /// Under this pepper.
    #[must_use]
    pub fn new(pepper: &[u8; PEPPER]) -> Self {
        // Of the length that is given, a key is never refused.
        Self(Hmac::new(&pad(pepper).into()))
    }

    fn of(&self, token: &Token) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        // The id has one length, so no other pair gives the same bytes.
        mac.update(token.id.as_bytes());
        mac.update(token.secret.as_bytes());
        mac
    }

    /// What is kept of a key.
    #[must_use]
    pub fn digest(&self, token: &Token) -> [u8; DIGEST] {
        self.of(token).finalize().into_bytes().into()
    }

    /// Whether a digest is that of a key, in the same time wherever they differ.
    #[must_use]
    pub fn is_of(&self, digest: &[u8; DIGEST], token: &Token) -> bool {
        self.of(token).verify_slice(digest).is_ok()
    }
}

impl fmt::Debug for Digester {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Digester")
    }
}

/// A key of HMAC-SHA-256 as long as the hash's block, which is what shorter ones are filled up to with zeros.
fn pad(pepper: &[u8; PEPPER]) -> [u8; 64] {
    let mut block = [0; 64];
    block[..PEPPER].copy_from_slice(pepper);
    block
}

/// Bytes from the system's source of randomness.
///
/// # Errors
/// It gives none.
pub fn random<const BYTES: usize>() -> Result<[u8; BYTES], KeyError> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).map_err(|_| KeyError::Random)?;
    Ok(bytes)
}

fn hexadecimal(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_token_is_read_as_it_is_shown_and_nothing_else_is_one() {
        let token = Token::random().unwrap();
        let text = token.reveal();
        assert_eq!(text.len(), PREFIX.len() + 2 * ID + 1 + 2 * SECRET);
        let read = Token::parse(&text).unwrap();
        assert_eq!((read.id(), read.reveal()), (token.id(), text.clone()));
        assert_ne!(Token::random().unwrap().reveal(), text);
        for bad in
            ["", "lsqd_", "lsqd_.", &text[1..], &text[..text.len() - 1], &format!("{text}0"), &text.to_uppercase(), &text.replace('.', "")]
        {
            assert!(Token::parse(bad).is_none(), "{bad}");
        }
        assert!(!format!("{token:?}").contains(&token.secret));
    }

    #[test]
    fn digests_know_their_key_and_no_other() {
        // RFC 4231, test case 2: a shorter key is the same as one filled up with zeros.
        let mut pepper = [0; PEPPER];
        pepper[..4].copy_from_slice(b"Jefe");
        let digester = Digester::new(&pepper);
        let token = Token { id: "what do ya want ".to_owned(), secret: "for nothing?".to_owned() };
        let digest = digester.digest(&token);
        assert_eq!(hexadecimal(&digest), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        assert!(digester.is_of(&digest, &token));
        for place in 0..DIGEST * 8 {
            let mut bent = digest;
            bent[place / 8] ^= 1 << (place % 8);
            assert!(!digester.is_of(&bent, &token), "bit {place}");
        }
        assert!(!Digester::new(&[1; PEPPER]).is_of(&digest, &token), "another database's pepper");
        let swapped = Token { id: "other do ya want".to_owned(), ..token };
        assert!(!digester.is_of(&digest, &swapped), "another key's id");
    }

    #[test]
    fn scopes_are_words_and_admin_is_enough_for_all() {
        let scopes = Scopes::parse("predict, read").unwrap();
        assert_eq!(scopes.to_string(), "read,predict");
        assert!(scopes.meet(Scopes::of(&[Scope::Write, Scope::Predict])) && !scopes.meet(Scopes::of(&[Scope::Write])));
        for scope in Scope::ALL {
            assert!(Scopes::of(&[Scope::Admin]).meet(Scopes::of(&[scope])));
            assert_eq!(Scopes::of(&[scope]).meet(Scopes::of(&[Scope::Admin])), scope == Scope::Admin);
            assert_eq!(Scope::parse(scope.as_str()), Some(scope));
        }
        assert_eq!((Scopes::parse("reed"), Scopes::parse(" ,")), (Err(KeyError::Scope), Err(KeyError::NoScope)));
    }

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, matches) in [
            ("sales-*", "sales-north", true),
            ("sales-*", "sales-", true),
            ("sales-*", "sales", false),
            ("sales-*", "presales-1", false),
            ("*", "", true),
            ("*-eu", "a-eu-eu", true),
            ("*-eu", "a-eu-e", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("a?c", "abc", true),
            ("a?c", "aéc", true),
            ("a?c", "ac", false),
            ("exact", "exact", true),
            ("exact", "exactly", false),
            ("Exact", "exact", false),
            ("**", "x", true),
            ("a.c", "abc", false),
            ("[ab]", "a", false),
        ] {
            assert_eq!(Pattern::new(pattern).unwrap().matches(name), matches, "{pattern} {name}");
        }
        // Neither the form that a name comes in nor a pattern made to be slow matters.
        assert!(Names::new(Some(&["caf\u{e9}*".to_owned()])).unwrap().have("cafe\u{301}s"));
        assert!(Names::new(Some(&["cafe\u{301}*".to_owned()])).unwrap().have("caf\u{e9}s"));
        assert!(!Pattern::new(&"*a".repeat(64)).unwrap().matches(&"a".repeat(63)));
        for bad in ["", "a/b", "a\n", &"x".repeat(129)] {
            assert_eq!(Pattern::new(bad), Err(KeyError::Pattern), "{bad:?}");
        }
    }

    #[test]
    fn a_grant_is_one_that_makes_sense() {
        let now = Timestamp::UNIX_EPOCH;
        let good = Grant { name: None, scopes: Scopes::of(&[Scope::Read]), models: Names::All, datasets: Names::All, expires_at: None };
        let some = Names::new(Some(&["a*".to_owned()])).unwrap();
        assert_eq!(good.check(now), Ok(()));
        for (grant, error) in [
            (Grant { scopes: Scopes::default(), ..good.clone() }, KeyError::NoScope),
            (Grant { scopes: Scopes::ALL, models: some.clone(), ..good.clone() }, KeyError::AdminSeesAll),
            (Grant { scopes: Scopes::ALL, datasets: some, ..good.clone() }, KeyError::AdminSeesAll),
            (Grant { models: Names::new(Some(&["a@1".to_owned()])).unwrap(), ..good.clone() }, KeyError::Pattern),
            (Grant { name: Some("a\nb".to_owned()), ..good.clone() }, KeyError::Name),
            (Grant { expires_at: Some(now), ..good }, KeyError::Past),
        ] {
            assert_eq!(grant.check(now), Err(error));
        }
        assert_eq!(Names::new(Some(&[])), Err(KeyError::Pattern));
    }
}
