//! Sizes and times, as people write and read them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// Bytes, read from texts such as `1GiB`, `512m` or `4096`. All units are powers of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("{text:?} is not a size: a number with k, m, g or t, such as 512MiB or 1g");
        let lower = text.trim().to_ascii_lowercase();
        let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match &lower[digits.len()..] {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(invalid()),
        };
        let number: u64 = digits.trim().parse().map_err(|_| invalid())?;
        number.checked_mul(1 << shift).map(Size).ok_or_else(|| format!("{text:?} is too large"))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => Ok(Size(bytes)),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1023.95 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        write!(f, "{value:.1} {}", UNITS[unit])
    }
}

/// A duration with three significant digits or so: `4.2 ms`, `1.73 s`.
pub(crate) fn show_duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds {
        60.0.. => format!("{}:{:02} min", duration.as_secs() / 60, duration.as_secs() % 60),
        1.0.. => format!("{seconds:.2} s"),
        0.001.. => format!("{:.1} ms", seconds * 1e3),
        _ => format!("{:.0} us", seconds * 1e6),
    }
}

/// Seconds since 1970 as a date and time in UTC (Howard Hinnant, *chrono-compatible low-level date algorithms*).
pub(crate) fn show_time(seconds: u64) -> String {
    let (days, rest) = (seconds / 86400, seconds % 86400);
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}", rest / 3600, rest / 60 % 60)
}

pub(crate) fn parse_memory(text: &str) -> Result<u64, snowmelt_sandbox::Error> {
    snowmelt_sandbox::RunSpec::parse_memory(text)
}

pub(crate) fn parse_cpus(text: &str) -> Result<f64, snowmelt_sandbox::Error> {
    snowmelt_sandbox::RunSpec::parse_cpus(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes_read_and_show() {
        for (text, bytes, shown) in [
            ("0", 0, "0 B"),
            ("1023", 1023, "1023 B"),
            ("1k", 1024, "1.0 KiB"),
            ("1GiB", 1 << 30, "1.0 GiB"),
            ("512 MB", 512 << 20, "512.0 MiB"),
            ("1536m", 1536 << 20, "1.5 GiB"),
            ("2t", 2 << 40, "2.0 TiB"),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!(size, Size(bytes));
            assert_eq!(size.to_string(), shown);
        }
        assert_eq!(Size((1 << 20) - 1).to_string(), "1.0 MiB");
        for text in ["", "g", "-1", "1x", "1.5g", "99999999999t", "µ"] {
            assert!(text.parse::<Size>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn times_show() {
        assert_eq!(show_time(0), "1970-01-01 00:00");
        assert_eq!(show_time(951_782_400), "2000-02-29 00:00");
        assert_eq!(show_time(1_700_000_000), "2023-11-14 22:13");
        assert_eq!(show_duration(Duration::from_micros(15)), "15 us");
        assert_eq!(show_duration(Duration::from_micros(4249)), "4.2 ms");
        assert_eq!(show_duration(Duration::from_millis(1730)), "1.73 s");
        assert_eq!(show_duration(Duration::from_secs(75)), "1:15 min");
    }
}
