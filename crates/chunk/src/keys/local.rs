//! Keys in files on this machine.
//!
//! Rotation leaves the old key beside the new one, under its id, until somebody removes it: manifests that were sealed under
//! it still open. The order of steps is such that the old key has a name at every moment, whatever is interrupted.

mod key_file;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::{DataKey, KeyService, KeyUse, WrappedKey, check_tenant, fill_random};
use crate::Error;
use crate::salt::hkdf_sha256;
use crate::secret_bytes::SecretBytes;

/// What every key id of this service begins with.
const PREFIX: &str = "local:";

/// Keys in a folder: `<tenant>.key` for each tenant, `<tenant>.<id>.key` for those before it, and `salt.secret` for the
/// deployment's salt secret. Each file holds 64 hexadecimal digits and a line feed, is made on first use, and must be
/// readable by its owner alone (mode 0600).
#[derive(Clone, Debug)]
pub struct LocalKeys {
    folder: PathBuf,
}

/// What a rotation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotated {
    /// The id of the key that new manifests are sealed under.
    pub key_id: String,
    /// The id of the key before it.
    pub previous_key_id: String,
    /// Where the key before it is kept. Once no manifest is sealed under it, the file can be removed.
    pub previous_path: PathBuf,
}

/// What rotating has just done; a crash may come after each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The old key has its second name.
    Kept,
    /// The new key is in a file without its name.
    Drafted,
    /// The new key has taken the tenant's name.
    Replaced,
}

impl LocalKeys {
    /// Keys in this folder, which is made when the first key is.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The deployment's salt secret, made on first use. Publishers that should share chunks need the same.
    ///
    /// # Errors
    /// [`Error::BadKeyFile`] and [`Error::Io`].
    pub fn salt_secret(&self) -> Result<Zeroizing<[u8; 32]>, Error> {
        key_file::read_or_make(&self.folder.join("salt.secret"))
    }

    /// Makes a new key for a tenant and keeps the old one under its id. Manifests stay as they are: those under the old key open
    /// until its file is removed. Tenants rotate one after the other, processes too.
    ///
    /// # Errors
    /// [`Error::NoKey`] for a tenant that has none yet, [`Error::BadKeyFile`], [`Error::Io`]. After one the old key or the new
    /// one is in use, and no key is lost.
    pub fn rotate(&self, tenant: &str) -> Result<Rotated, Error> {
        self.rotate_stopping(tenant, &|_| Ok(()))
    }

