//! Models, versions and aliases: look, point, delete.

use std::sync::Arc;

use serde_json::json;

use super::audit::Changed;
use super::catalogue::{LATEST, Model, Target, Version};
use super::error::ServiceError;
use super::events::Channel;
use super::{Replayable, Service, traffic};
use crate::model::{State, name};
use crate::store::{self, Connection};

/// Why an alias that holds its version does not teach it.
pub(super) const HELD: &str = "this alias holds its version at a sequence; address the version itself to let it learn";

impl Service {
    /// The model and version that `name`, `name@alias` or `name@version` means, with the version's state.
    ///
    /// # Errors
    /// There is none.
    pub async fn version(&self, reference: &str) -> Result<(Arc<Model>, Arc<Version>, Arc<State>), ServiceError> {
        let (model, version, held) = self.catalogue.resolve(reference)?;
        let state = self.state_of(&version, held).await?;
        Ok((model, version, state))
    }

    /// The state of a version, or the one in which an alias holds it.
    pub(super) async fn state_of(&self, version: &Version, held: Option<Arc<State>>) -> Result<Arc<State>, ServiceError> {
        match held {
            Some(state) => Ok(state),
            None => version.state(&self.store).await,
        }
    }

    /// The version that learns when `reference` does.
    ///
    /// # Errors
    /// There is none, or the alias holds it at a sequence.
    pub async fn learner(&self, reference: &str) -> Result<Arc<Version>, ServiceError> {
        let (_, version, held) = self.catalogue.resolve(reference)?;
        if held.is_some() {
            return Err(ServiceError::Conflict(HELD));
        }
        version.state(&self.store).await?;
        Ok(version)
    }

    /// The channel of a model's events.
    ///
    /// # Errors
    /// There is no such model.
    pub fn events(&self, model: &str) -> Result<Arc<Channel>, ServiceError> {
        Ok(self.catalogue.channel(&self.catalogue.model(model)?.name))
    }

    /// The first sequence of a version that its log still holds, and how many of its rows were erased.
    ///
    /// # Errors
    /// The database.
    pub async fn log(&self, version: &Version) -> Result<(Option<u64>, u64), ServiceError> {
        let mut connection = self.store.read().await?;
        Ok((store::updates::first(&mut connection, version.id).await?, store::updates::erasures(&mut connection, version.id).await?))
    }

    /// The version of a model by number or alias in an address, with its state.
    ///
    /// # Errors
    /// There is none.
    pub async fn version_of(&self, model: &str, which: &str) -> Result<(Arc<Model>, Arc<Version>, Arc<State>), ServiceError> {
        let model = self.catalogue.model(model)?;
        let (version, held) = model.find(which)?;
        let version = version.clone();
        let state = self.state_of(&version, held).await?;
        Ok((model, version, state))
    }

    /// Points an alias at a version, as it stands or as it stood at a sequence; `version` is a number. Returns whether the alias is new.
    ///
    /// # Errors
    /// No such model, version or sequence; a reserved alias; the model has another ETag.
    pub async fn set_alias(
        self: &Arc<Self>,
        model: &str,
        alias: &str,
        version: u64,
        sequence: Option<u64>,
        if_match: Option<Vec<String>>,
    ) -> Result<bool, ServiceError> {
        let alias = name::alias(alias)?;
        if alias == LATEST {
            return Err(ServiceError::Conflict("`latest` is always the newest version and cannot be set"));
        }
        let model = self.catalogue.model(model)?;
        self.check_model_tags(&model.name, if_match.as_deref())?;
        let loading = model.versions.get(&version).ok_or(ServiceError::VersionNotFound)?;
        // In memory before it is pointed at: the first request through the alias does not wait for a replay.
        loading.state(&self.store).await?;
        let held = match sequence {
            Some(sequence) => Some(loading.state_at(&self.store, sequence).await?),
            None => None,
        };
        let created = !model.aliases.contains_key(&alias);
        let publisher = self.clone();
        self.writer
            .change(
                async move |writer: &mut Connection| {
                    // The version may have been deleted since it was looked up.
                    if !store::models::has_version(writer, model.id, version).await? {
                        return Err(ServiceError::VersionNotFound);
                    }
                    let before = store::models::alias(writer, model.id, &alias).await?;
                    store::models::set_alias(writer, model.id, &alias, version, sequence).await?;
                    let (before, after) = (before.map(|before| pointing(&alias, before)), pointing(&alias, (version, sequence)));
                    let name = model.name.clone();
                    Ok(Changed::new((name.clone(), alias), "alias.set", &name, before, Some(after)))
                },
                move |(name, alias)| {
                    publisher.catalogue.change(name, |model| {
                        model.map(|mut model| {
                            model.aliases.insert(alias.clone(), Target { version, held, damage: None });
                            model
                        })
                    });
                    publisher.catalogue.channel(name).alias(alias, Some(version), sequence);
                },
            )
            .await?;
        Ok(created)
    }

