//! How many requests of a kind are under way at once, and what happens to those past that: they are told to come again, before their body is
//! read, so that whoever was let in is answered in time. What costs less than to say so is never refused: health, metrics, lists, documents.
//!
//! A short body is waited for before its request counts, since one that is still on its way keeps nobody waiting but itself, and could keep a
//! place for as long as its sender likes. A long one counts from its header on: it takes memory while it arrives. So short requests and
//! streams have places of their own, and slow streams do not keep the others out.
//!
//! Where predictions are limited by `auto`, a queue may be long for a moment and not for good, as CoDel has it (Nichols and Jacobson,
//! "Controlling Queue Delay", ACM Queue 10(5), 2012): once there was always somebody waiting for [`PATIENCE`], few may wait.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::BoxError;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::Method;
use axum::response::Response;
use http_body_util::BodyExt as _;

use super::error::{ApiError, Code};
use super::extract;
use crate::telemetry;

/// How long a queue may be longer than it may stay.
const PATIENCE: Duration = Duration::from_millis(100);
/// Predictions of a thread that may be waiting or computed, where there is always somebody waiting.
const STANDING: usize = 64;
/// Predictions that may be waiting for a moment.
const BURST: usize = 256;
/// Bodies of more bytes take longer to compute with than it takes to refuse them; only they let others come in before.
const WORTH_WAITING: usize = 4 << 10;

/// A kind of request, by what it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Processors.
    Predict,
    /// A place in a commit.
    Update,
    /// Memory, while rows to predict or to learn arrive for a while.
    Stream,
    /// A connection that waits for a job.
    Fit,
    /// Memory and the disk.
    Upload,
}

impl Class {
    const ALL: [Self; 5] = [Self::Predict, Self::Update, Self::Stream, Self::Fit, Self::Upload];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Predict => "predict",
            Self::Update => "update",
            Self::Stream => "stream",
            Self::Fit => "fit",
            Self::Upload => "upload",
        }
    }

    const fn refusal(self) -> &'static str {
        match self {
            Self::Predict => "too many predictions are under way; try again in a moment",
            Self::Update => "too many updates are under way; try again in a moment",
            Self::Stream => "too many long requests and streams are under way; try again in a moment",
            Self::Fit => "too many fits are asked for at the same time; try again in a moment",
            Self::Upload => "too many uploads are under way; try again in a moment",
        }
    }

    /// What a route is, if it is limited.
    pub(super) fn of(method: &Method, path: &str) -> Option<Self> {
        CLASSES.iter().find(|(verb, template, _)| method.as_str() == *verb && path == super::segments(template)).map(|(_, _, class)| *class)
    }
}

/// The routes that are limited.
const CLASSES: &[(&str, &str, Class)] = &[
    ("POST", "/v1/models/{name}/predict", Class::Predict),
    ("POST", "/v1/models/{name}/forecast", Class::Predict),
    ("POST", "/v1/models/{name}/invocations", Class::Predict),
    ("POST", "/v1/models/{name}:predict", Class::Predict),
    ("POST", "/v1/models/{name}/versions/{version}:predict", Class::Predict),
    ("POST", "/v2/models/{name}/infer", Class::Predict),
    ("POST", "/v2/models/{name}/versions/{version}/infer", Class::Predict),
    ("POST", "/invocations", Class::Predict),
    ("POST", "/v1/models/{name}/updates", Class::Update),
    ("POST", "/v1/models/{name}/labels", Class::Update),
    ("POST", "/v1/models/{name}/fits", Class::Fit),
    ("POST", "/v1/models/{name}/predictions", Class::Fit),
    ("GET", "/v1/models/{name}/versions/{version}/diagnostics", Class::Fit),
    ("PUT", "/v1/datasets/{name}", Class::Upload),
    ("POST", "/v1/datasets/{name}/rows", Class::Upload),
];

/// How many requests of each kind may be under way.
#[derive(Clone, Copy, Debug)]
pub struct Concurrency {
    /// Predictions; `None` is as many as the threads that serve can answer soon.
    pub predictions: Option<usize>,
    /// Updates and labels.
    pub updates: usize,
    /// Long bodies of both, and streams.
    pub streams: usize,
    /// Requests that fit, or wait for a fit.
    pub fits: usize,
    /// Uploads of datasets.
    pub uploads: usize,
    /// Threads that serve.
    pub threads: usize,
}

/// The requests that are under way.
#[derive(Debug)]
pub struct Overload {
    begun: Instant,
    lanes: [Lane; Class::ALL.len()],
}

