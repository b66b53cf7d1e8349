//! Who is in the zone: a list, a file that is watched, what a name resolves to, or who is registered in etcd.
//!
//! ```text
//! a=10.0.0.1:7070@rack-1,b=10.0.0.2:7070      a list: NAME=HOST:PORT@DOMAIN, where name and domain may be left out
//! file:/etc/snowmelt/zone                     a file with `NAME HOST:PORT [DOMAIN]` on each line, `#` before what is none; empty while written
//! dns:cache.example:7070                      every address of a name, called by it
//! etcd://10.0.0.9:2379,10.0.0.8:2379/zone     keys `zone/NAME` with `HOST:PORT [DOMAIN]`, as nodes put them; etcds:// with TLS
//! ```
//!
//! A node's place in the zone goes by its name, so one that gets another address keeps what it has. What cannot be read or resolved
//! for a while leaves the last list in place: a zone must not be lost with its list.

mod etcd;
mod follower;

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

pub(crate) use self::etcd::parse_listed;
pub use self::etcd::{EtcdAddress, keep_registered};
pub use self::follower::Follower;
use crate::Error;
use crate::placement::Node;

/// Longer is no list of nodes.
const MOST_BYTES: u64 = 4 << 20;
/// How often a file is read again.
const FILE_EVERY: Duration = Duration::from_secs(1);
/// How often names are resolved again.
const DNS_EVERY: Duration = Duration::from_secs(10);

/// Where the nodes of a zone are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Members {
    /// Here.
    List(Vec<Node>),
    /// In a file, which may change.
    File(PathBuf),
    /// Each address of `HOST:PORT` is a node.
    Dns(String),
    /// Who is registered there.
    Etcd(EtcdAddress),
}

impl FromStr for Members {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some(path) = text.strip_prefix("file:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::File(path))
            } else {
                Err(Error::invalid(
                    format!("the zone {text:?}"),
                    "expected an absolute path, such as file:/etc/snowmelt/zone",
                ))
            };
        }
        if let Some(host) = text.strip_prefix("dns:") {
            check_address(host)?;
            return Ok(Self::Dns(host.into()));
        }
        if text.starts_with("etcd://") || text.starts_with("etcds://") {
            return text.parse().map(Self::Etcd);
        }
        text.split(',').map(|node| parse_node(node.trim())).collect::<Result<_, _>>().map(Self::List)
    }
}

impl fmt::Display for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Dns(host) => write!(f, "dns:{host}"),
            Self::Etcd(address) => address.fmt(f),
            Self::List(nodes) => nodes.iter().enumerate().try_for_each(|(at, node)| {
                let comma = if at == 0 { "" } else { "," };
                write!(f, "{comma}{}={}", node.name, node.address)?;
                node.domain.as_ref().map_or(Ok(()), |domain| write!(f, "@{domain}"))
            }),
        }
    }
}

/// `[NAME=]HOST:PORT[@DOMAIN]`.
fn parse_node(text: &str) -> Result<Node, Error> {
    let (name, rest) = text.split_once('=').map_or((None, text), |(name, rest)| (Some(name), rest));
    let (address, domain) = rest.split_once('@').map_or((rest, None), |(address, domain)| (address, Some(domain)));
    node(name.unwrap_or(address), address, domain)
}

fn node(name: &str, address: &str, domain: Option<&str>) -> Result<Node, Error> {
    check_address(address)?;
    check_word("a node's name", name)?;
    domain.map_or(Ok(()), |domain| check_word("a failure domain", domain))?;
    Ok(Node { name: name.into(), address: address.into(), domain: domain.map(str::to_owned) })
}

impl Node {
    /// A node of this name at `HOST:PORT`, in a failure domain where that is known.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is no name or address.
    pub fn new(name: &str, address: &str, domain: Option<&str>) -> Result<Self, Error> {
        node(name, address, domain)
    }
}

fn check_word(what: &str, text: &str) -> Result<(), Error> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:[]".contains(&byte);
    if (1..=255).contains(&text.len()) && text.bytes().all(is_word) {
        return Ok(());
    }
    Err(Error::invalid(format!("{what} {text:?}"), "expected 1 to 255 letters, digits, '.', '_', '-' or ':'"))
}

fn check_address(text: &str) -> Result<(), Error> {
    let is_right = text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty()
            && (!host.contains(':') || host.starts_with('['))
            && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    if is_right
        && text.len() <= 255
        && !text.contains(|c: char| c.is_whitespace() || c.is_control() || "/@=,".contains(c))
    {
        return Ok(());
    }
    Err(Error::invalid(format!("the address {text:?}"), "expected HOST:PORT, such as 10.0.0.1:7070"))
}

