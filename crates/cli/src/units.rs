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
        let shift: u32 = match &lower[digits.len()..] {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(invalid()),
        };
        let digits = digits.trim();
        let too_large = || format!("{text:?} is too large");
        let Some((whole, fraction)) = digits.split_once('.') else {
            let number: u64 = digits.parse().map_err(|_| invalid())?;
            return number.checked_mul(1 << shift).map(Size).ok_or_else(too_large);
        };
        // 1.5g: in integers, so that it is exact wherever it can be.
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(whole) || !is_number(fraction) || fraction.len() > 9 {
            return Err(invalid());
        }
        let scaled: u128 = format!("{whole}{fraction}").parse().map_err(|_| invalid())?;
        let bytes = scaled.checked_mul(1 << shift).map(|scaled| scaled / 10_u128.pow(fraction.len() as u32));
        bytes.and_then(|bytes| u64::try_from(bytes).ok()).map(Size).ok_or_else(too_large)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl serde::de::Visitor<'_> for Written {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, or a text with k, m, g or t such as \"512MiB\"")
            }

            fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes).map(Size).map_err(|_| E::custom(format!("{bytes} is below zero")))
            }

            fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Written)
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

/// A time span in whole units, read from texts such as `30s`, `10m`, `12h`, `30d` or `4w`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(crate) struct Age(pub(crate) Duration);

impl FromStr for Age {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("{text:?} is not a time span: a number with s, m, h, d or w, such as 12h or 30d");
        let trimmed = text.trim();
        let digits = trimmed.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let seconds: u64 = match &trimmed[digits.len()..] {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 24 * 3600,
            "w" => 7 * 24 * 3600,
            _ => return Err(invalid()),
        };
        let number: u32 = digits.parse().map_err(|_| invalid())?;
        Ok(Self(Duration::from_secs(u64::from(number) * seconds)))
    }
}

impl<'de> Deserialize<'de> for Age {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match seconds {
            0..120 => write!(f, "{seconds} s"),
            120..7200 => write!(f, "{} min", seconds / 60),
            7200..172_800 => write!(f, "{} h", seconds / 3600),
            _ => write!(f, "{} days", seconds / 86400),
        }
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
            ("1.5GiB", 3 << 29, "1.5 GiB"),
            ("0.5k", 512, "512 B"),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!(size, Size(bytes));
            assert_eq!(size.to_string(), shown);
        }
        assert_eq!(Size((1 << 20) - 1).to_string(), "1.0 MiB");
        for text in ["", "g", "-1", "1x", "1.", ".5g", "1.5.5g", "-1.5g", "99999999999t", "99999999999.5t", "µ"] {
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