/// Those of one kind. On a cache line of its own: requests of other kinds are counted by other threads.
#[derive(Debug)]
#[repr(align(128))]
struct Lane {
    most: usize,
    /// How many there may be where there is always one.
    standing: usize,
    busy: AtomicUsize,
    /// Microseconds, from the beginning, at which there was none for the last time.
    free_at: AtomicU64,
}

impl Default for Overload {
    /// One that refuses nobody.
    fn default() -> Self {
        let most = usize::MAX;
        Self::new(Concurrency { predictions: Some(most), updates: most, streams: most, fits: most, uploads: most, threads: 1 })
    }
}

impl Overload {
    /// Nothing is under way.
    #[must_use]
    pub fn new(limits: Concurrency) -> Self {
        let lane = |class| {
            let (most, standing) = match class {
                Class::Predict => match limits.predictions {
                    Some(most) => (most, most),
                    None => (BURST.max(STANDING * limits.threads), STANDING * limits.threads),
                },
                Class::Update => (limits.updates, limits.updates),
                Class::Stream => (limits.streams, limits.streams),
                Class::Fit => (limits.fits, limits.fits),
                Class::Upload => (limits.uploads, limits.uploads),
            };
            Lane { most, standing, busy: AtomicUsize::new(0), free_at: AtomicU64::new(0) }
        };
        Self { begun: Instant::now(), lanes: Class::ALL.map(lane) }
    }

    fn lane(&self, class: Class) -> &Lane {
        &self.lanes[class as usize]
    }

    fn micros(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.begun).as_micros()).unwrap_or(u64::MAX)
    }

    /// Whether one more would be past the limit, `busy` being under way.
    fn is_past(&self, class: Class, busy: usize, now: Instant) -> bool {
        let lane = self.lane(class);
        busy >= lane.most
            || busy >= lane.standing && self.micros(now).saturating_sub(lane.free_at.load(Ordering::Relaxed)) > PATIENCE.as_micros() as u64
    }

    /// Refuses a request that would find no place, while nothing of it was read.
    pub(super) fn look(&self, class: Class, now: Instant) -> Result<(), ApiError> {
        if self.is_past(class, self.lane(class).busy.load(Ordering::Relaxed), now) { Err(refused(class)) } else { Ok(()) }
    }

    /// Takes a place.
    pub(super) fn enter<O: Deref<Target = Self>>(this: O, class: Class, now: Instant) -> Result<Slot<O>, ApiError> {
        let before = this.lane(class).busy.fetch_add(1, Ordering::Relaxed);
        if before == 0 {
            this.lane(class).free_at.store(this.micros(now), Ordering::Relaxed);
        }
        let past = before > 0 && this.is_past(class, before, now);
        // From here on it is given back, whatever happens.
        let slot = Slot { overload: this, class };
        if past { Err(refused(class)) } else { Ok(slot) }
    }

    /// Sets the gauges that are read only when somebody looks.
    pub(super) fn gauge(&self) {
        for class in Class::ALL {
            let busy = self.lane(class).busy.load(Ordering::Relaxed);
            metrics::gauge!(telemetry::UNDER_WAY, "class" => class.as_str()).set(busy as f64);
        }
    }
}

#[cold]
fn refused(class: Class) -> ApiError {
    metrics::counter!(telemetry::SHED, "class" => class.as_str()).increment(1);
    ApiError::new(Code::Overloaded, class.refusal())
}

/// A place that is taken; free again when dropped.
#[derive(Debug)]
pub(super) struct Slot<O: Deref<Target = Overload>> {
    overload: O,
    class: Class,
}

