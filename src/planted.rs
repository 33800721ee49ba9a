//! Bugs on purpose, so that the tests of crashes and power cuts can show that they would notice them, and those of panics have some.
//!
//! Only a build with debug assertions has them, and only when `LSQD_PLANTED_FAULT` names one; it is read once. In a release build nothing of
//! this is left. It is no setting, which is why `config` does not know it.

/// A bug that `LSQD_PLANTED_FAULT` can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// `reply-before-commit`: an update is answered, and some milliseconds later it is on disk.
    ReplyBeforeCommit,
    /// `synchronous-normal`: a commit does not wait for the disk.
    SynchronousNormal,
    /// `no-deduplication`: `Idempotency-Key` and `_id` are not looked at in updates.
    NoDeduplication,
    /// `stumble`: predicting, learning or fitting panics for the model that is named after it, `stumbles-predicting` and so on.
    Stumble,
}

/// Panics in the midst of such work for the model that is named after it, if this process has [`Bug::Stumble`].
pub(crate) fn stumble(model: &str, work: &str) {
    assert!(!(has(Bug::Stumble) && model.strip_prefix("stumbles-") == Some(work)), "a panic that was planted");
}

/// Whether this process has the bug.
#[cfg(debug_assertions)]
pub(crate) fn has(bug: Bug) -> bool {
    static PLANTED: std::sync::OnceLock<Option<Bug>> = std::sync::OnceLock::new();
    let planted = PLANTED.get_or_init(|| match std::env::var("LSQD_PLANTED_FAULT").as_deref() {
        Ok("reply-before-commit") => Some(Bug::ReplyBeforeCommit),
        Ok("synchronous-normal") => Some(Bug::SynchronousNormal),
        Ok("no-deduplication") => Some(Bug::NoDeduplication),
        Ok("stumble") => Some(Bug::Stumble),
        _ => None,
    });
    *planted == Some(bug)
}

/// No.
#[cfg(not(debug_assertions))]
pub(crate) const fn has(_: Bug) -> bool {
    false
}
