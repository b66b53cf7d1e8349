//! A small HTTP server for the files of a store: GET and HEAD, ranges, connections that are kept open.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};

/// A server on a free port of 127.0.0.1; stops accepting when dropped.
pub(crate) struct Origin {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
    asked: Arc<Asked>,
}

/// How often each path was asked for.
type Asked = Mutex<BTreeMap<String, u64>>;

impl Origin {
    pub(crate) fn start(directory: &Path) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let accepting = Arc::clone(&stopping);
        let directory: Arc<Path> = directory.into();
        let asked = Arc::<Asked>::default();
        let asking = Arc::clone(&asked);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.load(Ordering::Relaxed) {
                    return;
                }
                let (directory, asked) = (Arc::clone(&directory), Arc::clone(&asking));
                std::thread::spawn(move || {
                    // A connection that breaks is the client's to notice.
                    let _ = serve(&client, &directory, &asked);
                });
            }
        });
        Ok(Self { address, stopping, asked })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What was asked for since the last call, by path, and how often.
    pub(crate) fn take_asked(&self) -> BTreeMap<String, u64> {
        std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

struct Request {
    method: String,
    path: String,
    range: Option<String>,
}

fn serve(client: &TcpStream, directory: &Path, asked: &Asked) -> Result<()> {
    client.set_nodelay(true)?;
    let mut reader = BufReader::new(client);
    while let Some(request) = read_request(&mut reader)? {
        *asked.lock().unwrap_or_else(PoisonError::into_inner).entry(request.path.clone()).or_default() += 1;
        answer(client, directory, &request)?;
    }
    Ok(())
}

/// The next request of a connection; `None` when the client has closed it.
fn read_request(reader: &mut impl BufRead) -> Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut parts = line.split_whitespace();
    let method = parts.next().context("a request has a method")?.to_owned();
    let path = parts.next().context("a request has a path")?.to_owned();
    let mut range = None;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
            return Ok(Some(Request { method, path, range }));
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("range")
        {
            range = Some(value.trim().to_owned());
        }
    }
}

fn answer(mut client: &TcpStream, directory: &Path, request: &Request) -> Result<()> {
    let opened = file_of(directory, &request.path).and_then(|path| File::open(path).ok());
    let Some(mut file) = opened.filter(|file| file.metadata().is_ok_and(|metadata| metadata.is_file())) else {
        client.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
        return Ok(());
    };
    let size = file.metadata()?.len();
    let range = request.range.as_deref().and_then(|range| parse_range(range, size));
    let (first, end) = range.unwrap_or((0, size));
    let mut head = match range {
        Some(_) => format!("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{}/{size}\r\n", end - 1),
        None => "HTTP/1.1 200 OK\r\n".to_owned(),
    };
    let _ = write!(
        head,
        "Content-Length: {}\r\nContent-Type: application/octet-stream\r\nAccept-Ranges: bytes\r\n\
         Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\n\r\n",
        end - first
    );
    let mut message = head.into_bytes();
    if request.method == "GET" {
        file.seek(SeekFrom::Start(first))?;
        // Chunks are small: one write of head and body.
        file.take(end - first).read_to_end(&mut message)?;
    }
    client.write_all(&message)?;
    Ok(())
}

/// The file of a request's path; `None` if it would lie elsewhere.
fn file_of(directory: &Path, path: &str) -> Option<PathBuf> {
    let path = path.split('?').next()?.trim_start_matches('/').replace("%40", "@").replace("%3A", ":");
    let path = Path::new(&path);
    path.components().all(|part| matches!(part, Component::Normal(_))).then(|| directory.join(path))
}

/// `bytes=A-B`, `bytes=A-` and `bytes=-N` as a half-open range; `None` for anything else, which is then ignored.
fn parse_range(text: &str, size: u64) -> Option<(u64, u64)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (first, end) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) => (first, last.saturating_add(1).min(size)),
        (Ok(first), Err(_)) if last.is_empty() => (first, size),
        (Err(_), Ok(count)) if first.is_empty() => (size.saturating_sub(count), size),
        _ => return None,
    };
    (first < end).then_some((first, end))
}

#[cfg(test)]
mod tests {
    use super::parse_range;

    #[test]
    fn ranges_of_all_three_forms() {
        assert_eq!(parse_range("bytes=0-99", 1000), Some((0, 100)));
        assert_eq!(parse_range("bytes=900-2000", 1000), Some((900, 1000)));
        assert_eq!(parse_range("bytes=10-", 1000), Some((10, 1000)));
        assert_eq!(parse_range("bytes=-10", 1000), Some((990, 1000)));
        assert_eq!(parse_range("bytes=1000-", 1000), None);
        assert_eq!(parse_range("lines=1-2", 1000), None);
    }
}