/// The nodes that a file lists.
///
/// # Errors
/// [`Error::Invalid`] with the line that is none.
pub fn parse_file(text: &str) -> Result<Vec<Node>, Error> {
    let mut nodes = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        let found = match words[..] {
            [] => continue,
            [name, address] => node(name, address, None),
            [name, address, domain] => node(name, address, Some(domain)),
            _ => Err(Error::invalid(format!("{line:?}"), "expected NAME HOST:PORT [DOMAIN]")),
        };
        nodes.push(found.map_err(|error| Error::invalid(format!("line {}", number + 1), error.to_string()))?);
    }
    Ok(nodes)
}

impl Members {
    /// The nodes at this moment; those that are registered in etcd are not found by this.
    ///
    /// # Errors
    /// [`Error::Io`] where the file or name cannot be read, [`Error::Invalid`] where it lists what is no node.
    fn load(&self) -> Result<Vec<Node>, Error> {
        match self {
            Self::List(nodes) => Ok(nodes.clone()),
            Self::File(path) => {
                let length = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
                if length > MOST_BYTES {
                    return Err(Error::invalid(path.display().to_string(), "is too long for a list of nodes"));
                }
                let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
                if text.is_empty() {
                    // Whoever writes it in place empties it first. A zone without nodes has a remark that says so.
                    return Err(Error::io("read", path)(std::io::Error::other("it is empty")));
                }
                parse_file(&text).map_err(|error| Error::invalid(path.display().to_string(), error.to_string()))
            }
            Self::Dns(host) => {
                let found = host.to_socket_addrs().map_err(Error::io("resolve", host))?;
                let address = |address: SocketAddr| address.to_string();
                Ok(found.map(address).map(|address| Node { name: address.clone(), address, domain: None }).collect())
            }
            Self::Etcd(_) => Ok(Vec::new()),
        }
    }

    /// How often they may have changed.
    fn every(&self) -> Duration {
        match self {
            Self::File(_) => FILE_EVERY,
            // The nodes of a list may be called by names that resolve to something else later.
            Self::List(_) | Self::Dns(_) | Self::Etcd(_) => DNS_EVERY,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_list_has_names_addresses_and_domains() {
        let members: Members = "a=10.0.0.1:7070@rack-1, [::1]:7071,c=cache-c:7072".parse().unwrap();
        assert_eq!(members.to_string(), "a=10.0.0.1:7070@rack-1,[::1]:7071=[::1]:7071,c=cache-c:7072");
        assert_eq!(members.to_string().parse::<Members>().unwrap(), members);
    }

    #[test]
    fn a_file_may_have_remarks_and_says_which_line_is_wrong() {
        let nodes = parse_file("# the zone\na 10.0.0.1:7070 rack-1\n\nb 10.0.0.2:7070 # new\n").unwrap();
        assert_eq!(nodes.iter().map(|node| &*node.name).collect::<Vec<_>>(), ["a", "b"]);
        let error = parse_file("a 10.0.0.1:7070\nb 10.0.0.2\n").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("HOST:PORT"), "{error}");
    }

    #[test]
    fn a_file_that_is_empty_is_being_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("zone");
        let members = Members::File(path.clone());
        std::fs::write(&path, "").unwrap();
        assert!(matches!(members.load(), Err(Error::Io { .. })));
        std::fs::write(&path, "# none\n").unwrap();
        assert!(members.load().unwrap().is_empty());
    }

    #[test]
    fn etcd_has_members_and_a_prefix() {
        for text in ["etcd://10.0.0.9:2379,[::1]:2379/snowmelt/zone-a", "etcds://etcd.example:2379/z"] {
            assert_eq!(text.parse::<Members>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn mistakes_say_what_is_expected() {
        for (text, part) in [
            ("", "HOST:PORT"),
            ("10.0.0.1", "HOST:PORT"),
            ("10.0.0.1:0", "HOST:PORT"),
            ("::1:7070", "HOST:PORT"),
            ("a b=10.0.0.1:7070", "letters"),
            ("a=10.0.0.1:7070@", "letters"),
            ("file:zone", "absolute"),
            ("dns:cache", "HOST:PORT"),
            ("etcd://10.0.0.9:2379", "PREFIX"),
            ("etcd://10.0.0.9:2379/", "PREFIX"),
            ("etcd://10.0.0.9:2379/zone/", "PREFIX"),
            ("etcd://10.0.0.9/zone", "HOST:PORT"),
            ("etcd:///zone", "HOST:PORT"),
        ] {
            let error = text.parse::<Members>().unwrap_err().to_string();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_members_or_an_error(text in ".{0,60}") {
            let _ = text.parse::<Members>();
            let _ = parse_file(&text);
        }
    }
}
