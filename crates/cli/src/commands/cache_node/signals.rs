//! What asks a process to end.

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, Signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// SIGTERM and SIGINT, one after the other.
pub(super) struct Signals(UnboundedReceiver<u8>);

impl Signals {
    /// Takes them for this process. Threads that are there already would still be ended by them.
    pub(super) fn block() -> Result<Self> {
        let mut ending = SigSet::empty();
        ending.add(Signal::SIGTERM);
        ending.add(Signal::SIGINT);
        ending.thread_block().context("blocking signals")?;
        let (sender, receiver) = unbounded_channel();
        let wait = move || {
            while let Ok(signal) = ending.wait() {
                if sender.send(signal as u8).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(wait).context("starting a thread")?;
        Ok(Self(receiver))
    }

    /// The number of the next one.
    pub(super) async fn next(&mut self) -> Option<u8> {
        self.0.recv().await
    }
}
