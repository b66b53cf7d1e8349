//! The page: Markdown sections with tables.

use std::fmt::Write as _;

/// One table and what is to be said about it.
pub(crate) struct Section {
    title: String,
    text: String,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Section {
    pub(crate) fn new(title: impl Into<String>, text: impl Into<String>, columns: &[&str]) -> Self {
        Self {
            title: title.into(),
            text: text.into(),
            columns: columns.iter().map(|&column| column.to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }
}

/// The whole page.
pub(crate) struct Page(String);

impl Page {
    pub(crate) fn new(machine: &[(String, String)]) -> Self {
        let mut text = String::from(
            "# Benchmarks\n\n\
             Written by `make bench`; every table was measured side by side in one run, with the samples of what is \
             compared interleaved. Times are medians, with the 90th percentile beside them. On one small machine the \
             ratios carry over, not the milliseconds.\n\n",
        );
        text.push_str("| machine | |\n|---|---|\n");
        for (name, value) in machine {
            let _ = writeln!(text, "| {name} | {value} |");
        }
        Self(text)
    }

    pub(crate) fn add(&mut self, section: &Section) {
        let Self(text) = self;
        let _ = write!(text, "\n## {}\n\n{}\n\n", section.title, section.text);
        let _ = writeln!(text, "| {} |", section.columns.join(" | "));
        let rules: Vec<_> =
            section.columns.iter().enumerate().map(|(index, _)| if index == 0 { "---" } else { "---:" }).collect();
        let _ = writeln!(text, "| {} |", rules.join(" | "));
        for row in &section.rows {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
    }

    pub(crate) fn text(&self) -> &str {
        &self.0
    }
}

/// A duration in seconds, as text of three digits.
pub(crate) fn seconds(value: f64) -> String {
    match value {
        value if value >= 10.0 => format!("{value:.1} s"),
        value if value >= 1.0 => format!("{value:.2} s"),
        value if value >= 0.001 => format!("{:.0} ms", value * 1e3),
        value => format!("{:.0} us", value * 1e6),
    }
}

/// A number of bytes, as text of three digits.
pub(crate) fn bytes(value: f64) -> String {
    match value {
        value if value >= 1e10 => format!("{:.0} GB", value / 1e9),
        value if value >= 1e9 => format!("{:.2} GB", value / 1e9),
        value if value >= 1e7 => format!("{:.0} MB", value / 1e6),
        value if value >= 1e6 => format!("{:.1} MB", value / 1e6),
        value => format!("{:.0} KB", value / 1e3),
    }
}

/// How many times `slower` is `faster`.
pub(crate) fn ratio(slower: f64, faster: f64) -> String {
    let times = slower / faster;
    if times >= 10.0 { format!("{times:.0}x") } else { format!("{times:.2}x") }
}
