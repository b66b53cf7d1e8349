//! `snowmelt top`: what a service is doing, in a terminal, again and again.

mod chart;
mod figures;
mod plain;
mod view;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ratatui::crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers, poll, read};
use rustix::event::{PollFd, PollFlags, Timespec, poll as wait_for};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use self::figures::Figures;
use self::view::View;
use crate::args::TopArgs;
use crate::commands::functions::block_on;
use crate::commands::functions::client::Client;
use crate::commands::serve::read_token;
use crate::output;

/// How long a look may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked for keys and news.
const BEAT: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// What comes from beside the keyboard.
enum News {
    Status(Box<Value>),
    /// The service does not say.
    Lost(String),
    /// This process is to end.
    End,
}

pub(crate) fn top(is_json: bool, args: &TopArgs) -> Result<ExitCode> {
    let token = args.token_file.as_deref().map(read_token).transpose()?;
    let client = Client::new(&args.endpoint.endpoint, token)?;
    let is_terminal = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    if is_json || args.once || !is_terminal {
        let status = block_on(client.status())??;
        if is_json {
            output::print_json(&status)?;
        } else {
            if !args.once {
                eprintln!("snowmelt: this is no terminal: printed once, as with --once");
            }
            output::print(&plain::text(client.endpoint(), &Figures::read(&status)))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    // What is wrong at the very beginning is said where it stays to be read.
    let first = block_on(client.status())??;
    let endpoint = client.endpoint().to_owned();
    let (sender, news) = channel();
    let interval = args.interval;
    std::thread::Builder::new()
        .name("status".into())
        .spawn(move || watch(&client, interval, &sender))
        .context("starting a thread")?;
    let mut terminal = ratatui::try_init().context("setting up the terminal")?;
    let shown = show(&mut terminal, View::new(endpoint, &first), &news);
    ratatui::restore();
    shown?;
    Ok(ExitCode::SUCCESS)
}

/// Looks again and again, until nobody wants to know.
fn watch(client: &Client, interval: Duration, news: &Sender<News>) {
    let watching = block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        let mut hung_up = signal(SignalKind::hangup())?;
        let look = async {
            loop {
                tokio::time::sleep(interval).await;
                let found = match tokio::time::timeout(PATIENCE, client.status()).await {
                    Ok(Ok(status)) => News::Status(Box::new(status)),
                    Ok(Err(error)) => News::Lost(error.to_string()),
                    Err(_) => News::Lost(format!("{} does not answer", client.endpoint())),
                };
                if news.send(found).is_err() {
                    break;
                }
            }
        };
        tokio::select! {
            () = look => {}
            _ = terminated.recv() => {}
            _ = hung_up.recv() => {}
        }
        std::io::Result::Ok(())
    });
    drop(watching);
    // Who does not listen any more has ended.
    let _ = news.send(News::End);
}

fn show(terminal: &mut ratatui::DefaultTerminal, mut view: View, news: &Receiver<News>) -> Result<()> {
    loop {
        terminal.draw(|frame| view.draw(frame)).context("drawing")?;
        let mut is_new = false;
        while !is_new {
            // A terminal that has gone would have the library read for ever.
            let stdin = std::io::stdin();
            let mut waited = [PollFd::new(&stdin, PollFlags::IN)];
            // A signal, such as that of another size, ends the wait.
            let _ = wait_for(&mut waited, Some(&BEAT));
            if waited[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
                return Ok(());
            }
            if poll(Duration::ZERO).context("reading keys")? {
                match read().context("reading keys")? {
                    Event::Key(key) if key.kind != KeyEventKind::Release => {
                        let is_interrupt =
                            key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
                        match key.code {
                            KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                            _ if is_interrupt => return Ok(()),
                            KeyCode::Char('s') => view.sort_by_next(),
                            KeyCode::Down | KeyCode::Char('j') => view.scroll(1),
                            KeyCode::Up | KeyCode::Char('k') => view.scroll(-1),
                            KeyCode::PageDown => view.scroll(20),
                            KeyCode::PageUp => view.scroll(-20),
                            KeyCode::Home => view.scroll(isize::MIN),
                            _ => {}
                        }
                        is_new = true;
                    }
                    Event::Resize(..) => is_new = true,
                    _ => {}
                }
            }
            for what in news.try_iter() {
                is_new = true;
                match what {
                    News::Status(status) => view.update(&status, Instant::now()),
                    News::Lost(reason) => view.lost(reason, Instant::now()),
                    News::End => return Ok(()),
                }
            }
            // How long it has been lost is counted on the screen.
            is_new |= view.is_lost();
        }
    }
}
