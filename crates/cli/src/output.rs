//! What people see: progress bars and tables.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::sync::OnceLock;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use snowmelt_sandbox::Step;

/// A bar of bytes on standard error; nothing where that is no terminal, or for scripts.
pub(crate) fn bytes_bar(label: &str, total: u64, quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    // 78 columns at most.
    let template = "{msg:>9} {bar:18} {bytes:>10} of {total_bytes:<10} {bytes_per_sec:>12} {eta:>4} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style.progress_chars("=> ")).with_message(label.to_owned())
}

/// A bar that is there once it is known that there is something to load, and goes when all of it is here.
pub(crate) struct LoadingBar {
    bar: OnceLock<ProgressBar>,
    quiet: bool,
}

impl LoadingBar {
    pub(crate) fn new(quiet: bool) -> Self {
        Self { bar: OnceLock::new(), quiet }
    }

    #[allow(clippy::unnecessary_wraps)]
    pub(crate) fn show(&self, step: Step<'_>) -> Result<(), snowmelt_sandbox::Error> {
        let Step::Loading { bytes, total } = step else { return Ok(()) };
        let bar = self.bar.get_or_init(|| bytes_bar("loading", total, self.quiet));
        bar.set_position(bytes);
        if bytes >= total {
            bar.finish_and_clear();
        }
        Ok(())
    }
}

/// A bar of things on standard error, whose number is told later.
pub(crate) fn count_bar(label: &str, quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg:>9} {bar:18} {pos:>10} of {len:<10} {eta:>4} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style.progress_chars("=> ")).with_message(label.to_owned())
}

/// A number of things: `1 chunk`, `2 chunks`.
pub(crate) fn count(number: u64, one: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        _ if one.ends_with("sh") => format!("{number} {one}es"),
        _ => format!("{number} {one}s"),
    }
}

/// A table without lines, with numbers (columns in `right`) to the right.
pub(crate) fn table(header: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| without_controls(cell)));
    }
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Text that others wrote, such as where an image comes from, must not steer the terminal that it is shown on.
pub(crate) fn without_controls(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Rows of a name and a value, aligned.
pub(crate) fn pairs(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().fold(String::new(), |mut text, (name, value)| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:width$}  {}", without_controls(value));
        text
    })
}

/// Writes to standard output. A reader that has gone away is no error: it has what it wants.
pub(crate) fn print(text: &str) -> Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes a value as JSON to standard output.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}
