//! A proxy between a client and a server that breaks connections or stops answering, as networks do.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

pub struct Proxy {
    /// `127.0.0.1:PORT`.
    pub address: String,
    state: Arc<State>,
}

struct State {
    target: String,
    /// Connections that are still to be cut, and after how many bytes of answer.
    cuts_left: AtomicUsize,
    cut_after: usize,
    cuts_made: AtomicUsize,
    silent: AtomicBool,
    /// Bytes of answers so far, and after how many it falls silent by itself.
    answered: AtomicUsize,
    silent_after: AtomicUsize,
}

impl Proxy {
    /// Cuts the first `cuts` connections whose answers exceed `cut_after` bytes.
    pub fn cutting(target: &str, cuts: usize, cut_after: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(State {
            target: target.to_owned(),
            cuts_left: AtomicUsize::new(cuts),
            cut_after,
            cuts_made: AtomicUsize::new(0),
            silent: AtomicBool::new(false),
            answered: AtomicUsize::new(0),
            silent_after: AtomicUsize::new(usize::MAX),
        });
        let shared = Arc::clone(&state);
        // Ends with the test's process: it holds nothing that outlives it.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || serve(&client, &state));
            }
        });
        Self { address, state }
    }

    pub fn cuts_made(&self) -> usize {
        self.state.cuts_made.load(Ordering::SeqCst)
    }

    /// Falls silent once it has answered that many bytes.
    pub fn set_silent_after(&self, bytes: usize) {
        self.state.silent_after.store(bytes, Ordering::SeqCst);
    }

    pub fn is_silent(&self) -> bool {
        self.state.silent.load(Ordering::SeqCst)
    }

    /// From now on connections are accepted and requests swallowed, but nothing is ever answered.
    pub fn set_silent(&self, silent: bool) {
        self.state.silent.store(silent, Ordering::SeqCst);
    }
}

fn serve(client: &TcpStream, state: &State) {
    let Ok(server) = TcpStream::connect(&state.target) else { return };
    let (Ok(mut from_client), Ok(mut to_server)) = (client.try_clone(), server.try_clone()) else { return };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let _ = std::io::copy(&mut from_client, &mut to_server);
            let _ = to_server.shutdown(Shutdown::Write);
        });
        answer(client, &server, state);
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    });
}

fn answer(mut client: &TcpStream, mut server: &TcpStream, state: &State) {
    let mut buffer = vec![0; 16 << 10];
    let mut sent = 0;
    loop {
        let Ok(length) = server.read(&mut buffer) else { return };
        if length == 0 {
            return;
        }
        if state.answered.fetch_add(length, Ordering::SeqCst) + length > state.silent_after.load(Ordering::SeqCst) {
            state.silent.store(true, Ordering::SeqCst);
        }
        while state.silent.load(Ordering::SeqCst) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        sent += length;
        if sent > state.cut_after
            && state.cuts_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
        {
            state.cuts_made.fetch_add(1, Ordering::SeqCst);
            return;
        }
        if client.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}
