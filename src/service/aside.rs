//! Long computations: on threads that give way to those which answer requests.
//!
//! A fit takes every core there is. Where it and a request want the same one, the system lets the request go first; where nobody else wants
//! a core, the fit is as fast as it is otherwise.

use std::future::Future;

use tokio::sync::oneshot;

use super::ServiceError;

/// How far these threads stand behind the others, in the steps that `nice` counts: at ten, one gets about a tenth of a core that both want.
#[cfg(target_os = "linux")]
const BEHIND: i32 = 10;

/// Lets the calling thread give way for the rest of its life.
fn give_way() {
    // To the system a thread is a process here. Whoever forbids it gets computations that do not give way.
    #[cfg(target_os = "linux")]
    if let Ok(now) = rustix::process::getpriority_process(None) {
        let _ = rustix::process::setpriority_process(None, now + BEHIND);
    }
}

/// Has the threads give way over which one computation is shared out; once in a process, before any of them is needed.
pub(super) fn prepare() {
    // Whoever has made them already, as a program around this library may, has them as they are.
    let _ = sharing().build_global();
}

fn sharing() -> rayon::ThreadPoolBuilder {
    rayon::ThreadPoolBuilder::new().thread_name(|place| format!("lsqd-share-{place}")).start_handler(|_| give_way())
}

/// Computes on a thread of its own; `what` ends in the middle if that panics. The computation goes on when nobody waits any more.
pub(super) fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ServiceError> + Send + 'static,
    panicked: &'static str,
) -> impl Future<Output = Result<T, ServiceError>> + Send {
    let (done, waiting) = oneshot::channel();
    let started = std::thread::Builder::new().name("lsqd-compute".to_owned()).spawn(move || {
        give_way();
        // Nobody may be waiting any more.
        let _ = done.send(work());
    });
    async move {
        started.map_err(|_| ServiceError::Unavailable("no thread could be started for a computation"))?;
        waiting.await.map_err(|_| ServiceError::Internal(panicked))?
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn computations_give_way_and_so_does_whoever_shares_in_them() {
        let own = || rustix::process::getpriority_process(None).map_err(|_| ServiceError::Internal("no priority"));
        let here = own().unwrap();
        assert_eq!(aside(own, "").await.unwrap(), (here + BEHIND).min(19));
        assert_eq!(sharing().num_threads(1).build().unwrap().install(own).unwrap(), (here + BEHIND).min(19));
        assert_eq!(own().unwrap(), here);
    }

    #[tokio::test]
    async fn a_panic_is_told() {
        let outcome: Result<(), _> = aside(|| panic!("planned"), "it panicked").await;
        assert!(matches!(outcome, Err(ServiceError::Internal("it panicked"))));
    }
}