    /// Removes an alias.
    ///
    /// # Errors
    /// No such model or alias; `served` and `latest` stay.
    pub async fn delete_alias(self: &Arc<Self>, model: &str, alias: &str) -> Result<(), ServiceError> {
        let alias = name::alias(alias).map_err(|_| ServiceError::AliasNotFound)?;
        let model = self.catalogue.model(model)?;
        if alias == LATEST || alias == super::catalogue::SERVED {
            return Err(ServiceError::Conflict("`served` and `latest` cannot be removed"));
        }
        if !model.aliases.contains_key(&alias) {
            return Err(ServiceError::AliasNotFound);
        }
        let publisher = self.clone();
        self.writer
            .change(
                async move |writer: &mut Connection| {
                    traffic::check_unnamed(writer, model.id, &alias).await?;
                    let before = store::models::alias(writer, model.id, &alias).await?.map(|before| pointing(&alias, before));
                    store::models::delete_alias(writer, model.id, &alias).await?;
                    let name = model.name.clone();
                    Ok(Changed::new((name.clone(), alias), "alias.delete", &name, before, None))
                },
                move |(name, alias)| {
                    publisher.catalogue.change(name, |model| {
                        model.map(|mut model| {
                            model.aliases.remove(alias);
                            model
                        })
                    });
                    publisher.catalogue.channel(name).alias(alias, None, None);
                },
            )
            .await?;
        Ok(())
    }

    /// Deletes a model with all its versions and their logs.
    ///
    /// # Errors
    /// There is none of this name, or it has another ETag.
    pub async fn delete_model(self: &Arc<Self>, model: &str, if_match: Option<Vec<String>>) -> Result<(), ServiceError> {
        let model = self.catalogue.model(model)?;
        self.check_model_tags(&model.name, if_match.as_deref())?;
        let publisher = self.clone();
        self.writer
            .change(
                async move |writer: &mut Connection| {
                    store::models::delete(writer, model.id).await?;
                    let versions: Vec<u64> = model.versions.keys().chain(model.lost.keys()).copied().collect();
                    let name = model.name.clone();
                    Ok(Changed::new(name.clone(), "model.delete", &name, Some(json!({"versions": versions})), None))
                },
                move |name| {
                    publisher.catalogue.change(name, |_| None);
                    publisher.catalogue.channel(name).send("deleted", &json!({"model": name}));
                },
            )
            .await?;
        Ok(())
    }

    /// Deletes a version that no alias points to.
    ///
    /// # Errors
    /// There is none, or an alias or the model's split of traffic points to it.
    pub async fn delete_version(self: &Arc<Self>, model: &str, which: &str) -> Result<(), ServiceError> {
        let model = self.catalogue.model(model)?;
        // One of which nothing can be told can still be deleted.
        let lost = which.parse().ok().and_then(|number| Some((number, model.lost.get(&number)?.id)));
        let (number, id) = match lost {
            Some(lost) => lost,
            None => model.find(which).map(|(version, _)| (version.number, version.id))?,
        };
        let publisher = self.clone();
        self.writer
            .change(
                async move |writer: &mut Connection| {
                    if store::models::has_alias(writer, model.id, number).await? {
                        return Err(ServiceError::Conflict("an alias points to this version; move the alias first"));
                    }
                    traffic::check_unnamed(writer, model.id, &number.to_string()).await?;
                    store::models::delete_version(writer, id).await?;
                    let name = model.name.clone();
                    Ok(Changed::new((name.clone(), number), "version.delete", &name, Some(json!({"version": number})), None))
                },
                move |(name, number)| {
                    publisher.catalogue.change(name, |model| {
                        model.map(|mut model| {
                            model.versions.remove(number);
                            model.lost.remove(number);
                            model
                        })
                    });
                },
            )
            .await?;
        Ok(())
    }

    /// `If-Match` against the model's ETag, which names the served version and its sequence. `*` is any existing model.
    pub(crate) fn check_model_tags(&self, name: &str, tags: Option<&[String]>) -> Result<(), ServiceError> {
        let Some(tags) = tags else { return Ok(()) };
        let current = self.catalogue.model(name).ok().and_then(|model| model.served().and_then(|version| version.tag_now()));
        match current {
            Some(current) if tags.iter().any(|tag| tag == "*" || *tag == current) => Ok(()),
            _ => Err(ServiceError::Precondition),
        }
    }
}

/// What an alias points at, as the audit log has it.
fn pointing(alias: &str, (version, sequence): (u64, Option<u64>)) -> serde_json::Value {
    json!({"alias": alias, "version": version, "sequence": sequence})
}

/// The inner text of a version's ETag.
#[must_use]
pub(crate) fn tag(version: u64, sequence: u64) -> String {
    format!("{version}-{sequence}")
}

impl<T> Replayable<T> {
    /// The same with another value.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Replayable<U> {
        Replayable { value: change(self.value), replayed: self.replayed }
    }
}
