//! Names: which manifest an image's name stands for, in which root.
//!
//! A name is one object that is only ever compared and swapped. A name that is removed leaves a tombstone, so that its generation goes
//! on from there and a sleeper that read the name before cannot bring it back.

use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use snowmelt_chunk::check_tenant;

use crate::objects::{Swapped, Version};
use crate::records::NameRecord;
use crate::roots::{MOST_COUNT, seconds};
use crate::{Error, ImageName, Store};

/// A name's record has about 500 bytes, and what its publisher called its source.
const MOST_BYTES: u64 = 64 << 10;
/// Tombstones are so long, and no record is: the id of its manifest and the names of its fields alone are longer. Where reading
/// costs a request it is spared, since tombstones stay for ever: no object storage deletes by compare.
const TOMBSTONE_BYTES: std::ops::Range<u64> = 60..180;
/// How often a swap is tried while others swap the same name.
const MOST_TRIES: usize = 50;

/// A name, and its record unless that is damaged.
pub type ListedName = (ImageName, Result<NameRecord, Error>);

/// What is left of a name that was removed. Older readers refuse it by its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tombstone {
    version: u32,
    removed: bool,
    pub(crate) generation: u64,
    pub(crate) removed_at: u64,
    #[serde(default)]
    pub(crate) fence: u64,
}

/// What is under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Absent,
    Removed(Tombstone),
    Image(NameRecord),
    /// What cannot be understood is replaced by what can.
    Damaged(String),
}

impl Entry {
    pub(crate) fn decode(subject: &str, bytes: &[u8]) -> Self {
        if let Ok(tombstone) = serde_json::from_slice::<Tombstone>(bytes)
            && tombstone.version == 2
            && tombstone.removed
            && [tombstone.generation, tombstone.removed_at, tombstone.fence].iter().all(|number| *number <= MOST_COUNT)
        {
            return Self::Removed(tombstone);
        }
        // Where it is taken for a tombstone by its length, it must not be taken for an image elsewhere: fields without names.
        if TOMBSTONE_BYTES.contains(&(bytes.len() as u64)) {
            return Self::Damaged("it is too short".into());
        }
        match NameRecord::decode(subject, bytes) {
            Ok(record) => Self::Image(record),
            Err(Error::Corrupt { reason, .. }) => Self::Damaged(reason),
            Err(error) => Self::Damaged(error.to_string()),
        }
    }

    /// How often the name was published or removed.
    pub(crate) fn generation(&self) -> u64 {
        match self {
            Self::Absent | Self::Damaged(_) => 0,
            Self::Removed(tombstone) => tombstone.generation,
            Self::Image(record) => record.generation,
        }
    }
}

fn subject(tenant: &str, name: &ImageName) -> String {
    format!("image {name} of tenant {tenant:?}")
}

impl Store {
    pub(crate) fn name_path(tenant: &str, name: &ImageName) -> String {
        format!("names/{tenant}/{}/{}", name.folder(), name.tag())
    }

    /// `ReadName`: what is under a name, and what it is for a swap.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Refused`], [`Error::Io`].
    pub(crate) fn read_entry(&self, tenant: &str, name: &ImageName) -> Result<(Entry, Version), Error> {
        let subject = subject(tenant, name);
        let (bytes, version) = self.objects().get_version(&Self::name_path(tenant, name), &subject, MOST_BYTES)?;
        Ok((bytes.map_or(Entry::Absent, |bytes| Entry::decode(&subject, &bytes)), version))
    }

    /// `CommitName`: makes a name stand for what the record says if it still is what it was.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Refused`], [`Error::Io`], [`Error::Invalid`] where the store can only be read.
    pub(crate) fn swap_name(
        &self,
        tenant: &str,
        name: &ImageName,
        record: &NameRecord,
        was: &Version,
    ) -> Result<Swapped, Error> {
        let bytes = Bytes::from(serde_json::to_vec_pretty(record).expect("a record of plain fields is JSON"));
        self.objects().swap(&Self::name_path(tenant, name), &subject(tenant, name), &bytes, was)
    }

    fn swap_tombstone(
        &self,
        tenant: &str,
        name: &ImageName,
        tomb: &Tombstone,
        was: &Version,
    ) -> Result<Swapped, Error> {
        let bytes = Bytes::from(serde_json::to_vec(tomb).expect("plain fields are JSON"));
        self.objects().swap(&Self::name_path(tenant, name), &subject(tenant, name), &bytes, was)
    }

    /// What a name stands for. One request.
    ///
    /// # Errors
    /// [`Error::NotFound`] with what to do, [`Error::Corrupt`], [`Error::Unavailable`], [`Error::Refused`].
    pub fn read_name(&self, tenant: &str, name: &ImageName) -> Result<NameRecord, Error> {
        match self.read_entry(tenant, name)?.0 {
            Entry::Image(record) => Ok(record),
            Entry::Damaged(reason) => Err(Error::corrupt(subject(tenant, name), reason)),
            Entry::Absent | Entry::Removed(_) => Err(self
                .objects()
                .not_found(&subject(tenant, name), ": `snowmelt images` lists what is, `snowmelt publish` adds")),
        }
    }

