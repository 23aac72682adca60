//! The descriptor: what a namespace is, beside its log.
//!
//! One small file, `zdb-namespace`, replaced by rename and never written in place, and a copy in
//! the index folder. If the file is damaged the copy is taken and the file made again; if both are,
//! the namespace is not served: a guess could make a private namespace public. [`bytes`] has its layout.
//!
//! What is sealed is a nonce of 12 bytes, ciphertext and a tag of 16 bytes, under the master key (the
//! password: the server's key for passwords), bound to the identity and a word for its purpose.

mod bytes;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::cipher::{self, SECRET_SIZE, Sealer};
use crate::hash::{HASH_KEY_SIZE, Hasher};
use crate::log::segment::{Folders, write_error};
use crate::storage::{File, Open, Storage, read_full, write_full};
use crate::{Derivation, Error, MasterKey, Secret, Settings};

/// The file's name.
pub(crate) const DESCRIPTOR_NAME: &str = "zdb-namespace";
const NEW_DESCRIPTOR_NAME: &str = "zdb-namespace.new";

/// Far more than any descriptor has.
const SIZE_MAX: usize = 1024 * 1024;
/// Data keys that a namespace can have at once; each rotation begins one.
const DATA_KEY_COUNT_MAX: usize = 1024;

/// A namespace's descriptor. `Debug` shows no key.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) generation: u64,
    pub(crate) identity: [u8; 16],
    pub(crate) settings: Settings,
    /// Sealed if `encrypted`.
    hash_key: Vec<u8>,
    pub(crate) encrypted: bool,
    /// Numbers and sealed data keys.
    data_keys: Vec<(u32, Vec<u8>)>,
    current: u32,
    /// How a passphrase becomes the master key, or the key for passwords. Once there is one, it stays.
    derivation: Option<Derivation>,
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Descriptor({:?})", self.settings)
    }
}

impl Descriptor {
    /// A new namespace's, encrypted if there is a secret.
    pub(crate) fn new(
        storage: &dyn Storage,
        settings: Settings,
        secret: Option<&Secret>,
    ) -> Result<Self, Error> {
        let mut hash_key = Zeroizing::new([0; HASH_KEY_SIZE]);
        let mut identity = [0; 16];
        storage.random(&mut *hash_key).map_err(Error::Read)?;
        storage.random(&mut identity).map_err(Error::Read)?;
        let mut descriptor = Self {
            generation: 1,
            identity,
            settings,
            hash_key: hash_key.to_vec(),
            encrypted: secret.is_some(),
            data_keys: Vec::new(),
            current: 0,
            derivation: None,
        };
        if let Some(secret) = secret {
            let master = descriptor.first_key(storage, secret)?;
            descriptor.hash_key = descriptor.seal(storage, &master, b"hash", &*hash_key)?;
            descriptor.add_data_key(storage, &master)?;
        }
        Ok(descriptor)
    }

    /// How passphrases become keys here, if one ever did.
    pub(crate) fn derivation(&self) -> Option<&Derivation> {
        self.derivation.as_ref()
    }

    /// The key of a secret that something is to be sealed with.
    pub(crate) fn first_key(
        &mut self,
        storage: &dyn Storage,
        secret: &Secret,
    ) -> Result<MasterKey, Error> {
        if self.derivation.is_none() {
            self.derivation = secret.derivation(storage)?;
        }
        secret.key(self.derivation())
    }

    /// Keys of a plain namespace; of an encrypted one with its master key.
    pub(crate) fn keys(&self, master: Option<&MasterKey>) -> Result<cipher::Keys, Error> {
        let hash_key = match (self.encrypted, master) {
            (false, _) => Zeroizing::new(self.hash_key.clone()),
            (true, None) => return Err(Error::KeyNeeded),
            (true, Some(master)) => self.open(master, b"hash", &self.hash_key)?,
        };
        let hash_key = hash_key.first_chunk::<HASH_KEY_SIZE>().ok_or(Error::WrongKey)?;
        let mut keys = cipher::Keys {
            mode: self.settings.mode,
            hasher: Hasher::new(hash_key),
            sealers: Default::default(),
            current: self.current,
        };
        for (number, sealed) in self.data_keys.iter().filter(|_| self.encrypted) {
            let master = master.ok_or(Error::KeyNeeded)?;
            let key = self.open(master, b"data", sealed)?;
            let key = key.first_chunk::<SECRET_SIZE>().ok_or(Error::WrongKey)?;
            keys.sealers.insert(*number, Arc::new(Sealer::new(key).ok_or(Error::WrongKey)?));
        }
        Ok(keys)
    }

