//! How many requests a key may send: a bucket of tokens, which fills at a rate and holds a burst.
//!
//! It is kept as the one number that says all of it, the moment at which the bucket will be full again: the generic cell rate algorithm
//! (ITU-T I.371, annex A). So to take a token is one exchange of an atomic number, and nothing has to fill buckets.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A rate and a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds in which a token comes.
    each: u64,
    /// Tokens of a full bucket.
    burst: u64,
}

impl Rate {
    /// So many requests a second for good, and so many at once.
    #[must_use]
    pub fn new(per_second: u32, burst: u32) -> Self {
        Self { each: (1_000_000_000 / u64::from(per_second.max(1))).max(1), burst: u64::from(burst.max(1)) }
    }
}

/// The tokens of one key.
#[derive(Debug)]
pub(super) struct Bucket {
    begun: Instant,
    /// Nanoseconds, from the beginning, at which it is full.
    full_at: AtomicU64,
}

impl Bucket {
    /// A full one.
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), full_at: AtomicU64::new(0) }
    }

    /// Takes a token; with none left, how long until there is one.
    pub(super) fn take(&self, rate: Rate, now: Instant) -> Result<(), Duration> {
        let now = u64::try_from(now.saturating_duration_since(self.begun).as_nanos()).unwrap_or(u64::MAX);
        let most = now.saturating_add(rate.each.saturating_mul(rate.burst));
        let taken = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            Some(full_at.max(now).saturating_add(rate.each)).filter(|full_at| *full_at <= most)
        });
        taken.map(|_| ()).map_err(|full_at| Duration::from_nanos(full_at.saturating_add(rate.each).saturating_sub(most)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_had_at_once_and_then_the_rate() {
        let (bucket, rate) = (Bucket::new(), Rate::new(10, 3));
        let at = |millis| bucket.begun + Duration::from_millis(millis);
        assert_eq!([0, 0, 0].map(|millis| bucket.take(rate, at(millis))), [Ok(()); 3]);
        assert_eq!(bucket.take(rate, at(0)), Err(Duration::from_millis(100)));
        assert_eq!(bucket.take(rate, at(60)), Err(Duration::from_millis(40)), "what is refused costs nothing");
        assert_eq!(bucket.take(rate, at(100)), Ok(()));
        assert_eq!(bucket.take(rate, at(150)), Err(Duration::from_millis(50)));
        let taken = (200..1200).filter(|millis| bucket.take(rate, at(*millis)).is_ok()).count();
        assert_eq!(taken, 10);
        assert_eq!((0..10).filter(|_| bucket.take(rate, at(60_000)).is_ok()).count(), 3, "a bucket holds a burst and no more");
    }

    #[test]
    fn many_threads_take_no_more_than_there_are() {
        let (bucket, rate) = (Bucket::new(), Rate::new(1, 1000));
        let now = Instant::now();
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| (0..500).filter(|_| bucket.take(rate, now).is_ok()).count())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_default()).sum()
        });
        assert_eq!(taken, 1000);
    }
}
