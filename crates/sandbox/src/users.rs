//! Who a container's command runs as: `USER[:GROUP]` looked up in the image's own `/etc/passwd` and `/etc/group`, with
//! the rules of `docker run` (moby/sys/user, `GetExecUser`): a name must exist, a number need not; the groups of a user
//! come from the group file only when no group is given.

use crate::Error;
use crate::root::Root;

/// Images have been seen with thousands of users; a file over this is no user list.
const FILE_LIMIT: u64 = 16 << 20;

/// The identity of a command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// All groups: `gid`, then the others, ascending. A runtime sets just these, and a process whose list lacks its own
    /// group could leave that group and with it a refusal that a file's mode has for it (CVE-2022-36109; containerd's
    /// `ensureAdditionalGids`).
    pub(crate) additional_gids: Vec<u32>,
    /// Home directory: the user's, or `/` for a number that no user has.
    pub(crate) home: String,
}

/// Looks `user` up inside `root`. An empty text is user 0.
pub(crate) fn resolve(user: &str, root: &Root) -> Result<Identity, Error> {
    let passwd = root.read("/etc/passwd", FILE_LIMIT)?.unwrap_or_default();
    let group = root.read("/etc/group", FILE_LIMIT)?.unwrap_or_default();
    resolve_in(user, &String::from_utf8_lossy(&passwd), &String::from_utf8_lossy(&group))
}

fn resolve_in(user: &str, passwd: &str, group: &str) -> Result<Identity, Error> {
    let (user_part, group_part) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user, None),
    };
    let user_part = if user_part.is_empty() { "0" } else { user_part };
    let number = user_part.parse::<u32>().ok();
    let entry = passwd
        .lines()
        .filter_map(PasswdEntry::parse)
        .find(|entry| entry.name == user_part || Some(entry.uid) == number);
    let mut identity = match (&entry, number) {
        (Some(entry), _) => {
            let home = if entry.home.is_empty() { "/" } else { entry.home };
            Identity { uid: entry.uid, gid: entry.gid, additional_gids: Vec::new(), home: home.to_owned() }
        }
        (None, Some(uid)) if i32::try_from(uid).is_ok() => {
            Identity { uid, gid: 0, additional_gids: Vec::new(), home: "/".to_owned() }
        }
        _ => {
            let reason = "is no user of the image: use a name from its /etc/passwd, or a number";
            return Err(Error::invalid(format!("user `{user_part}`"), reason));
        }
    };
    match group_part.filter(|group| !group.is_empty()) {
        Some(wanted) => identity.gid = find_group(wanted, group)?,
        None => {
            if let Some(entry) = &entry {
                identity.additional_gids = supplementary(entry.name, identity.gid, group);
            }
        }
    }
    identity.additional_gids.insert(0, identity.gid);
    Ok(identity)
}

fn find_group(wanted: &str, group: &str) -> Result<u32, Error> {
    let number = wanted.parse::<u32>().ok().filter(|gid| i32::try_from(*gid).is_ok());
    let named =
        group.lines().filter_map(GroupEntry::parse).find(|entry| entry.name == wanted || Some(entry.gid) == number);
    named.map(|entry| entry.gid).or(number).ok_or_else(|| {
        let reason = "is no group of the image: use a name from its /etc/group, or a number";
        Error::invalid(format!("group `{wanted}`"), reason)
    })
}

fn supplementary(user: &str, primary: u32, group: &str) -> Vec<u32> {
    let member_of =
        group.lines().filter_map(GroupEntry::parse).filter(|entry| entry.members.split(',').any(|name| name == user));
    let mut gids: Vec<u32> = member_of.map(|entry| entry.gid).filter(|gid| *gid != primary).collect();
    gids.sort_unstable();
    gids.dedup();
    gids
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> PasswdEntry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Self { name, uid, gid, home: fields.nth(1).unwrap_or("") })
    }
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> GroupEntry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        Some(Self { name, gid: fields.nth(1)?.parse().ok()?, members: fields.next().unwrap_or("") })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PASSWD: &str = "# comment\nroot:x:0:0:root:/root:/bin/sh\nbad line\nshort:x:5\nweb:x:33:34:,,,:/var/www:/bin/false\n\
                          nohome:x:40:40\n  spaced:x:41:41::/s:\nhuge:x:99999999999:1::/:\n";
    const GROUP: &str = "root:x:0:\nadm:x:4:web,syslog\nwww:x:34:web\nextra:x:7:other,web\nextra2:x:7:web\nempty::50\n";

    fn identity(uid: u32, gid: u32, additional_gids: &[u32], home: &str) -> Identity {
        Identity { uid, gid, additional_gids: additional_gids.to_vec(), home: home.to_owned() }
    }

    #[test]
    fn names_and_numbers() {
        for (user, expected) in [
            ("", identity(0, 0, &[0], "/root")),
            ("root", identity(0, 0, &[0], "/root")),
            ("web", identity(33, 34, &[34, 4, 7], "/var/www")),
            ("33", identity(33, 34, &[34, 4, 7], "/var/www")),
            ("web:adm", identity(33, 4, &[4], "/var/www")),
            ("web:", identity(33, 34, &[34, 4, 7], "/var/www")),
            ("web:empty", identity(33, 50, &[50], "/var/www")),
            (":adm", identity(0, 4, &[4], "/root")),
            ("1234", identity(1234, 0, &[0], "/")),
            ("1234:5678", identity(1234, 5678, &[5678], "/")),
            ("nohome", identity(40, 40, &[40], "/")),
            ("spaced", identity(41, 41, &[41], "/s")),
        ] {
            assert_eq!(resolve_in(user, PASSWD, GROUP).unwrap(), expected, "{user}");
        }
    }

    #[test]
    fn what_does_not_exist() {
        for user in
            ["nobody", "web:nogroup", "-1", "4294967295", "0:4294967295", "short", "huge", "bad line", "# comment"]
        {
            assert!(matches!(resolve_in(user, PASSWD, GROUP), Err(Error::Invalid { .. })), "{user}");
        }
    }

    #[test]
    fn an_image_without_user_files() {
        assert_eq!(resolve_in("", "", "").unwrap(), identity(0, 0, &[0], "/"));
        assert!(resolve_in("root", "", "").is_err());
    }
}
