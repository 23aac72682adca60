//! A descriptor as bytes, and back.
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
//!        64 encrypted, 128 passphrases become keys here
//!     2  bytes of the password, sealed or not; the password
//!     2  bytes of the hash key, sealed if encrypted; the hash key
//!     4  current data key;  2  data keys; each  4  its number, 2 bytes of it sealed, it
//!    16  with flag 128: salt;  4  KiB of memory;  4  passes;  4  lanes of Argon2id
//!     4  CRC-32C of the bytes before
//! ```

use std::time::Duration;

use super::Descriptor;
use crate::log::bytes::Fields;
use crate::storage::Storage;
use crate::{Derivation, Durability, Error, History, Mode, Password, Secret, Settings};

const MAGIC: [u8; 4] = *b"ZDBN";
const VERSION: u32 = 1;

const PUBLIC: u16 = 1;
const WORM: u16 = 2;
const LOCKED: u16 = 4;
const FROZEN: u16 = 8;
const PASSWORD: u16 = 16;
const PASSWORD_SEALED: u16 = 32;
const ENCRYPTED: u16 = 64;
const DERIVED: u16 = 128;

impl Descriptor {
    /// The file's bytes; the password is sealed if there is a secret for passwords.
    pub(crate) fn to_bytes(
        &self,
        storage: &dyn Storage,
        secret: Option<&Secret>,
    ) -> Result<Vec<u8>, Error> {
        let settings = &self.settings;
        let password = match (&settings.password, secret) {
            (None, _) => None,
            (Some(password), None) => Some(password.reveal().to_vec()),
            (Some(password), Some(secret)) => {
                let key = secret.key(self.derivation())?;
                Some(self.seal(storage, &key, b"password", password.reveal())?)
            }
        };
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
            (password.is_some() && secret.is_some(), PASSWORD_SEALED),
            (self.encrypted, ENCRYPTED),
            (self.derivation.is_some(), DERIVED),
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
        if let Some(derivation) = &self.derivation {
            put_derivation(&mut out, derivation);
        }
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        Ok(out)
    }

    /// Reads a file's bytes. `Ok(None)`: they are not a whole descriptor of ours.
    pub(crate) fn parse(bytes: &[u8], secret: Option<&Secret>) -> Result<Option<Self>, Error> {
        let Some((mut descriptor, password, sealed)) = parse_fields(bytes) else {
            return Ok(None);
        };
        descriptor.settings.password = match (password, sealed, secret) {
            (None, ..) => None,
            (Some(password), false, _) => Some(Password::new(&password)),
            (Some(_), true, None) => return Err(Error::PasswordSealed),
            (Some(password), true, Some(secret)) => {
                let key = secret.key(descriptor.derivation())?;
                Some(Password::new(&descriptor.open(&key, b"password", &password)?))
            }
        };
        Ok(Some(descriptor))
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
    let derivation = match flags & DERIVED {
        0 => None,
        _ => Some(parse_derivation(&mut fields)?),
    };
    let encrypted = flags & ENCRYPTED != 0;
    let sound = fields.0.is_empty() && encrypted == (current != 0);
    let descriptor = Descriptor {
        generation,
        identity,
        settings,
        hash_key,
        encrypted,
        data_keys,
        current,
        derivation,
    };
    sound.then_some((descriptor, password, flags & PASSWORD_SEALED != 0))
}

fn put_derivation(out: &mut Vec<u8>, derivation: &Derivation) {
    out.extend_from_slice(&derivation.salt);
    for cost in [derivation.memory_kib, derivation.passes, derivation.lanes] {
        out.extend_from_slice(&cost.to_le_bytes());
    }
}

fn parse_derivation(fields: &mut Fields<'_>) -> Option<Derivation> {
    let salt = fields.array()?;
    Derivation::with_costs(salt, fields.u32()?, fields.u32()?, fields.u32()?)
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
