//! Looking for the next request before going to sleep.
//!
//! A thread that sleeps has to be woken, and on a core that has gone to sleep with it that takes longer than most answers do. So after an
//! answer a serving thread looks at its connections for a moment more, and a client that asks one thing after the other finds it awake. It
//! does so only while it pays: the core is offered to everybody else at each turn, and is left alone for a while when somebody wanted it or
//! when nothing came.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// A core that was offered and comes back later than this was wanted by others. A client that answers an answer takes less.
const WANTED: Duration = Duration::from_micros(40);
/// How long it is left to them then, at least. Also bounds what looking in vain costs: one patience in so long a time.
const REST: Duration = Duration::from_millis(1);
/// And at most, after it was wanted again and again.
const LONGEST_REST: Duration = Duration::from_millis(256);
/// Whoever could look for so long has the core for itself.
const UNDISTURBED: Duration = Duration::from_millis(2);

/// What a serving thread and its connections share.
#[derive(Debug, Default)]
pub(super) struct BusyPoll {
    /// Requests answered.
    answered: AtomicU64,
    awake: Notify,
}

impl BusyPoll {
    /// A request was answered, and its client may ask again at once.
    pub(super) fn answered(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        self.awake.notify_one();
    }

    /// Keeps the event loop that polls this awake for `patience` after each answer; never ends.
    pub(super) async fn run(&self, patience: Duration) {
        if patience.is_zero() {
            return std::future::pending().await;
        }
        let mut rest = REST;
        loop {
            self.awake.notified().await;
            let begun = Instant::now();
            let wanted = self.look(patience).await;
            // To be put off costs the connections of this thread up to a slice of the other's time, so it must not happen often.
            rest = if wanted && begun.elapsed() < UNDISTURBED { LONGEST_REST.min(2 * rest) } else { REST };
            tokio::time::sleep(rest).await;
        }
    }

    /// Until the last answer is `patience` ago, or somebody else wants the core; whether it is that.
    async fn look(&self, patience: Duration) -> bool {
        let mut answered = self.answered.load(Ordering::Relaxed);
        let mut now = Instant::now();
        let mut until = now + patience;
        while now < until {
            std::thread::yield_now();
            if now.elapsed() > WANTED {
                return true;
            }
            // The loop looks at the sockets, without waiting for them, before it comes back here.
            tokio::task::yield_now().await;
            now = Instant::now();
            let count = self.answered.load(Ordering::Relaxed);
            if count != answered {
                answered = count;
                until = now + patience;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::future::{Future, poll_fn};
    use std::pin::pin;

    /// Turns of the loop after an answer: the most of any answer, until there are `enough` or so many answers were given; and those in the
    /// time after the last one.
    async fn turns(patience: Duration, enough: usize, answers: usize) -> (usize, usize) {
        let poll = BusyPoll::default();
        let turns = Cell::new(0);
        let mut run = pin!(poll.run(patience));
        let mut counted = pin!(poll_fn(|context| {
            turns.set(turns.get() + 1);
            run.as_mut().poll(context)
        }));
        let during = async |time: Duration| {
            let before = turns.get();
            tokio::time::sleep(time).await;
            turns.get() - before
        };
        let mut asking = pin!(async {
            let mut most = 0;
            for _ in 0..answers {
                poll.answered();
                most = most.max(during(4 * REST).await);
                if most >= enough {
                    break;
                }
            }
            during(LONGEST_REST + 4 * REST).await;
            (most, during(20 * REST).await)
        });
        tokio::select! {
            counts = &mut asking => counts,
            () = &mut counted => (0, 0),
        }
    }

    #[tokio::test]
    async fn a_loop_is_awake_after_an_answer_and_asleep_when_nothing_comes() {
        // Other tests want the core too, but not at every moment; and some turns are the test's own.
        let (meanwhile, afterwards) = turns(Duration::from_millis(1), 100, 2_000).await;
        assert!(meanwhile >= 100 && afterwards < 10, "{meanwhile} {afterwards}");
    }

    #[tokio::test]
    async fn without_patience_a_loop_sleeps_at_once() {
        let (meanwhile, afterwards) = turns(Duration::ZERO, 100, 20).await;
        assert!(meanwhile < 10 && afterwards < 10, "{meanwhile} {afterwards}");
    }
}
