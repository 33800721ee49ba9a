//! Reading a dataset ahead of the long computation that takes it in.
//!
//! Fetching and decoding a chunk are a good part of a pass over a large dataset. They are done on a thread that gives way as the computation
//! does: on the threads that serve they would hold up requests for milliseconds at a time.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::ServiceError;
use super::aside::aside;
use super::datasets::Opened;
use crate::frame::Frame;

/// Frames that may wait for the computation: bounds memory.
const FRAMES: usize = 2;

/// The frames of a dataset in their order.
pub(super) struct Ahead {
    frames: mpsc::Receiver<Result<(Frame, u64), ServiceError>>,
    /// Frames that have not come yet.
    left: usize,
}

impl Ahead {
    /// Begins to read some columns of a dataset.
    pub(super) fn of(runtime: &Handle, dataset: Arc<Opened>, columns: Vec<usize>) -> Self {
        let (sender, frames) = mpsc::channel(FRAMES);
        let left = dataset.chunks.len();
        let runtime = runtime.clone();
        let read = move || {
            runtime.block_on(async {
                for chunk in &dataset.chunks {
                    let frame = dataset.frame_behind(chunk, &columns).await;
                    let failed = frame.is_err();
                    if sender.send(frame.map(|frame| (frame, chunk.first_row))).await.is_err() || failed {
                        return;
                    }
                }
            });
            Ok(())
        };
        // Nobody waits for the thread: how it went is told by the frames, and by their number.
        drop(aside(read, "the reading of a dataset panicked"));
        Self { frames, left }
    }

    /// The next frame and the index of its first row in the dataset; waits for it. There is none after an error.
    ///
    /// # Errors
    /// It cannot be read; or whoever reads ended before the dataset did, so that the frames so far are not all of it.
    pub(super) fn next(&mut self) -> Option<Result<(Frame, u64), ServiceError>> {
        if self.left == 0 {
            return None;
        }
        let next = self.frames.blocking_recv().unwrap_or(Err(ServiceError::Internal("the reading of a dataset ended before the dataset")));
        self.left = if next.is_ok() { self.left - 1 } else { 0 };
        Some(next)
    }
}