    fn rotate_stopping(&self, tenant: &str, done: &dyn Fn(Step) -> Result<(), Error>) -> Result<Rotated, Error> {
        let path = self.tenant_path(tenant)?;
        let no_key = || Error::NoKey {
            tenant: tenant.into(),
            reason: format!("there is none to rotate ({}): the first publish makes one", path.display()),
        };
        if !path.exists() {
            return Err(no_key());
        }
        // Of two that read the same key, the later one would replace the other's new key before it has its second name.
        let lock_path = self.folder.join(".rotate.lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
        let lock = lock.map_err(io_error("open", &lock_path))?;
        lock.lock().map_err(io_error("lock", &lock_path))?;

        let old = key_file::read(&path)?.ok_or_else(no_key)?;
        let previous_key_id = key_id(&old);
        let previous_path = self.previous_path(tenant, &previous_key_id)?;
        keep(&path, &previous_path, &old)?;
        sync(&self.folder)?;
        done(Step::Kept)?;
        let new = key_file::random()?;
        let draft = key_file::draft(&self.folder, &new)?;
        done(Step::Drafted)?;
        fs::rename(&draft, &path).map_err(io_error("replace", &path))?;
        done(Step::Replaced)?;
        sync(&self.folder)?;
        Ok(Rotated { key_id: key_id(&new), previous_key_id, previous_path })
    }

    fn tenant_path(&self, tenant: &str) -> Result<PathBuf, Error> {
        check_tenant(tenant)?;
        Ok(self.folder.join(format!("{tenant}.key")))
    }

    /// Where a key of a tenant is once it is no longer the current one. No two tenants share a name: theirs have no dots.
    fn previous_path(&self, tenant: &str, key_id: &str) -> Result<PathBuf, Error> {
        check_tenant(tenant)?;
        let hex = key_id.strip_prefix(PREFIX).filter(|hex| hex.len() == 16);
        // It may come from a manifest, so it must not lead anywhere else.
        let hex = hex.filter(|hex| hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
        let hex = hex.ok_or_else(|| Error::NoKey {
            tenant: tenant.into(),
            reason: format!("{} is not the id of a key in a file", key_id.escape_debug()),
        })?;
        Ok(self.folder.join(format!("{tenant}.{hex}.key")))
    }

    /// The tenant's key with this id.
    fn tenant_key(&self, tenant: &str, wanted: &str) -> Result<Zeroizing<[u8; 32]>, Error> {
        let path = self.tenant_path(tenant)?;
        let previous_path = self.previous_path(tenant, wanted)?;
        // In this order: a key that is replaced between the two has its second name by then.
        for path in [&path, &previous_path] {
            if let Some(key) = key_file::read(path)?
                && key_id(&key) == wanted
            {
                return Ok(key);
            }
        }
        Err(Error::NoKey {
            tenant: tenant.into(),
            reason: format!(
                "the key {wanted} is not here ({}): copy it from the machine that published the image",
                path.display()
            ),
        })
    }
}

impl KeyService for LocalKeys {
    fn generate_data_key(&self, use_: &KeyUse<'_>) -> Result<(DataKey, WrappedKey), Error> {
        let tenant_key = key_file::read_or_make(&self.tenant_path(use_.tenant)?)?;
        let data_key = DataKey::random()?;
        let mut nonce = [0; 12];
        fill_random(&mut nonce)?;
        let mut sealed = SecretBytes::copy_of(data_key.expose());
        let tag = wrapping_key(&tenant_key)
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(associated_bytes(use_.tenant)),
                &mut sealed,
            )
            .expect("32 bytes are within the limit of GCM");
        let bytes = [&nonce, &*sealed, tag.as_ref()].concat();
        Ok((data_key, WrappedKey { key_id: key_id(&tenant_key), bytes }))
    }

    fn unwrap_data_key(&self, use_: &KeyUse<'_>, wrapped: &WrappedKey) -> Result<DataKey, Error> {
        let tenant_key = self.tenant_key(use_.tenant, &wrapped.key_id)?;
        let unauthentic = || Error::Unauthentic { tenant: use_.tenant.into() };
        let (nonce, sealed) = wrapped.bytes.split_at_checked(12).ok_or_else(unauthentic)?;
        let mut sealed = SecretBytes::copy_of(sealed);
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| unauthentic())?;
        let opened = wrapping_key(&tenant_key)
            .open_in_place(nonce, Aad::from(associated_bytes(use_.tenant)), &mut sealed)
            .map_err(|_| unauthentic())?;
        (opened.len() == 32).then(|| DataKey(SecretBytes::copy_of(opened))).ok_or_else(unauthentic)
    }

    fn owns(&self, key_id: &str) -> bool {
        key_id.starts_with(PREFIX)
    }

    fn describe(&self) -> String {
        format!("local ({})", self.folder.display())
    }
}

/// Gives the key at `path` the name `kept` as well. It may have it already, from a rotation that was interrupted.
fn keep(path: &Path, kept: &Path, key: &[u8; 32]) -> Result<(), Error> {
    match fs::hard_link(path, kept) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if key_file::read(kept)?.is_some_and(|found| *found == *key) {
                return Ok(());
            }
            let what = "it holds another key than its name says: move it away, then rotate again";
            Err(Error::BadKeyFile { path: kept.into(), what: what.into() })
        }
        result => result.map_err(io_error("make", kept)),
    }
}

/// Names that were made or replaced in the folder are there after a power cut.
fn sync(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error("write", folder))
}

/// Binds a wrapped key to its use and its tenant.
fn associated_bytes(tenant: &str) -> Vec<u8> {
    [b"snowmelt data key v1 ", tenant.as_bytes()].concat()
}

fn wrapping_key(tenant_key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, tenant_key).expect("an AES-256 key has 32 bytes"))
}

/// Tells keys apart without telling what they are: 8 bytes derived from the key.
fn key_id(tenant_key: &[u8; 32]) -> String {
    use std::fmt::Write as _;
    hkdf_sha256(&[], tenant_key, b"snowmelt key id v1")[..8].iter().fold(PREFIX.to_string(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { operation, path, source }
}

#[cfg(test)]
mod tests;
