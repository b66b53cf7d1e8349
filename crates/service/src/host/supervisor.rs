//! The first process of a container with extensions (`first_process/main.rs`), as its host sees it.
//!
//! It comes to a socket that is there for it alone and is closed once it has. Whatever it says comes from the container, where others may
//! have taken its place: that is believed of their own sandbox, and of nothing else.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::network::Namespace;
use super::serving::Shared;

/// The program, as `build.rs` has made it.
pub(super) const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/first-process"));
/// Where an image has extensions.
pub(super) const EXTENSIONS: &str = "/opt/extensions";
/// A name of a file has up to 255 bytes.
const MOST_LINE: usize = 512;
/// Read at once of what extensions write.
const BLOCK: usize = 64 << 10;

/// The socket's name, in the network namespace of the container.
pub(super) fn socket_name(sandbox: &str) -> String {
    format!("snowmelt-first-process-{sandbox}")
}

/// Listens for it where only the container is.
pub(super) fn listen(namespace: &Namespace, sandbox: &str) -> std::io::Result<UnixListener> {
    let address = SocketAddr::from_abstract_name(socket_name(sandbox))?;
    namespace.inside(move || UnixListener::bind_addr(&address))
}

/// What it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Start the runtime.
    Run,
    /// SIGTERM to the runtime.
    Terminate,
    /// SIGKILL to the runtime.
    Kill,
}

/// What it says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// An extension was started; of the runtime the name is empty.
    Launched(String),
    /// It could not be.
    Failed(u8, String),
    /// All that there are were started.
    LaunchedAll,
    /// It has ended.
    Ended(u8, String),
}

impl Said {
    fn parse(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let with_status = || {
            let (status, name) = rest.split_once(' ')?;
            Some((status.parse().ok()?, name.to_owned()))
        };
        match word {
            "launched" => Some(Self::Launched(rest.to_owned())),
            "launched-all" => Some(Self::LaunchedAll),
            "failed" => with_status().map(|(status, name)| Self::Failed(status, name)),
            "ended" => with_status().map(|(status, name)| Self::Ended(status, name)),
            _ => None,
        }
    }
}

/// Waits for it, as long as the sandbox is there, and hears it then.
pub(super) async fn serve(listener: UnixListener, shared: Arc<Shared>, mut orders: mpsc::Receiver<Order>) {
    let listener = listener.set_nonblocking(true).and_then(|()| tokio::net::UnixListener::from_std(listener));
    let Ok(listener) = listener else { return };
    let Ok((control, _)) = listener.accept().await else { return };
    let Ok((logs, _)) = listener.accept().await else { return };
    // Nobody else comes.
    drop(listener);
    shared.has_first_process();
    let (mut from, mut to) = control.into_split();
    tokio::spawn(read_logs(logs, Arc::clone(&shared)));
    if to.write_all(b"begin\n").await.is_err() {
        return;
    }
    let tell = async {
        while let Some(order) = orders.recv().await {
            let word: &[u8] = match order {
                Order::Run => b"run\n",
                Order::Terminate => b"terminate\n",
                Order::Kill => b"kill\n",
            };
            if to.write_all(word).await.is_err() {
                return;
            }
        }
    };
    let hear = async {
        let mut lines = Lines::default();
        while let Some(line) = lines.next(&mut from).await {
            if let Some(said) = Said::parse(&line) {
                shared.first_process_said(said).await;
            }
        }
    };
    // Its end is that of the container, which the run tells of.
    tokio::join!(tell, hear);
}

/// What extensions write.
async fn read_logs(mut logs: UnixStream, shared: Arc<Shared>) {
    let mut bytes = vec![0; BLOCK];
    while let Ok(count @ 1..) = logs.read(&mut bytes).await {
        shared.extension_logged(&bytes[..count]).await;
    }
}

/// Lines of a bounded length.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    /// `None` at the end, and where a line is too long.
    async fn next(&mut self, from: &mut (impl AsyncRead + Unpin)) -> Option<String> {
        loop {
            if let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.0.drain(..=end).collect();
                return String::from_utf8(line[..end].to_vec()).ok();
            }
            if self.0.len() > MOST_LINE {
                return None;
            }
            let mut more = [0; MOST_LINE];
            match from.read(&mut more).await {
                Ok(count @ 1..) => self.0.extend_from_slice(&more[..count]),
                _ => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_it_says() {
        for (line, said) in [
            ("launched a b", Some(Said::Launched("a b".into()))),
            ("launched ", Some(Said::Launched(String::new()))),
            ("launched-all", Some(Said::LaunchedAll)),
            ("failed 127 x", Some(Said::Failed(127, "x".into()))),
            ("ended 137 ", Some(Said::Ended(137, String::new()))),
            ("ended 256 x", None),
            ("ended x", None),
            ("", None),
            ("other", None),
        ] {
            assert_eq!(Said::parse(line), said, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (mut lines, mut from) = (Lines::default(), bytes.as_slice());
                while let Some(line) = lines.next(&mut from).await {
                    let _ = Said::parse(&line);
                    assert!(line.len() <= 2 * MOST_LINE && lines.0.len() <= 2 * MOST_LINE);
                }
            });
        }
    }
}

/// Linted with the rest: it is built by itself.
#[cfg(test)]
#[allow(dead_code)]
#[path = "../../first_process/main.rs"]
mod first_process;