impl<O: Deref<Target = Overload>> Drop for Slot<O> {
    fn drop(&mut self) {
        self.overload.lane(self.class).busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A place for a request with a short body, and that body, which was waited for before.
pub(super) async fn short<O, B>(overload: O, class: Class, body: B, limit: usize, begun: Instant) -> Result<(Bytes, Slot<O>), ApiError>
where
    O: Deref<Target = Overload>,
    B: HttpBody<Data = Bytes, Error: Into<BoxError>>,
{
    overload.look(class, begun)?;
    let body = extract::whole(body, limit).await?;
    // Of what takes a moment there may be a queue already, and it is as long as it is told here.
    let now = if body.len() > WORTH_WAITING { Instant::now() } else { begun };
    let slot = Overload::enter(overload, class, now)?;
    if body.len() > WORTH_WAITING && class == Class::Predict {
        // Those that have arrived by now are counted, and refused if they are too many, before this one takes its time.
        tokio::task::yield_now().await;
    }
    Ok((body, slot))
}

/// A place for a request of the routes, and its body.
pub(super) async fn place(
    overload: Arc<Overload>,
    class: Class,
    body: Body,
    limit: usize,
    begun: Instant,
) -> Result<(Body, Slot<Arc<Overload>>), ApiError> {
    if class != Class::Upload && body.size_hint().exact().is_some_and(|length| length <= extract::LARGE as u64) {
        let (body, slot) = short(overload, class, body, limit, begun).await?;
        return Ok((Body::from(body), slot));
    }
    let class = match class {
        Class::Predict | Class::Update => Class::Stream,
        other => other,
    };
    Ok((body, Overload::enter(overload, class, begun)?))
}

/// The answer, which keeps its place while it is made.
pub(super) fn leaving(response: Response, slot: Slot<Arc<Overload>>) -> Response {
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _held = &slot;
            frame
        }))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn overload(predictions: Option<usize>) -> Overload {
        Overload::new(Concurrency { predictions, updates: 2, streams: 1, fits: 1, uploads: 1, threads: 2 })
    }

    #[test]
    fn every_limited_route_is_one_and_health_and_metrics_are_none() {
        for (method, path, _) in CLASSES {
            assert!(super::super::ROUTES.iter().any(|(verb, template, _)| (verb, template) == (method, path)), "{method} {path}");
        }
        for (method, path, needs) in super::super::ROUTES {
            let class = Class::of(&method.parse().unwrap(), super::super::segments(path));
            if *needs == super::super::Needs::Nothing || *path == "/metrics" {
                assert_eq!(class, None, "{method} {path}");
            }
            match *needs.words() {
                ["predict"] => assert_eq!(class, Some(Class::Predict), "{method} {path}"),
                ["update"] => assert_eq!(class, Some(Class::Update), "{method} {path}"),
                _ => {}
            }
        }
    }

    #[test]
    fn places_are_as_many_as_the_limit_and_come_back() {
        let (overload, now) = (overload(Some(3)), Instant::now());
        let mut held: Vec<_> = (0..3).map(|_| Overload::enter(&overload, Class::Predict, now).unwrap()).collect();
        for _ in 0..2 {
            assert!(Overload::enter(&overload, Class::Predict, now).is_err());
            assert!(overload.look(Class::Predict, now).is_err());
        }
        assert!(Overload::enter(&overload, Class::Update, now).is_ok(), "kinds have places of their own");
        held.pop();
        assert!(overload.look(Class::Predict, now).is_ok());
        held.push(Overload::enter(&overload, Class::Predict, now).unwrap());
        drop(held);
        assert_eq!(overload.lane(Class::Predict).busy.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_queue_may_be_long_for_a_moment_and_not_for_good() {
        let (overload, begun) = (overload(None), Instant::now());
        let later = begun + PATIENCE + Duration::from_millis(1);
        let mut held: Vec<_> = (0..STANDING * 2).map(|_| Overload::enter(&overload, Class::Predict, begun).unwrap()).collect();
        assert!(overload.look(Class::Predict, begun).is_ok(), "a burst");
        assert!(overload.look(Class::Predict, later).is_err(), "a queue that stays");
        held.pop();
        assert!(overload.look(Class::Predict, later).is_ok());
        held.clear();
        let held: Vec<_> = (0..BURST).map(|_| Overload::enter(&overload, Class::Predict, later).unwrap()).collect();
        assert!(Overload::enter(&overload, Class::Predict, later).is_err(), "a burst has an end");
        drop(held);
    }

    #[tokio::test]
    async fn an_answer_that_takes_its_time_keeps_its_place() {
        let overload = Arc::new(overload(None));
        let busy = |class| overload.lane(class).busy.load(Ordering::Relaxed);
        let now = Instant::now();
        let (_, slot) = place(overload.clone(), Class::Update, Body::from_stream(Body::empty().into_data_stream()), 10, now).await.unwrap();
        assert_eq!((busy(Class::Update), busy(Class::Stream)), (0, 1));
        let whole = leaving(Response::new(Body::from("done")), slot);
        assert_eq!(busy(Class::Stream), 0);
        drop(whole);
        let (body, slot) = place(overload.clone(), Class::Update, Body::from("x"), 10, now).await.unwrap();
        assert_eq!((busy(Class::Update), body.size_hint().exact()), (1, Some(1)));
        let long = leaving(Response::new(Body::from_stream(Body::empty().into_data_stream())), slot);
        assert_eq!(busy(Class::Update), 1);
        drop(long);
        assert_eq!(busy(Class::Update), 0);
    }
}