    /// Removes a name, and leaves a tombstone. Its manifest and chunks stay until their root goes.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`], [`Error::Refused`], [`Error::Io`].
    pub fn remove_name(&self, tenant: &str, name: &ImageName) -> Result<(), Error> {
        for _ in 0..MOST_TRIES {
            let (entry, version) = self.read_entry(tenant, name)?;
            if matches!(entry, Entry::Absent | Entry::Removed(_)) {
                return Err(self.objects().not_found(&subject(tenant, name), ": `snowmelt images` lists what is"));
            }
            let removed_at = seconds(SystemTime::now());
            let tomb =
                Tombstone { version: 2, removed: true, generation: entry.generation() + 1, removed_at, fence: 0 };
            if self.swap_tombstone(tenant, name, &tomb, &version)?.is_done() {
                return Ok(());
            }
        }
        Err(Error::Busy { subject: subject(tenant, name) })
    }

    /// `Fence`: changes a name's object without changing what it stands for, so that who read it before cannot swap it any more.
    /// Nothing is done where the name stands for something in `root`: it is to be migrated then.
    ///
    /// # Errors
    /// Those of reading and swapping.
    pub(crate) fn fence_name(&self, tenant: &str, name: &ImageName, root: &str) -> Result<(), Error> {
        for _ in 0..MOST_TRIES {
            let (entry, version) = self.read_entry(tenant, name)?;
            let fenced = match entry {
                Entry::Image(record) if record.root == root => return Ok(()),
                Entry::Image(mut record) => {
                    record.fence += 1;
                    self.swap_name(tenant, name, &record, &version)?
                }
                Entry::Removed(mut tomb) => {
                    tomb.fence += 1;
                    self.swap_tombstone(tenant, name, &tomb, &version)?
                }
                // Nothing good is lost with a damaged record, but a person may still want to look at it.
                Entry::Damaged(reason) => return Err(Error::corrupt(subject(tenant, name), reason)),
                Entry::Absent => {
                    let removed_at = seconds(SystemTime::now());
                    let tomb = Tombstone { version: 2, removed: true, generation: 0, removed_at, fence: 1 };
                    self.swap_tombstone(tenant, name, &tomb, &version)?
                }
            };
            if fenced.is_done() {
                return Ok(());
            }
        }
        Err(Error::Busy { subject: subject(tenant, name) })
    }

    /// The tenants that have names, or had.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Refused`], [`Error::Io`], [`Error::Invalid`] where the store does not list.
    pub fn list_tenants(&self) -> Result<Vec<String>, Error> {
        let mut tenants = self.objects().list_folders("names")?;
        tenants.retain(|tenant| check_tenant(tenant).is_ok());
        Ok(tenants)
    }

    /// All names of a tenant with their records, by name. A record that cannot be read ([`Error::Corrupt`]) is an error of its
    /// own and not of the list, so that one bad file does not hide all others.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Refused`], [`Error::Io`], [`Error::Invalid`] where the store does not list.
    pub fn list_names(&self, tenant: &str) -> Result<Vec<ListedName>, Error> {
        let mut names = Vec::new();
        for (name, entry) in self.list_entries(tenant)? {
            match entry {
                Entry::Image(record) => names.push((name, Ok(record))),
                Entry::Damaged(reason) => {
                    let error = Error::corrupt(subject(tenant, &name), reason);
                    names.push((name, Err(error)));
                }
                Entry::Absent | Entry::Removed(_) => {}
            }
        }
        Ok(names)
    }

    /// The names of a tenant with what is under them, by name; tombstones may be left out.
    pub(crate) fn list_entries(&self, tenant: &str) -> Result<Vec<(ImageName, Entry)>, Error> {
        let named = |path: &str| {
            let (rest, tag) = path.rsplit_once('/')?;
            let (_, folder) = rest.rsplit_once('/')?;
            ImageName::from_path(folder, tag)
        };
        let listed = self.objects().list(&format!("names/{tenant}"))?;
        let is_remote = !self.is_local();
        let found: Vec<_> = listed
            .into_iter()
            .filter(|listed| !(is_remote && TOMBSTONE_BYTES.contains(&listed.bytes)))
            .filter_map(|listed| Some((named(&listed.path)?, listed.path)))
            .collect();
        let paths: Vec<_> = found.iter().map(|(_, path)| path.clone()).collect();
        let read = self.objects().get_all(&paths, "names", MOST_BYTES)?;
        let mut entries: Vec<_> = found
            .into_iter()
            .zip(read)
            .map(|((name, _), bytes)| {
                let entry = match bytes {
                    None => Entry::Absent,
                    Some(Ok(bytes)) => Entry::decode(&subject(tenant, &name), &bytes),
                    Some(Err(Error::Corrupt { reason, .. })) => Entry::Damaged(reason),
                    Some(Err(error)) => Entry::Damaged(error.to_string()),
                };
                (name, entry)
            })
            .collect();
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(entries)
    }
}