    /// Begins a new data key.
    pub(crate) fn add_data_key(
        &mut self,
        storage: &dyn Storage,
        master: &MasterKey,
    ) -> Result<(), Error> {
        let mut key = Zeroizing::new([0; SECRET_SIZE]);
        storage.random(&mut *key).map_err(Error::Read)?;
        let number = self.data_keys.iter().map(|(number, _)| *number).max().unwrap_or(0) + 1;
        if self.data_keys.len() >= DATA_KEY_COUNT_MAX {
            return Err(Error::Format { what: "descriptor", reason: "too many data keys" });
        }
        let sealed = self.seal(storage, master, b"data", &*key)?;
        self.data_keys.push((number, sealed));
        self.current = number;
        Ok(())
    }

    /// Forgets data keys that no segment uses; says whether there were any.
    pub(crate) fn forget_data_keys(&mut self, used: impl Fn(u32) -> bool) -> bool {
        let before = self.data_keys.len();
        let current = self.current;
        self.data_keys.retain(|(number, _)| *number == current || used(*number));
        self.data_keys.len() != before
    }

    /// Seals everything with another master key.
    pub(crate) fn reseal(
        &mut self,
        storage: &dyn Storage,
        old: &MasterKey,
        new: &MasterKey,
    ) -> Result<(), Error> {
        let hash_key = self.open(old, b"hash", &self.hash_key)?;
        self.hash_key = self.seal(storage, new, b"hash", &hash_key)?;
        let mut data_keys = Vec::with_capacity(self.data_keys.len());
        for (number, sealed) in &self.data_keys {
            let key = self.open(old, b"data", sealed)?;
            data_keys.push((*number, self.seal(storage, new, b"data", &key)?));
        }
        self.data_keys = data_keys;
        Ok(())
    }

    fn purpose(&self, word: &[u8]) -> Vec<u8> {
        [&self.identity, word].concat()
    }

    fn seal(
        &self,
        storage: &dyn Storage,
        key: &MasterKey,
        word: &[u8],
        secret: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let mut nonce = [0; 12];
        storage.random(&mut nonce).map_err(Error::Read)?;
        cipher::seal_secret(key, nonce, &self.purpose(word), secret).ok_or(Error::WrongKey)
    }

    fn open(
        &self,
        key: &MasterKey,
        word: &[u8],
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        cipher::open_secret(key, &self.purpose(word), sealed).ok_or(Error::WrongKey)
    }

    /// Makes it durable: the file, then the copy. A failed copy is made again with the next change.
    pub(crate) fn store(
        &mut self,
        folders: &Folders,
        secret: Option<&Secret>,
    ) -> Result<(), Error> {
        if let Some(secret) = secret.filter(|_| self.settings.password.is_some()) {
            self.first_key(&*folders.storage, secret)?;
        }
        let bytes = self.to_bytes(&*folders.storage, secret)?;
        replace(&*folders.storage, &folders.data, &bytes)
            .map_err(|error| write_error(error, &folders.data))?;
        let _ = replace(&*folders.storage, &folders.index, &bytes);
        Ok(())
    }

    /// Reads it, or its copy. Says whether what was read must be stored again.
    pub(crate) fn load(
        folders: &Folders,
        secret: Option<&Secret>,
    ) -> Result<Option<(Self, bool)>, Error> {
        let storage = &*folders.storage;
        let first = read(storage, &folders.data)?;
        if let Some(bytes) = &first
            && let Some(descriptor) = Self::parse(bytes, secret)?
        {
            let repair = read(storage, &folders.index)?.as_ref() != Some(bytes);
            return Ok(Some((descriptor, repair)));
        }
        match read(storage, &folders.index)? {
            Some(bytes) => Ok(Self::parse(&bytes, secret)?.map(|parsed| (parsed, true))),
            None => Ok(None),
        }
    }
}

fn replace(storage: &dyn Storage, folder: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = folder.join(NEW_DESCRIPTOR_NAME);
    let file = storage.open(&new, Open::Empty)?;
    write_full(&*file, bytes, 0)?;
    file.sync()?;
    storage.rename(&new, &folder.join(DESCRIPTOR_NAME))?;
    storage.sync_folder(folder)
}

/// A descriptor's bytes; `None` if there is no such file.
fn read(storage: &dyn Storage, folder: &Path) -> Result<Option<Vec<u8>>, Error> {
    let file = match storage.open(&folder.join(DESCRIPTOR_NAME), Open::Existing) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::Read(error)),
    };
    let read = |file: &dyn File| {
        let size = usize::try_from(file.size()?).unwrap_or(usize::MAX).min(SIZE_MAX);
        let mut bytes = vec![0; size];
        let read = read_full(file, &mut bytes, 0)?;
        bytes.truncate(read);
        io::Result::Ok(bytes)
    };
    read(&*file).map(Some).map_err(Error::Read)
}
