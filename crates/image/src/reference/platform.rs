//! Platforms, and which of an index's images suits one best.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// Operating system, architecture and variant, in the terms of Go and OCI. Always in normal form: `arm64/v8` is
/// `arm64`, `amd64/v1` is `amd64`, `arm` is `arm/v7`, `x86_64` is `amd64` (as containerd does it).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    /// The platform with these parts, in normal form.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Platform {
        let os = match os {
            "macos" => "darwin".to_owned(),
            other => other.to_ascii_lowercase(),
        };
        let architecture = architecture.to_ascii_lowercase();
        let variant = variant.map(str::to_ascii_lowercase).filter(|variant| !variant.is_empty());
        let (architecture, variant) = match (architecture.as_str(), variant.as_deref()) {
            ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
            ("x86_64" | "x86-64" | "amd64", _) => ("amd64", variant),
            ("aarch64" | "arm64", None | Some("8" | "v8" | "v8.0")) => ("arm64", None),
            ("aarch64" | "arm64", _) => ("arm64", variant),
            ("armhf", _) | ("arm", None | Some("7")) => ("arm", Some("v7".to_owned())),
            ("armel", _) | ("arm", Some("6")) => ("arm", Some("v6".to_owned())),
            ("arm", Some("5")) => ("arm", Some("v5".to_owned())),
            ("arm", Some("8")) => ("arm", Some("v8".to_owned())),
            ("i386" | "i686" | "x86", _) => ("386", None),
            ("powerpc64le", _) => ("ppc64le", variant),
            ("loongarch64", _) => ("loong64", variant),
            (other, _) => return Platform { os, architecture: other.to_owned(), variant },
        };
        Platform { os, architecture: architecture.to_owned(), variant }
    }

    /// This machine's.
    pub fn host() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            other => other,
        };
        Platform::new(std::env::consts::OS, architecture, None)
    }

    /// Operating system, such as `linux`.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// Architecture, such as `amd64`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Variant of the architecture, such as `v7`, where it is not the usual one.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// How well an image for `offered` runs on this platform: `None` is not at all, and more is better. Of the
    /// architectures whose variants build on one another any variant up to the wanted one will do.
    pub(crate) fn fit(&self, offered: &Platform) -> Option<u32> {
        if (&self.os, &self.architecture) != (&offered.os, &offered.architecture) {
            return None;
        }
        if self.variant == offered.variant {
            return Some(u32::MAX);
        }
        let usual = match self.architecture.as_str() {
            "amd64" => "v1",
            "arm64" => "v8",
            "arm" => "v7",
            // Other variants say nothing about one another; an image that names none is taken for the common base.
            _ => return offered.variant.is_none().then_some(0),
        };
        let wanted = level(self.variant.as_deref().unwrap_or(usual))?;
        let offered = level(offered.variant.as_deref().unwrap_or(usual))?;
        (offered <= wanted).then_some(offered)
    }
}

/// `v8.1` as 8001, so that variants compare.
fn level(variant: &str) -> Option<u32> {
    let (major, minor) = match variant.strip_prefix('v')?.split_once('.') {
        Some((major, minor)) => (major, minor.parse::<u16>().ok()?),
        None => (variant.strip_prefix('v')?, 0),
    };
    Some(u32::from(major.parse::<u16>().ok()?) * 1000 + u32::from(minor.min(999)))
}

impl Default for Platform {
    fn default() -> Platform {
        Platform::host()
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Platform, Error> {
        let parts: Vec<&str> = text.split('/').collect();
        let good = |part: &&str| {
            !part.is_empty()
                && part.len() <= 64
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        };
        match parts.as_slice() {
            [os, architecture, variant @ ..] if variant.len() <= 1 && parts.iter().all(good) => {
                Ok(Platform::new(os, architecture, variant.first().copied()))
            }
            _ => Err(Error::invalid(
                format!("the platform {text:?}"),
                "write OS/ARCHITECTURE[/VARIANT], such as linux/amd64 or linux/arm/v7",
            )),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn normal_forms() {
        for (written, normal) in [
            ("linux/amd64", "linux/amd64"),
            ("Linux/x86_64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/v9", "linux/arm64/v9"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/arm/5", "linux/arm/v5"),
            ("linux/i386", "linux/386"),
            ("linux/s390x", "linux/s390x"),
            ("linux/mips64le/softfloat", "linux/mips64le/softfloat"),
        ] {
            assert_eq!(platform(written).to_string(), normal, "{written}");
        }
    }

    #[test]
    fn the_error_shows_the_form() {
        for text in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/am d64", "linux//v7"] {
            assert_eq!(
                text.parse::<Platform>().unwrap_err().to_string(),
                format!(
                    "the platform {text:?} cannot be used: write OS/ARCHITECTURE[/VARIANT], such as linux/amd64 or linux/arm/v7"
                ),
            );
        }
    }

    #[test]
    fn the_best_variant_up_to_the_wanted_one_fits() {
        let fit = |wanted: &str, offered: &str| platform(wanted).fit(&platform(offered));
        assert_eq!(fit("linux/arm/v7", "linux/arm/v7"), Some(u32::MAX));
        assert!(fit("linux/arm/v7", "linux/arm/v6") > fit("linux/arm/v7", "linux/arm/v5"));
        assert_eq!(fit("linux/arm/v6", "linux/arm/v7"), None);
        assert_eq!(fit("linux/arm64", "linux/arm64/v8"), Some(u32::MAX));
        assert_eq!(fit("linux/arm64", "linux/arm64/v9"), None);
        assert!(fit("linux/arm64/v9", "linux/arm64/v8.2") > fit("linux/arm64/v9", "linux/arm64"));
        assert_eq!(fit("linux/amd64", "linux/amd64/v2"), None);
        assert!(fit("linux/amd64/v3", "linux/amd64/v2") > fit("linux/amd64/v3", "linux/amd64"));
        assert_eq!(fit("linux/amd64", "windows/amd64"), None);
        assert_eq!(fit("linux/amd64", "linux/arm64"), None);
        assert_eq!(fit("linux/mips/x", "linux/mips"), Some(0));
        assert_eq!(fit("linux/mips", "linux/mips/x"), None);
        assert_eq!(fit("linux/amd64", "unknown/unknown"), None);
    }

    #[test]
    fn the_host_has_a_platform_in_normal_form() {
        let host = Platform::host();
        assert_eq!(host, platform(&host.to_string()));
    }
}
