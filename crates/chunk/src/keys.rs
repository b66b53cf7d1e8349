//! Tenant keys: who can open a manifest.
//!
//! A *data key* seals one manifest; a key service wraps it under the tenant's own key and unwraps it again. [`KeyService`]
//! is the seam for services (a KMS); [`LocalKeys`] keeps keys in files on this machine.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::Error;
use crate::id::parse_hex;
use crate::salt::hkdf_sha256;

/// The key that seals one manifest: 32 bytes, zeroised when dropped, never shown.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct DataKey([u8; 32]);

impl DataKey {
    pub(crate) fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for DataKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DataKey(secret)")
    }
}

/// A data key encrypted under a tenant's key, as a manifest carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedKey {
    /// Names the tenant's key within its service, such as an ARN; at most 65,535 bytes.
    pub key_id: String,
    /// The service's ciphertext; at most 65,535 bytes.
    pub bytes: Vec<u8>,
}

/// Where tenants' keys are kept.
#[derive(Debug)]
#[non_exhaustive]
pub enum KeyService {
    /// In files on this machine.
    Local(LocalKeys),
}

impl KeyService {
    /// Makes a fresh data key, and the form of it that a manifest may carry.
    pub fn generate_data_key(&self, tenant: &str) -> Result<(DataKey, WrappedKey), Error> {
        match self {
            Self::Local(keys) => keys.generate_data_key(tenant),
        }
    }

    /// Gets a data key back.
    pub fn unwrap_data_key(&self, tenant: &str, wrapped: &WrappedKey) -> Result<DataKey, Error> {
        match self {
            Self::Local(keys) => keys.unwrap_data_key(tenant, wrapped),
        }
    }
}

/// Keys in a folder: `<tenant>.key` for each tenant and `salt.secret` for the deployment's salt secret. Each file holds 64
/// hexadecimal digits and a line feed, is made on first use, and must be readable by its owner alone (mode 0600).
#[derive(Clone, Debug)]
pub struct LocalKeys {
    folder: PathBuf,
}

/// Fills `bytes` from the system's random generator.
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<(), Error> {
    getrandom::fill(bytes).map_err(|error| Error::Invalid(format!("the system gives no random bytes: {error}")))
}

impl LocalKeys {
    /// Keys in this folder, which is made when the first key is.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The deployment's salt secret, made on first use. Publishers that should share chunks need the same.
    pub fn salt_secret(&self) -> Result<Zeroizing<[u8; 32]>, Error> {
        read_or_make(&self.folder.join("salt.secret"))
    }

    fn tenant_path(&self, tenant: &str) -> Result<PathBuf, Error> {
        check_tenant(tenant)?;
        Ok(self.folder.join(format!("{tenant}.key")))
    }

    fn generate_data_key(&self, tenant: &str) -> Result<(DataKey, WrappedKey), Error> {
        let tenant_key = read_or_make(&self.tenant_path(tenant)?)?;
        let mut data_key = DataKey([0; 32]);
        fill_random(&mut data_key.0)?;
        let mut nonce = [0; 12];
        fill_random(&mut nonce)?;
        let mut wrapped = data_key.0.to_vec();
        wrapping_key(&tenant_key)
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(associated_bytes(tenant)),
                &mut wrapped,
            )
            .expect("32 bytes are within the limit of GCM");
        let mut bytes = nonce.to_vec();
        bytes.extend(wrapped);
        Ok((data_key, WrappedKey { key_id: key_id(&tenant_key), bytes }))
    }

    fn unwrap_data_key(&self, tenant: &str, wrapped: &WrappedKey) -> Result<DataKey, Error> {
        let path = self.tenant_path(tenant)?;
        let no_key = || Error::NoKey { tenant: tenant.into(), key_id: wrapped.key_id.clone(), path: path.clone() };
        let tenant_key = read(&path)?.ok_or_else(no_key)?;
        if key_id(&tenant_key) != wrapped.key_id {
            return Err(no_key());
        }
        let unauthentic = || Error::Unauthentic { tenant: tenant.into() };
        let (nonce, sealed) = wrapped.bytes.split_at_checked(12).ok_or_else(unauthentic)?;
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| unauthentic())?;
        let opened = wrapping_key(&tenant_key)
            .open_in_place(nonce, Aad::from(associated_bytes(tenant)), &mut sealed)
            .map_err(|_| unauthentic())?;
        Ok(DataKey((&*opened).try_into().map_err(|_| unauthentic())?))
    }
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
    hkdf_sha256(&[], tenant_key, b"snowmelt key id v1")[..8].iter().fold("local:".to_string(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Names of tenants are parts of paths and of object names, so they are kept plain.
///
/// # Errors
/// [`Error::Invalid`] for anything but 1 to 64 of a-z, 0-9, '-', '_', beginning with a letter or digit.
pub fn check_tenant(tenant: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_name = (1..=64).contains(&tenant.len())
        && tenant.bytes().next().is_some_and(plain)
        && tenant.bytes().all(|byte| plain(byte) || byte == b'-' || byte == b'_');
    if is_name {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{tenant:?} is not a tenant's name: 1 to 64 of a-z, 0-9, '-', '_', beginning with a letter or digit"
    )))
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { operation, path, source }
}

/// Reads a key file; `None` where there is none.
fn read(path: &Path) -> Result<Option<Zeroizing<[u8; 32]>>, Error> {
    let mut file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("read", path)(error)),
    };
    let mode = file.metadata().map_err(io_error("read", path))?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(Error::BadKeyFile {
            path: path.into(),
            what: format!("others may read it (mode {mode:04o}): chmod 600 it, and consider the key as known"),
        });
    }
    let mut text = Zeroizing::new(String::with_capacity(80));
    (&mut file).take(80).read_to_string(&mut text).map_err(io_error("read", path))?;
    parse_hex(text.trim_end()).map(|key| Some(Zeroizing::new(key))).ok_or_else(|| Error::BadKeyFile {
        path: path.into(),
        what: "it does not hold 64 hexadecimal digits: restore it from a backup".into(),
    })
}

/// Reads a key file, making it with a random key where there is none. Whoever makes it first wins: a complete file is
/// linked into place, so that no other process and no crash ever sees half of one.
fn read_or_make(path: &Path) -> Result<Zeroizing<[u8; 32]>, Error> {
    if let Some(key) = read(path)? {
        return Ok(key);
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(io_error("make", folder))?;
    let mut key = Zeroizing::new([0; 32]);
    fill_random(key.as_mut())?;
    let mut unique = [0; 8];
    fill_random(&mut unique)?;
    let draft = folder.join(format!(".draft-{:016x}", u64::from_le_bytes(unique)));
    let text = Zeroizing::new(format!("{}\n", crate::ChunkId(*key)));
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| match fs::hard_link(&draft, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        });
    let removed = fs::remove_file(&draft);
    made.and(removed).and_then(|()| fs::File::open(folder)?.sync_all()).map_err(io_error("make", path))?;
    read(path)?.ok_or_else(|| io_error("read", path)(io::ErrorKind::NotFound.into()))
}

#[cfg(test)]
mod tests;
