//! The descriptor: what a namespace is, beside its log.
//!
//! One small file, `zdb-namespace`, replaced by rename and never written in place, and a copy in
//! the index folder. If the file is damaged the copy is taken and the file made again; if both are,
//! the namespace is not served: a guess could make a private namespace public.
//!
//! ```text
//!  size
//!     4  "ZDBN"
//!     4  version of the format: 1
//!     8  generation: rises with every change
//!    16  the namespace's random identity
//!     1  mode: 0 user, 1 sequential
//!     1  durability: 0 none, 1 interval, 2 group;  8  interval in ms
//!     1  history: 0 none, 1 younger, 2 all;  8  age in seconds
//!     8  most bytes of values;  8  most bytes of files
//!     2  flags: 1 public, 2 worm, 4 locked, 8 frozen, 16 password, 32 password is sealed,
//!        64 encrypted
//!     2  bytes of the password, sealed or not; the password
//!     2  bytes of the hash key, sealed if encrypted; the hash key
//!     4  current data key;  2  data keys; each  4  its number, 2 bytes of it sealed, it
//!     4  CRC-32C of the bytes before
//! ```
//!
//! What is sealed is a nonce of 12 bytes, ciphertext and a tag of 16 bytes, under the master key (the
//! password: the server's key for passwords), bound to the identity and a word for its purpose.

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::cipher::{self, SECRET_SIZE, Sealer};
use crate::hash::{HASH_KEY_SIZE, Hasher};
use crate::log::bytes::Fields;
use crate::log::segment::{Folders, write_error};
use crate::storage::{File, Open, Storage, read_full, write_full};
use crate::{Durability, Error, History, MasterKey, Mode, Password, Settings};

/// The file's name.
pub(crate) const DESCRIPTOR_NAME: &str = "zdb-namespace";
const NEW_DESCRIPTOR_NAME: &str = "zdb-namespace.new";

const MAGIC: [u8; 4] = *b"ZDBN";
const VERSION: u32 = 1;
/// Far more than any descriptor has.
const SIZE_MAX: usize = 1024 * 1024;
/// Data keys that a namespace can have at once; each rotation begins one.
const DATA_KEY_COUNT_MAX: usize = 1024;

const PUBLIC: u16 = 1;
const WORM: u16 = 2;
const LOCKED: u16 = 4;
const FROZEN: u16 = 8;
const PASSWORD: u16 = 16;
const PASSWORD_SEALED: u16 = 32;
const ENCRYPTED: u16 = 64;

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
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Descriptor({:?})", self.settings)
    }
}

impl Descriptor {
    /// A new namespace's, encrypted if there is a master key.
    pub(crate) fn new(
        storage: &dyn Storage,
        settings: Settings,
        master: Option<&MasterKey>,
    ) -> Result<Self, Error> {
        let mut hash_key = [0; HASH_KEY_SIZE];
        let mut identity = [0; 16];
        storage.random(&mut hash_key).map_err(Error::Read)?;
        storage.random(&mut identity).map_err(Error::Read)?;
        let mut descriptor = Self {
            generation: 1,
            identity,
            settings,
            hash_key: hash_key.to_vec(),
            encrypted: master.is_some(),
            data_keys: Vec::new(),
            current: 0,
        };
        if let Some(master) = master {
            descriptor.hash_key = descriptor.seal(storage, master, b"hash", &hash_key)?;
            descriptor.add_data_key(storage, master)?;
        }
        Ok(descriptor)
    }

    /// Keys of a plain namespace; of an encrypted one with its master key.
    pub(crate) fn keys(&self, master: Option<&MasterKey>) -> Result<cipher::Keys, Error> {
        let hash_key = match (self.encrypted, master) {
            (false, _) => self.hash_key.clone(),
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
            keys.sealers.insert(*number, Sealer::new(key).ok_or(Error::WrongKey)?);
        }
        Ok(keys)
    }

