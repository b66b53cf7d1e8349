//! The screen: what is shown where, in whatever room there is.

use std::time::Instant;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table, TableState};
use serde_json::Value;

use super::chart;
use super::figures::{Figures, Function, PHASES, Times, shown};
use super::plain::{named, reads};
use crate::units::Size;

/// What functions are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Name,
    Rate,
    Sandboxes,
    Slowest,
}

impl Order {
    fn next(self) -> Self {
        match self {
            Self::Name => Self::Rate,
            Self::Rate => Self::Sandboxes,
            Self::Sandboxes => Self::Slowest,
            Self::Slowest => Self::Name,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Rate => "invocations a second",
            Self::Sandboxes => "sandboxes",
            Self::Slowest => "p99",
        }
    }
}

pub(super) struct View {
    endpoint: String,
    figures: Figures,
    at: Instant,
    /// By tenant and name: how many invocations a second.
    rates: std::collections::HashMap<(String, String), f64>,
    rate: Option<f64>,
    lost: Option<(String, Instant)>,
    order: Order,
    rows: TableState,
}

/// A column of the table: its title, its width, and what it shows of a function.
type Column = (&'static str, u16, fn(&View, &Function) -> String);

const QUIET: Style = Style::new().fg(Color::DarkGray);
const STRONG: Style = Style::new().add_modifier(Modifier::BOLD);
/// A line of charts has a frame around this much.
const CHART_HEIGHT: u16 = 8;
/// Below this there is only a table.
const CHARTS_FROM: (u16, u16) = (70, 24);

impl View {
    pub(super) fn new(endpoint: String, status: &Value) -> Self {
        Self {
            endpoint,
            figures: Figures::read(status),
            at: Instant::now(),
            rates: std::collections::HashMap::new(),
            rate: None,
            lost: None,
            order: Order::Name,
            rows: TableState::default(),
        }
    }

    /// Takes what the service says now.
    pub(super) fn update(&mut self, status: &Value, now: Instant) {
        let figures = Figures::read(status);
        let seconds = now.duration_since(self.at).as_secs_f64().max(0.001);
        // A service that began anew counts from nothing.
        let rate = |new: u64, old: u64| new.saturating_sub(old) as f64 / seconds;
        let old = |function: &Function| {
            let is_same = |old: &&Function| (&old.tenant, &old.name) == (&function.tenant, &function.name);
            self.figures.functions.iter().find(is_same).map_or(0, |old| old.measures.invocations)
        };
        self.rates = figures
            .functions
            .iter()
            .map(|function| {
                let name = (function.tenant.clone(), function.name.clone());
                (name, rate(function.measures.invocations, old(function)))
            })
            .collect();
        self.rate = Some(rate(figures.totals.invocations, self.figures.totals.invocations));
        (self.figures, self.at, self.lost) = (figures, now, None);
        self.sort();
    }

    /// The service does not say.
    pub(super) fn lost(&mut self, reason: String, now: Instant) {
        let since = self.lost.take().map_or(now, |(_, since)| since);
        self.lost = Some((reason, since));
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    pub(super) fn sort_by_next(&mut self) {
        self.order = self.order.next();
        self.sort();
    }

    fn rate_of(&self, function: &Function) -> f64 {
        self.rates.get(&(function.tenant.clone(), function.name.clone())).copied().unwrap_or(0.0)
    }

    fn sort(&mut self) {
        let mut functions = std::mem::take(&mut self.figures.functions);
        functions.sort_by(|a, b| {
            let by_name = (&a.tenant, &a.name).cmp(&(&b.tenant, &b.name));
            let sandboxes = |function: &Function| function.busy + function.idle + function.starting;
            let order = match self.order {
                Order::Name => by_name,
                Order::Rate => self.rate_of(b).total_cmp(&self.rate_of(a)),
                Order::Sandboxes => sandboxes(b).cmp(&sandboxes(a)),
                Order::Slowest => b.measures.duration.p99.cmp(&a.measures.duration.p99),
            };
            order.then(by_name)
        });
        self.figures.functions = functions;
    }

    pub(super) fn scroll(&mut self, by: isize) {
        let most = self.figures.functions.len().saturating_sub(1);
        *self.rows.offset_mut() = self.rows.offset().saturating_add_signed(by).min(most);
    }

    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let area = frame.area();
        let has_charts = area.width >= CHARTS_FROM.0 && area.height >= CHARTS_FROM.1;
        let head = self.head(area.width);
        let charts = if has_charts { CHART_HEIGHT + 2 } else { 0 };
        let [top, middle, bottom, last] = Layout::vertical([
            Constraint::Length(head.len() as u16),
            Constraint::Length(charts),
            Constraint::Min(0),
            Constraint::Length(1),
        ])
        .areas(area);
        frame.render_widget(Paragraph::new(head), top);
        if has_charts {
            self.charts(frame, middle);
        }
        self.table(frame, bottom);
        frame.render_widget(Paragraph::new(self.foot()), last);
    }

    fn head(&self, width: u16) -> Vec<Line<'static>> {
        let figures = &self.figures;
        let (totals, [starting, busy, idle]) = (&figures.totals, figures.sandboxes());
        let [containers, agents, hosts] = figures.memory.map(Size);
        let mut lines = Vec::new();
        let title = if let Some((reason, since)) = &self.lost {
            let text = format!("{reason} — trying again, {} s so far", since.elapsed().as_secs());
            Line::styled(text, Style::new().fg(Color::Red).add_modifier(Modifier::BOLD))
        } else {
            let whose = figures.tenant.as_ref().map_or("all tenants".into(), |tenant| format!("tenant {tenant}"));
            let ending = if figures.is_ending { ", is ending" } else { "" };
            Line::from(vec![
                Span::styled(format!("snowmelt {}", self.endpoint), STRONG),
                Span::styled(format!("  {whose}, up {}{ending}", figures.up()), QUIET),
            ])
        };
        lines.push(title);
        let rate = self.rate.map_or_else(|| "-".into(), |rate| format!("{rate:.1}"));
        lines.push(Line::from(vec![
            Span::styled(format!("{rate}/s"), STRONG),
            Span::raw(format!("  {} running  {} cold  {} warm  ", totals.running, totals.cold, totals.warm)),
            trouble(totals.errors, "failed"),
            trouble(totals.faults, "given up"),
            trouble(totals.throttles, "turned away"),
        ]));
        let functions = figures.functions.len();
        lines.push(Line::from(format!(
            "functions {functions}  sandboxes {busy} busy, {idle} idle, {starting} starting"
        )));
        if width >= 60 {
            lines.push(Line::from(format!("memory    containers {containers}, agents {agents}, hosts {hosts}")));
            lines.push(Line::from(format!("cold read {}", reads(&totals.reads))));
        }
        lines
    }

    fn charts(&self, frame: &mut Frame<'_>, area: Rect) {
        let totals = &self.figures.totals;
        let phases = 40.min(area.width / 3);
        let [warm, cold, parts] =
            Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1), Constraint::Length(phases)]).areas(area);
        for (area, title, times, colour) in [
            (warm, "warm overhead", &totals.overhead, Color::Green),
            (cold, "cold start", &totals.cold_start, Color::Cyan),
        ] {
            let block = framed(format!(" {title} {} ", quantiles(times)));
            let inside = block.inner(area);
            let mut lines: Vec<Line<'_>> = chart::lines(times, inside.width.into(), inside.height.into())
                .into_iter()
                .map(|line| Line::styled(line, Style::new().fg(colour)))
                .collect();
            if let Some(labels) = lines.last_mut() {
                *labels = labels.clone().style(QUIET);
            } else {
                lines.push(Line::styled("none so far", QUIET));
            }
            frame.render_widget(Paragraph::new(lines).block(block), area);
        }
        let rows = PHASES.iter().zip(&totals.phases).map(|((_, name), times)| {
            Row::new([(*name).to_owned(), times.count.to_string(), shown(times.p50), shown(times.p99)])
        });
        let widths = [Constraint::Length(10), Constraint::Fill(1), Constraint::Length(8), Constraint::Length(8)];
        let header = Row::new(["", "count", "p50", "p99"]).style(QUIET);
        frame.render_widget(Table::new(rows, widths).header(header).block(framed(" a cold start ".into())), parts);
    }

    fn table(&mut self, frame: &mut Frame<'_>, area: Rect) {
        if self.figures.functions.is_empty() {
            let text = "no functions: make one with `snowmelt fn create NAME IMAGE`";
            frame.render_widget(Paragraph::new(text).style(QUIET).block(Block::new().borders(Borders::TOP)), area);
            return;
        }
        // From the most to the least important, as many as fit.
        let columns: [Column; 11] = [
            ("/s", 7, |view, function| format!("{:.1}", view.rate_of(function))),
            ("busy", 5, |_, function| function.busy.to_string()),
            ("idle", 5, |_, function| function.idle.to_string()),
            ("cold", 7, |_, function| function.measures.cold.to_string()),
            ("p50", 9, |_, function| shown(function.measures.duration.p50)),
            ("p99", 9, |_, function| shown(function.measures.duration.p99)),
            ("warm", 9, |_, function| function.measures.warm.to_string()),
            ("failed", 7, |_, function| function.measures.errors.to_string()),
            ("start", 6, |_, function| function.starting.to_string()),
            ("waits", 6, |_, function| function.waiting.to_string()),
            ("cold p50", 9, |_, function| shown(function.measures.cold_start.p50)),
        ];
        let longest = self
            .figures
            .functions
            .iter()
            .map(|function| named(&self.figures, &function.tenant, &function.name).chars().count() as u16);
        let name = longest.max().unwrap_or(0).clamp(8, area.width.saturating_sub(14).clamp(8, 40));
        let mut room = area.width.saturating_sub(name + 14);
        let mut fit = 0;
        while let Some((_, width, _)) = columns.get(fit)
            && *width < room
        {
            room -= width + 1;
            fit += 1;
        }
        let columns = &columns[..fit];
        let header = ["function", "state"].into_iter().map(str::to_owned).map(Cell::from);
        let header = header.chain(columns.iter().map(|(title, width, _)| right(title, *width)));
        let rows = self.figures.functions.iter().map(|function| {
            let state = match function.state.as_str() {
                "active" => Style::new(),
                "failed" | "update failed" => Style::new().fg(Color::Red),
                _ => Style::new().fg(Color::Yellow),
            };
            let cells = [
                Cell::from(named(&self.figures, &function.tenant, &function.name)),
                Cell::from(function.state.clone()).style(state),
            ];
            Row::new(
                cells.into_iter().chain(columns.iter().map(|(_, width, show)| right(&show(self, function), *width))),
            )
        });
        let widths = [Constraint::Length(name), Constraint::Length(13)];
        let widths = widths.into_iter().chain(columns.iter().map(|(_, width, _)| Constraint::Length(*width)));
        let table = Table::new(rows.collect::<Vec<_>>(), widths.collect::<Vec<_>>())
            .header(Row::new(header).style(STRONG))
            .block(Block::new().borders(Borders::TOP).border_style(QUIET));
        frame.render_stateful_widget(table, area, &mut self.rows);
    }

    fn foot(&self) -> Line<'static> {
        Line::styled(format!("q ends  s sorts (by {})  arrows scroll", self.order.title()), QUIET)
    }
}

