//! A histogram of times in text: a column for each step of time, from the shortest that there is to the longest.

use std::time::Duration;

use super::figures::Times;
use crate::units::show_duration;

/// Eighths of a line.
const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Columns of a decade, at most.
const FINEST: usize = 20;

/// Lines of a chart, the last with the times that columns stand for. As many as `height`, each up to `width` columns.
pub(super) fn lines(times: &Times, width: usize, height: usize) -> Vec<String> {
    let known: Vec<(f64, u64)> =
        times.buckets.iter().filter_map(|(bound, count)| Some(((*bound)? as f64, *count))).collect();
    let (Some(first), Some(last)) = (known.first(), known.last()) else { return Vec::new() };
    if width < 8 || height < 2 {
        return Vec::new();
    }
    // Whole decades, so that what stands below stays where it is.
    let low = first.0.log10().ceil() as usize - 1;
    let high = (last.0.log10() - 1e-9).ceil().max(low as f64 + 1.0) as usize;
    let per_decade = (width / (high - low)).clamp(1, FINEST);
    let columns = (per_decade * (high - low)).min(width);
    let mut counts = vec![0_u64; columns];
    for (bound, count) in &known {
        let place = (bound.log10() - low as f64) * per_decade as f64;
        let column = (place - 1e-9).ceil().max(1.0) as usize - 1;
        if let Some(sum) = counts.get_mut(column.min(columns - 1)) {
            *sum += count;
        }
    }
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    let rows = height - 1;
    let eighths = |count: u64| {
        // What there is can be seen, however little it is.
        ((count as f64 / most as f64 * (rows * 8) as f64).round() as usize).max(usize::from(count > 0))
    };
    let mut lines: Vec<String> = (0..rows)
        .rev()
        .map(|row| {
            let line: String =
                counts.iter().map(|count| BLOCKS[eighths(*count).saturating_sub(row * 8).min(8)]).collect();
            line.trim_end().to_owned()
        })
        .collect();
    let mut labels = String::new();
    for decade in low..=high {
        let label = show_duration(Duration::from_micros(10_u64.saturating_pow(decade as u32)))
            .replace(".0 ", " ")
            .replace(".00 ", " ");
        let at = (decade - low) * per_decade;
        if labels.chars().count() <= at && at + label.chars().count() <= width {
            labels.extend(std::iter::repeat_n(' ', at - labels.chars().count()));
            labels.push_str(&label);
            labels.push(' ');
        }
    }
    lines.push(labels.trim_end().to_owned());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(buckets: &[(u64, u64)]) -> Times {
        Times { buckets: buckets.iter().map(|(bound, count)| (Some(*bound), *count)).collect(), ..Times::default() }
    }

    #[test]
    fn charts_fit_and_show_everything() {
        assert!(lines(&Times::default(), 40, 5).is_empty());
        let all = times(&[(100, 1), (1500, 1000), (2000, 500), (800_000_000, 1)]);
        for (width, height) in [(8, 2), (20, 3), (40, 5), (200, 20)] {
            let lines = lines(&all, width, height);
            assert_eq!(lines.len(), height);
            assert!(lines.iter().all(|line| line.chars().count() <= width), "{lines:#?}");
            let bars = &lines[height - 2];
            assert!(bars.chars().filter(|c| *c != ' ').count() >= 3, "{lines:#?}");
        }
    }

    #[test]
    fn columns_stand_where_their_times_do() {
        let lines = lines(&times(&[(20_000, 4), (100_000, 1)]), 40, 3);
        assert_eq!(lines[0].chars().filter(|c| *c == '█').count(), 1, "{lines:#?}");
        assert_eq!(lines[2], "10 ms               100 ms", "{lines:#?}");
        assert_eq!(lines[1].chars().count(), 20, "{lines:#?}");
    }
}
