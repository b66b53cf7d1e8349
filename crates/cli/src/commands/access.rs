//! `inspect --access`: what is known of an image's starts.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use snowmelt_sandbox::{CommandLog, command_logs};
use snowmelt_store::readback::OpenedImage;

use crate::app::App;
use crate::args::InspectArgs;
use crate::chunk_map::{self, Canvas, Chunk, Use};
use crate::output;
use crate::units::Size;

/// So many chunks of an order are shown.
const SHOWN: usize = 8;
/// Where standard output is no terminal.
const WIDTH: usize = 80;

/// The chunks of an image and what starts did with them.
struct Access {
    chunks: Vec<Chunk>,
    /// Stored bytes of each.
    bytes: Vec<u64>,
    places: HashMap<u64, usize>,
}

/// A number of chunks and their stored bytes.
#[derive(Clone, Copy, Default)]
struct Amount {
    chunks: u64,
    bytes: u64,
}

pub(crate) fn show(app: &App, args: &InspectArgs, image: &OpenedImage) -> Result<ExitCode> {
    let id = image.manifest.id();
    let words = args.command.as_deref();
    let logs = command_logs(&image.store, &app.config.tenant, &app.config.cache_dir, &id, words);
    ensure!(
        words.is_none() || !logs.is_empty(),
        "no start of this command of {} is known: run it once; its words must be those of the run",
        args.image
    );
    let access = Access::new(image, &logs);
    if let Some(file) = &args.picture {
        ensure!(
            file.extension().is_some_and(|extension| extension == "svg"),
            "{} is no name of a picture: it is written as SVG, so end it in .svg",
            file.display()
        );
        let starts = output::count(logs.iter().map(|log| log.log.starts).sum(), "start");
        let title = output::without_controls(&format!("{}: what {starts} read", args.image));
        std::fs::write(file, chunk_map::svg(&title, &access.chunks))
            .with_context(|| format!("writing the picture {}", file.display()))?;
    }
    if app.json {
        output::print_json(&access.figures(args, image, &logs))?;
    } else {
        output::print(&access.table(args, &logs))?;
        if let Some(file) = &args.picture {
            output::print(&format!("\nThe picture is in {}.\n", file.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Access {
    fn new(image: &OpenedImage, logs: &[CommandLog]) -> Self {
        let chunk_size = u64::from(image.manifest.geometry().chunk_size);
        let records = image.manifest.records();
        let offset = |slot: u32| u64::from(slot) * chunk_size;
        let mut access = Self {
            chunks: records.iter().map(|record| Chunk { offset: offset(record.slot), how: Use::Never }).collect(),
            bytes: records.iter().map(|record| u64::from(record.stored_length)).collect(),
            places: records.iter().map(|record| u64::from(record.slot)).zip(0..).collect(),
        };
        for CommandLog { log, .. } in logs {
            for index in log.vain.iter().map(|vain| vain.index) {
                access.set(index, Use::Vain);
            }
        }
        // What one command needs is not in vain for all. The order is that of the command that started most often.
        for CommandLog { log, .. } in logs.iter().rev() {
            let last = log.chunks.len().saturating_sub(1).max(1) as f64;
            for (at, index) in log.indices().enumerate() {
                access.set(index, Use::Touched(at as f64 / last));
            }
        }
        access
    }

    /// A log may name what the image does not have.
    fn set(&mut self, index: u64, how: Use) {
        if let Some(place) = self.places.get(&index) {
            self.chunks[*place].how = how;
        }
    }

    fn amount(&self, of: impl Fn(&Use) -> bool) -> Amount {
        let chosen = self.chunks.iter().zip(&self.bytes).filter(|(chunk, _)| of(&chunk.how));
        chosen.fold(Amount::default(), |sum, (_, bytes)| Amount { chunks: sum.chunks + 1, bytes: sum.bytes + bytes })
    }

    fn amount_of(&self, indices: impl Iterator<Item = u64>) -> Amount {
        let places = indices.filter_map(|index| self.places.get(&index));
        places.fold(Amount::default(), |sum, place| Amount {
            chunks: sum.chunks + 1,
            bytes: sum.bytes + self.bytes[*place],
        })
    }

    fn touched(&self) -> Amount {
        self.amount(|how| matches!(how, Use::Touched(_)))
    }

    fn table(&self, args: &InspectArgs, logs: &[CommandLog]) -> String {
        let all = self.amount(|_| true);
        let share = |amount: Amount| percent(amount.chunks, all.chunks);
        let line = |amount: Amount| {
            format!("{} ({}), {}", output::count(amount.chunks, "chunk"), share(amount), Size(amount.bytes))
        };
        let rows = [
            ("Name", args.image.to_string()),
            ("Starts", format!("{}", logs.iter().map(|log| log.log.starts).sum::<u64>())),
            ("Commands", logs.len().to_string()),
            ("Chunks", format!("{}, {}", all.chunks, Size(all.bytes))),
            ("Touched", line(self.touched())),
            ("In vain", line(self.amount(|how| *how == Use::Vain))),
            ("Never", line(self.amount(|how| *how == Use::Never))),
        ];
        let mut text = output::pairs(&rows);
        if logs.is_empty() {
            text.push_str("\nNo start is known yet. A run records what it reads for the next one.\n");
            return text;
        }
        let rows = logs.iter().map(|CommandLog { name, log }| {
            let touched = self.amount_of(log.indices());
            vec![
                name.clone(),
                log.starts.to_string(),
                touched.chunks.to_string(),
                share(touched),
                Size(touched.bytes).to_string(),
                self.amount_of(log.vain.iter().map(|vain| vain.index)).chunks.to_string(),
                order(log.indices()),
            ]
        });
        let header = ["COMMAND", "STARTS", "TOUCHED", "SHARE", "BYTES", "IN VAIN", "FIRST CHUNKS"];
        text.push('\n');
        text.push_str(&output::table(&header, &[1, 2, 3, 4, 5], rows.collect()));
        text.push('\n');
        text.push_str(&chunk_map::text(&self.chunks, canvas()));
        text
    }

    fn figures(&self, args: &InspectArgs, image: &OpenedImage, logs: &[CommandLog]) -> Value {
        let figures = |amount: Amount| json!({ "chunks": amount.chunks, "bytes": amount.bytes });
        let commands = logs.iter().map(|CommandLog { name, log }| {
            let order = log.chunks.iter().map(|chunk| json!({ "chunk": chunk.index, "weight": chunk.weight }));
            let vain = log.vain.iter().map(|vain| json!({ "chunk": vain.index, "start": vain.start }));
            json!({
                "command": name,
                "starts": log.starts,
                "touched": figures(self.amount_of(log.indices())),
                "order": order.collect::<Vec<_>>(),
                "in_vain": vain.collect::<Vec<_>>(),
            })
        });
        json!({
            "name": args.image.to_string(),
            "manifest": image.record.manifest,
            "chunk_size": image.manifest.geometry().chunk_size,
            "all": figures(self.amount(|_| true)),
            "starts": logs.iter().map(|log| log.log.starts).sum::<u64>(),
            "touched": figures(self.touched()),
            "in_vain": figures(self.amount(|how| *how == Use::Vain)),
            "never": figures(self.amount(|how| *how == Use::Never)),
            "commands": commands.collect::<Vec<_>>(),
        })
    }
}

fn percent(part: u64, whole: u64) -> String {
    let percent = if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 };
    format!("{percent:.1} %")
}

/// The first chunks of an order.
fn order(mut indices: impl Iterator<Item = u64>) -> String {
    let mut words: Vec<String> = indices.by_ref().take(SHOWN).map(|index| index.to_string()).collect();
    if indices.next().is_some() {
        words.push("...".into());
    }
    words.join(" ")
}

fn canvas() -> Canvas {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return Canvas { width: WIDTH, is_colourful: false };
    }
    let size = rustix::termios::tcgetwinsize(&stdout).ok().filter(|size| size.ws_col > 0);
    // https://no-color.org
    let is_colourful = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    Canvas { width: size.map_or(WIDTH, |size| usize::from(size.ws_col)), is_colourful }
}