    /// Begins a new data key.
    pub(crate) fn add_data_key(
        &mut self,
        storage: &dyn Storage,
        master: &MasterKey,
    ) -> Result<(), Error> {
        let mut key = [0; SECRET_SIZE];
        storage.random(&mut key).map_err(Error::Read)?;
        let number = self.data_keys.iter().map(|(number, _)| *number).max().unwrap_or(0) + 1;
        if self.data_keys.len() >= DATA_KEY_COUNT_MAX {
            return Err(Error::Format { what: "descriptor", reason: "too many data keys" });
        }
        let sealed = self.seal(storage, master, b"data", &key)?;
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

    fn open(&self, key: &MasterKey, word: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Error> {
        cipher::open_secret(key, &self.purpose(word), sealed).ok_or(Error::WrongKey)
    }

    /// The file's bytes.
    pub(crate) fn to_bytes(
        &self,
        storage: &dyn Storage,
        password_key: Option<&MasterKey>,
    ) -> Result<Vec<u8>, Error> {
        let settings = &self.settings;
        let mut password = settings.password.as_ref().map(|password| password.reveal().to_vec());
        if let (Some(password), Some(key)) = (&mut password, password_key) {
            *password = self.seal(storage, key, b"password", password)?;
        }
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.identity);
        put_choices(&mut out, settings);
        out.extend_from_slice(&settings.size_max.to_le_bytes());
        out.extend_from_slice(&settings.file_size_max.to_le_bytes());
        let flags = [
            (settings.public, PUBLIC),
            (settings.worm, WORM),
            (settings.locked, LOCKED),
            (settings.frozen, FROZEN),
            (password.is_some(), PASSWORD),
            (password.is_some() && password_key.is_some(), PASSWORD_SEALED),
            (self.encrypted, ENCRYPTED),
        ];
        let flags = flags.iter().filter(|(set, _)| *set).fold(0, |all, (_, flag)| all | flag);
        out.extend_from_slice(&u16::to_le_bytes(flags));
        put_sized(&mut out, &password.unwrap_or_default());
        put_sized(&mut out, &self.hash_key);
        out.extend_from_slice(&self.current.to_le_bytes());
        let count = u16::try_from(self.data_keys.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&count.to_le_bytes());
        for (number, sealed) in &self.data_keys {
            out.extend_from_slice(&number.to_le_bytes());
            put_sized(&mut out, sealed);
        }
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        Ok(out)
    }

    /// Reads a file's bytes. `Ok(None)`: they are not a whole descriptor of ours.
    pub(crate) fn parse(
        bytes: &[u8],
        password_key: Option<&MasterKey>,
    ) -> Result<Option<Self>, Error> {
        let Some((mut descriptor, password, sealed)) = parse_fields(bytes) else {
            return Ok(None);
        };
        descriptor.settings.password = match (password, sealed, password_key) {
            (None, ..) => None,
            (Some(password), false, _) => Some(Password::new(&password)),
            (Some(_), true, None) => return Err(Error::PasswordSealed),
            (Some(password), true, Some(key)) => {
                Some(Password::new(&descriptor.open(key, b"password", &password)?))
            }
        };
        Ok(Some(descriptor))
    }

    /// Makes it durable: the file, then the copy. A failed copy is made again with the next change.
    pub(crate) fn store(
        &self,
        folders: &Folders,
        password_key: Option<&MasterKey>,
    ) -> Result<(), Error> {
        let bytes = self.to_bytes(&*folders.storage, password_key)?;
        replace(&*folders.storage, &folders.data, &bytes)
            .map_err(|error| write_error(error, &folders.data))?;
        let _ = replace(&*folders.storage, &folders.index, &bytes);
        Ok(())
    }

    /// Reads it, or its copy. Says whether what was read must be stored again.
    pub(crate) fn load(
        folders: &Folders,
        password_key: Option<&MasterKey>,
    ) -> Result<Option<(Self, bool)>, Error> {
        let storage = &*folders.storage;
        let first = read(storage, &folders.data)?;
        if let Some(bytes) = &first
            && let Some(descriptor) = Self::parse(bytes, password_key)?
        {
            let repair = read(storage, &folders.index)?.as_ref() != Some(bytes);
            return Ok(Some((descriptor, repair)));
        }
        match read(storage, &folders.index)? {
            Some(bytes) => Ok(Self::parse(&bytes, password_key)?.map(|parsed| (parsed, true))),
            None => Ok(None),
        }
    }
}

fn put_choices(out: &mut Vec<u8>, settings: &Settings) {
    out.push(match settings.mode {
        Mode::User => 0,
        Mode::Sequential => 1,
    });
    let (durability, interval) = match settings.durability {
        Durability::None => (0, Duration::ZERO),
        Durability::Interval(interval) => (1, interval),
        Durability::Group => (2, Duration::ZERO),
    };
    out.push(durability);
    let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
    out.extend_from_slice(&interval_ms.to_le_bytes());
    let (history, age) = match settings.history {
        History::None => (0, Duration::ZERO),
        History::Younger(age) => (1, age),
        History::All => (2, Duration::ZERO),
    };
    out.push(history);
    out.extend_from_slice(&age.as_secs().to_le_bytes());
}

fn put_sized(out: &mut Vec<u8>, bytes: &[u8]) {
    let size = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&size.to_le_bytes());
    out.extend_from_slice(bytes.get(..usize::from(size)).unwrap_or(bytes));
}

