//! A caller over one connection that is kept: as little of a client as there can be, so that what is measured is the server.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// An answer may take as long as the slowest pull.
const PATIENCE: Duration = Duration::from_mins(5);
/// Headers of an answer.
const MOST_HEADERS: usize = 64;

/// A connection to a server.
pub(crate) struct Client {
    address: SocketAddr,
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// What a server said.
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { address, stream, buffer: Vec::with_capacity(64 << 10) })
    }

    /// Sends a request and reads the whole of its answer. To a Lambda API it looks signed, where any signature is as good.
    pub(crate) fn call(&mut self, method: &str, path: &str, body: &[u8]) -> Result<Answer> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: AWS4-HMAC-SHA256 any\r\ncontent-length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        self.stream.write_all(&[head.as_bytes(), body].concat())?;
        self.buffer.clear();
        let (status, headers, at) = loop {
            self.read_more()?;
            let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
            let mut head = httparse::Response::new(&mut headers);
            if let httparse::Status::Complete(at) = head.parse(&self.buffer)? {
                let pair = |header: &httparse::Header<'_>| {
                    (header.name.to_owned(), String::from_utf8_lossy(header.value).into_owned())
                };
                break (head.code.context("a status")?, head.headers.iter().map(pair).collect::<Vec<_>>(), at);
            }
        };
        let mut answer = Answer { status, headers, body: Vec::new() };
        if let Some(length) = answer.header("content-length") {
            let end = at + length.parse::<usize>()?;
            while self.buffer.len() < end {
                self.read_more()?;
            }
            answer.body.extend_from_slice(&self.buffer[at..end]);
        } else if answer.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            answer.body = self.read_chunks(at)?;
        } else {
            bail!("an answer {status} without a length");
        }
        Ok(answer)
    }

    fn read_chunks(&mut self, mut at: usize) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            match httparse::parse_chunk_size(&self.buffer[at..]) {
                Ok(httparse::Status::Complete((head, size))) => {
                    let (from, to) = (at + head, at + head + usize::try_from(size)?);
                    while self.buffer.len() < to + 2 {
                        self.read_more()?;
                    }
                    if size == 0 {
                        return Ok(body);
                    }
                    body.extend_from_slice(&self.buffer[from..to]);
                    at = to + 2;
                }
                Ok(httparse::Status::Partial) => self.read_more()?,
                Err(_) => bail!("an answer's chunks are damaged"),
            }
        }
    }

    fn read_more(&mut self) -> Result<()> {
        let mut block = [0; 16 << 10];
        let count = self.stream.read(&mut block)?;
        ensure!(count > 0, "{} closed the connection", self.address);
        self.buffer.extend_from_slice(&block[..count]);
        Ok(())
    }
}
