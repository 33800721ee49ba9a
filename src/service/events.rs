//! What happens to a model, as it happens: batches of updates, drifts, new versions, moved aliases. The last of it is kept in memory, so that
//! who was away for a moment can catch up; who was away for longer is told of the gap.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde_json::{Value, json};
use tokio::sync::broadcast;

/// Events that are kept for those who come late.
const KEPT: usize = 1024;
/// Events that a slow listener may lag behind.
const LAG: usize = 1024;

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its number in its channel, from 1.
    pub number: u64,
    /// `updates`, `drift`, `erased`, `version`, `alias`, `traffic`, `comparison` or `deleted`.
    pub kind: &'static str,
    /// What happened, JSON.
    pub data: String,
}

impl Event {
    /// Its id: the process and the number.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}-{}", process(), self.number)
    }
}

/// Tells the events of this process from those of an earlier one.
fn process() -> &'static str {
    static PROCESS: OnceLock<String> = OnceLock::new();
    PROCESS.get_or_init(|| format!("{:x}", jiff::Timestamp::now().as_millisecond()))
}

/// The events of one model.
#[derive(Debug, Default)]
pub struct Channel {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    kept: VecDeque<Arc<Event>>,
    /// There while somebody listens: its slots weigh more than a model does, and most models have no listener.
    sender: Option<broadcast::Sender<Arc<Event>>>,
}

impl Inner {
    /// The number of the newest event, 0 if there was none.
    fn newest(&self) -> u64 {
        self.kept.back().map_or(0, |event| event.number)
    }
}

/// What a listener gets first, and how it goes on.
#[derive(Debug)]
pub struct Listening {
    /// Whether events after the one it named are no longer known.
    pub gap: bool,
    /// Events since then, oldest first.
    pub missed: Vec<Arc<Event>>,
    /// Those to come.
    pub next: broadcast::Receiver<Arc<Event>>,
}

impl Channel {
    /// Tells everyone.
    pub(crate) fn send(&self, kind: &'static str, data: &Value) {
        let mut inner = self.inner();
        let number = inner.newest() + 1;
        let event = Arc::new(Event { number, kind, data: data.to_string() });
        inner.kept.push_back(event.clone());
        if inner.kept.len() > KEPT {
            inner.kept.pop_front();
        }
        // Under the lock, so that who listens misses none and gets none twice. It fails when nobody listens any more.
        if inner.sender.as_ref().is_some_and(|sender| sender.send(event).is_err()) {
            inner.sender = None;
        }
    }

    /// Forgets how large the errors were from an erased row of a version on: in a window of few rows, that tells its own.
    pub(crate) fn forget(&self, version: u64, sequence: u64) {
        for event in self.inner().kept.iter_mut().filter(|event| event.kind == "updates") {
            let Ok(mut data) = serde_json::from_str::<Value>(&event.data) else { continue };
            if data["version"] == version && data["sequence"].as_u64().is_some_and(|last| last >= sequence) {
                data["rmse"] = Value::Null;
                *event = Arc::new(Event { data: data.to_string(), ..Event::clone(event) });
            }
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Events after the one of that id, or only those to come.
    #[must_use]
    pub fn listen(&self, after: Option<&str>) -> Listening {
        let mut inner = self.inner();
        let next = inner.sender.get_or_insert_with(|| broadcast::channel(LAG).0).subscribe();
        let kept = &inner.kept;
        let Some(after) = after else { return Listening { gap: false, missed: Vec::new(), next } };
        let number = after.split_once('-').filter(|(of, _)| *of == process()).and_then(|(_, number)| number.parse::<u64>().ok());
        let oldest = kept.front().map_or(1, |event| event.number);
        let gap = number.is_none_or(|number| number + 1 < oldest);
        let missed = kept.iter().filter(|event| number.is_none_or(|number| event.number > number)).cloned().collect();
        Listening { gap, missed, next }
    }

    /// The id of the newest event, or one from which all are to come.
    #[must_use]
    pub fn newest(&self) -> String {
        format!("{}-{}", process(), self.inner().newest())
    }

    pub(crate) fn alias(&self, alias: &str, version: Option<u64>, sequence: Option<u64>) {
        self.send("alias", &json!({"alias": alias, "version": version, "sequence": sequence}));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn who_was_away_catches_up_or_is_told_of_the_gap() {
        let channel = Channel::default();
        let start = channel.newest();
        (0..3).for_each(|place| channel.send("updates", &json!({"place": place})));
        let caught = channel.listen(Some(&start));
        assert!(!caught.gap);
        assert_eq!(caught.missed.iter().map(|event| event.number).collect::<Vec<_>>(), [1, 2, 3]);
        let last = caught.missed[1].id();
        assert_eq!(channel.listen(Some(&last)).missed.len(), 1);
        assert!(channel.listen(None).missed.is_empty());
        (0..KEPT).for_each(|_| channel.send("updates", &json!({})));
        assert!(channel.listen(Some(&last)).gap);
        assert!(!channel.listen(Some(&channel.newest())).gap);
        assert!(channel.listen(Some("0-17")).gap);
    }
    #[tokio::test]
    async fn who_listens_is_told_and_who_has_left_weighs_nothing() {
        let channel = Channel::default();
        let mut one = channel.listen(None).next;
        channel.send("updates", &json!({}));
        assert_eq!(one.recv().await.unwrap().number, 1);
        drop(one);
        channel.send("updates", &json!({}));
        assert!(channel.inner().sender.is_none());
        let mut other = channel.listen(None).next;
        channel.send("updates", &json!({}));
        assert_eq!(other.recv().await.unwrap().number, 3);
    }
}