/// A descriptor without its password, the password as it is stored, and whether it is sealed.
fn parse_fields(bytes: &[u8]) -> Option<(Descriptor, Option<Vec<u8>>, bool)> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    let mut fields = Fields(body);
    if fields.array()? != MAGIC || fields.u32()? != VERSION {
        return None;
    }
    let (generation, identity) = (fields.u64()?, fields.array()?);
    let mut settings = parse_choices(&mut fields)?;
    settings.size_max = fields.u64()?;
    settings.file_size_max = fields.u64()?;
    let flags = fields.u16()?;
    settings.public = flags & PUBLIC != 0;
    settings.worm = flags & WORM != 0;
    settings.locked = flags & LOCKED != 0;
    settings.frozen = flags & FROZEN != 0;
    let password = sized(&mut fields)?;
    let password = (flags & PASSWORD != 0).then_some(password);
    let hash_key = sized(&mut fields)?;
    let (current, count) = (fields.u32()?, fields.u16()?);
    let mut data_keys = Vec::new();
    for _ in 0..count {
        data_keys.push((fields.u32()?, sized(&mut fields)?));
    }
    let encrypted = flags & ENCRYPTED != 0;
    let sound = fields.0.is_empty() && encrypted == (current != 0);
    let descriptor =
        Descriptor { generation, identity, settings, hash_key, encrypted, data_keys, current };
    sound.then_some((descriptor, password, flags & PASSWORD_SEALED != 0))
}

fn parse_choices(fields: &mut Fields<'_>) -> Option<Settings> {
    let mode = match fields.u8()? {
        0 => Mode::User,
        1 => Mode::Sequential,
        _ => return None,
    };
    let (durability, interval) = (fields.u8()?, Duration::from_millis(fields.u64()?));
    let durability = match durability {
        0 => Durability::None,
        1 => Durability::Interval(interval),
        2 => Durability::Group,
        _ => return None,
    };
    let (history, age) = (fields.u8()?, Duration::from_secs(fields.u64()?));
    let history = match history {
        0 => History::None,
        1 => History::Younger(age),
        2 => History::All,
        _ => return None,
    };
    Some(Settings { mode, durability, history, ..Settings::default() })
}

fn sized(fields: &mut Fields<'_>) -> Option<Vec<u8>> {
    let size = fields.u16()?;
    fields.slice(size.into()).map(<[u8]>::to_vec)
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
