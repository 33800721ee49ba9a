//! What the program does beside serving, on the database itself: keys. It may be done while a server has the database.

use std::fmt::Write as _;
use std::path::Path;

use jiff::Timestamp;

use crate::config::{KeyCommand, duration};
use crate::model::key::{Grant, Names, Scopes};
use crate::service::Key;
use crate::service::keys;

/// What is to be said: the result on stdout, for programs as well, and what people ought to know on stderr.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The result.
    pub result: String,
    /// For people.
    pub remark: String,
}

/// Makes, lists or revokes keys.
///
/// # Errors
/// Why it was not done; then nothing was.
pub async fn key(database: &Path, command: &KeyCommand) -> Result<Said, String> {
    match command {
        KeyCommand::Create { scopes, models, datasets, name, expires } => {
            let grant = Grant {
                name: name.clone(),
                scopes: Scopes::parse(scopes).map_err(|error| format!("--scopes: {error}"))?,
                models: names("--models", models)?,
                datasets: names("--datasets", datasets)?,
                expires_at: expires.as_deref().map(|text| end(text, Timestamp::now())).transpose()?,
            };
            let (key, token) = keys::make_in(database, &grant).await.map_err(|error| error.to_string())?;
            let remark = format!(
                "key {} of {}: scopes {}, models {}, datasets {}, {}\n\
                 It is shown this once. From the first key on the server answers nobody without one; a running server knows of it within a second.\n",
                key.id,
                database.display(),
                key.grant.scopes,
                listed(&key.grant.models),
                listed(&key.grant.datasets),
                key.grant.expires_at.map_or_else(|| "without an end".to_owned(), |end| format!("until {end}")),
            );
            Ok(Said { result: format!("{}\n", token.reveal()), remark })
        }
        KeyCommand::List => {
            let keys = keys::all_in(database).await.map_err(|error| error.to_string())?;
            Ok(Said { result: table(&keys, Timestamp::now()), remark: String::new() })
        }
        KeyCommand::Revoke { id } => {
            keys::revoke_in(database, id).await.map_err(|error| error.to_string())?;
            Ok(Said { result: String::new(), remark: format!("key {id} is revoked; a running server knows of it within a second\n") })
        }
    }
}

/// Patterns, each by itself or with commas between them; none are all names.
fn names(flag: &str, patterns: &[String]) -> Result<Names, String> {
    let patterns: Vec<String> = patterns.iter().flat_map(|text| text.split(',')).map(|text| text.trim().to_owned()).collect();
    let patterns = (!patterns.is_empty()).then_some(patterns);
    Names::new(patterns.as_deref()).map_err(|error| format!("{flag}: {error}"))
}

/// A moment, or a time from now.
fn end(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Ok(moment) = text.parse() {
        return Ok(moment);
    }
    let fault =
        |_| format!("--expires is neither a time from now, such as 90d or 12h, nor a moment, such as 2030-01-31T12:00:00Z: {text:?}");
    now.checked_add(duration(text).map_err(fault)?).map_err(|_| "--expires is too far away".to_owned())
}

fn listed(names: &Names) -> String {
    names.patterns().map_or_else(|| "all".to_owned(), |patterns| patterns.join(","))
}

/// A line for each key, with its columns below each other.
fn table(keys: &[Key], now: Timestamp) -> String {
    let heads = ["id", "state", "scopes", "models", "datasets", "created", "expires", "name"].map(str::to_owned);
    let rows = keys.iter().map(|key| {
        let state = if key.revoked_at.is_some() {
            "revoked"
        } else if key.is_alive(now) {
            "active"
        } else {
            "expired"
        };
        let grant = &key.grant;
        let expires = grant.expires_at.map_or_else(|| "never".to_owned(), |end| end.to_string());
        let name = grant.name.clone().unwrap_or_default();
        let (models, datasets) = (listed(&grant.models), listed(&grant.datasets));
        [key.id.clone(), state.to_owned(), grant.scopes.to_string(), models, datasets, key.created_at.clone(), expires, name]
    });
    let rows: Vec<[String; 8]> = std::iter::once(heads).chain(rows).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (place, cell) in row.iter().enumerate() {
            let width = rows.iter().map(|row| row[place].chars().count()).max().unwrap_or(0);
            // Writing to a string cannot fail.
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn create(scopes: &str, models: &[&str], expires: Option<&str>) -> KeyCommand {
        KeyCommand::Create {
            scopes: scopes.to_owned(),
            models: models.iter().map(|text| (*text).to_owned()).collect(),
            datasets: Vec::new(),
            name: Some("of tests".to_owned()),
            expires: expires.map(str::to_owned),
        }
    }

    #[tokio::test]
    async fn a_key_is_made_listed_and_revoked_and_its_secret_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lsqd.db");
        let made = key(&path, &create("read,predict", &["sales-*, hr-?", "x"], Some("90d"))).await.unwrap();
        let token = crate::model::key::Token::parse(made.result.trim_end()).unwrap();
        assert!(!made.remark.contains(made.result.trim_end()) && made.remark.contains("models sales-*,hr-?,x"), "{}", made.remark);
        let listed = key(&path, &KeyCommand::List).await.unwrap().result;
        let line = listed.lines().nth(1).unwrap();
        assert!(line.starts_with(token.id()) && line.contains(" active ") && line.contains("read,predict"), "{listed}");
        let secret = made.result.trim_end().rsplit_once('.').unwrap().1.to_owned();
        key(&path, &KeyCommand::Revoke { id: token.id().to_owned() }).await.unwrap();
        let listed = key(&path, &KeyCommand::List).await.unwrap().result;
        assert!(listed.contains(" revoked ") && !listed.contains(&secret), "{listed}");
        for (bad, part) in [
            (KeyCommand::Revoke { id: "none".to_owned() }, "no key"),
            (create("reed", &[], None), "--scopes"),
            (create("read", &["a/b"], None), "--models"),
            (create("admin", &["a"], None), "admin"),
            (create("read", &[], Some("soon")), "--expires"),
            (create("read", &[], Some("2020-01-01T00:00:00Z")), "future"),
        ] {
            let refused = key(&path, &bad).await.unwrap_err();
            assert!(refused.contains(part), "{refused}");
        }
        assert_eq!(key(&path, &KeyCommand::List).await.unwrap().result.lines().count(), 2, "what was refused was done");
        for name in ["lsqd.db", "lsqd.db-wal"] {
            let bytes = std::fs::read(folder.path().join(name)).unwrap_or_default();
            assert!(!bytes.windows(secret.len()).any(|part| part == secret.as_bytes()), "the secret is in {name}");
        }
    }
}