fn framed(title: String) -> Block<'static> {
    Block::new().borders(Borders::ALL).border_style(QUIET).title(Line::from(title).style(Style::new().fg(Color::Reset)))
}

fn right(text: &str, width: u16) -> Cell<'static> {
    Cell::from(format!("{text:>width$}", width = usize::from(width)))
}

/// A number that is better zero.
fn trouble(count: u64, what: &str) -> Span<'static> {
    let style = if count == 0 { QUIET } else { Style::new().fg(Color::Red) };
    Span::styled(format!("{count} {what}  "), style)
}

fn quantiles(times: &Times) -> String {
    format!("p50 {} p99 {}", shown(times.p50), shown(times.p99))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    fn status(invocations: u64) -> Value {
        let times =
            json!({ "count": 3, "p50_us": 800, "p90_us": 900, "p99_us": 1000, "buckets": [[800, 2], [1000, 1]] });
        let measures = json!({
            "invocations": invocations, "cold_starts": 1, "warm_starts": 7, "duration": times, "warm_overhead": times,
            "cold_start": times, "phases": { "mount": times }, "reads": { "disk": { "chunks": 3, "bytes": 4096 } },
        });
        let function = |name: &str| {
            json!({
                "tenant": "default", "name": name, "state": "Active", "last_update": "Successful",
                "sandboxes": { "idle": 2, "busy": 1, "starting": 0 }, "measures": measures,
            })
        };
        json!({
            "tenant": "default", "time": 100.0, "started": 40.0, "totals": measures,
            "functions": [function("hello"), function("\u{1b}[2Jevil")],
        })
    }

    fn drawn(view: &mut View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn every_window_is_drawn_and_what_fits_is_there() {
        let mut view = View::new("http://127.0.0.1:9001".into(), &status(8));
        view.update(&status(28), view.at + Duration::from_secs(2));
        let shown = drawn(&mut view, 120, 40);
        for text in
            ["hello", "10.0/s", "2 busy, 4 idle", "disk 3 chunks, 4.0 KiB", "800 us", "first byte", "1 cold", "7 warm"]
        {
            assert!(shown.contains(text), "{text}\n{shown}");
        }
        assert!(!shown.contains('\u{1b}'));
        for (width, height) in [(1, 1), (2, 30), (20, 5), (40, 12), (69, 24), (70, 23), (300, 90)] {
            let shown = drawn(&mut view, width, height);
            assert!(width < 20 || shown.contains("hello") || height < 8, "{width}x{height}\n{shown}");
        }
    }

    #[test]
    fn a_service_that_is_lost_is_said_to_be_until_it_is_back() {
        let mut view = View::new("http://127.0.0.1:9001".into(), &status(8));
        view.lost("no service answers".into(), Instant::now());
        let shown = drawn(&mut view, 100, 30);
        assert!(shown.contains("no service answers — trying again") && shown.contains("hello"), "{shown}");
        // It began anew and has counted less.
        view.update(&status(1), Instant::now());
        let shown = drawn(&mut view, 100, 30);
        assert!(!shown.contains("trying again") && shown.contains("0.0/s"), "{shown}");
        view.scroll(100);
        view.scroll(isize::MIN);
        (0..5).for_each(|_| view.sort_by_next());
        assert!(drawn(&mut view, 100, 30).contains("hello"));
    }
}
