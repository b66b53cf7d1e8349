//! Work that nobody waits for, in a thread of its own with a bounded queue: what comes while it is full is not done.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

/// Does jobs one after the other. Ends, with all that it has taken, when dropped.
#[derive(Debug)]
pub(crate) struct Background<J> {
    queue: Mutex<Option<SyncSender<Step<J>>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
enum Step<J> {
    Do(J),
    /// Answered when all before it is done.
    Flush(SyncSender<()>),
}

/// Whether a job will be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Yes,
    No,
}

impl<J: Send + 'static> Background<J> {
    pub(crate) fn start(name: &str, queue: usize, work: impl FnMut(J) + Send + 'static) -> Self {
        let (sender, steps) = sync_channel(queue);
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || run(&steps, work));
        let thread = thread.inspect_err(|error| tracing::warn!(%error, name, "no thread for it")).ok();
        Self { queue: Mutex::new(Some(sender)), thread: Mutex::new(thread) }
    }

    fn sender(&self) -> Option<SyncSender<Step<J>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does not wait.
    pub(crate) fn give(&self, job: J) -> Taken {
        let taken = self.sender().is_some_and(|sender| sender.try_send(Step::Do(job)).is_ok());
        if taken { Taken::Yes } else { Taken::No }
    }

    /// Waits until all that was taken is done.
    pub(crate) fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if let Some(sender) = self.sender()
            && sender.send(Step::Flush(done)).is_ok()
        {
            // An error means that the thread is gone, and with it all that could be waited for.
            let _ = wait.recv();
        }
    }
}

impl<J> Drop for Background<J> {
    fn drop(&mut self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

fn run<J>(steps: &Receiver<Step<J>>, mut work: impl FnMut(J)) {
    for step in steps {
        match step {
            Step::Do(job) => work(job),
            Step::Flush(done) => {
                let _ = done.send(());
            }
        }
    }
}
