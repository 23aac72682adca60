//! Keys, passphrases and passwords: what opens with which, and that nothing of them is on the disk.

use std::sync::Arc;
use std::time::Duration;

use super::copies::fill;
use super::{check, contents_after, create, data_file, get, load, master, name, open, secret};
use crate::storage::sim::SimDisk;
use crate::{
    Compaction, Derivation, Durability, Engine, Error, MasterKey, Options, Passphrase, Password,
    Secret, Settings,
};

fn passphrase(text: &[u8]) -> Secret {
    Secret::Passphrase(Passphrase::new(text))
}

#[test]
fn nothing_readable_is_on_the_disk_of_an_encrypted_namespace() {
    let (disk, engine, mut namespace) = create(1, Durability::Group, true);
    for number in 0..50u32 {
        let key = format!("plainkey-{number}");
        namespace.set(key.as_bytes(), &b"plainvalue".repeat(10), 0).unwrap();
    }
    namespace.close().unwrap();
    for path in [data_file(0), super::index_file(0), "/data/n/zdb-namespace".into()] {
        let contents = disk.contents(&path).unwrap();
        for secret in [&b"plain"[..], &master().as_bytes()[..]] {
            let found = contents.windows(secret.len()).any(|bytes| bytes == secret);
            assert!(!found, "{}", path.display());
        }
    }
    let mut namespace = engine.load(&name()).unwrap();
    assert!(matches!(get(&mut namespace, b"plainkey-1"), Err(Error::KeyNeeded)));
    assert!(matches!(namespace.set(b"k", b"v", 0), Err(Error::KeyNeeded)));
    assert!(matches!(namespace.unlock(&MasterKey::new([8; 32]).into()), Err(Error::WrongKey)));
    namespace.unlock(&secret()).unwrap();
    assert_eq!(get(&mut namespace, b"plainkey-1").unwrap().unwrap(), b"plainvalue".repeat(10));
}

#[test]
fn keys_rotate_while_it_serves() {
    let (_disk, engine, mut namespace) = create(1, Durability::Group, true);
    let log = fill(&mut namespace, 1, 150);
    let other = MasterKey::new([9; 32]).into();
    namespace.change_secret(&other).unwrap();
    namespace.rotate_data_key().unwrap();
    check(&mut namespace, &contents_after(&log, 150), "two data keys");
    while namespace.compact_step(1 << 20, 0).unwrap() != Compaction::Idle {}
    namespace.tick(Duration::ZERO).unwrap();
    check(&mut namespace, &contents_after(&log, 150), "rewritten");
    namespace.close().unwrap();
    let mut namespace = engine.load(&name()).unwrap();
    assert!(matches!(namespace.unlock(&secret()), Err(Error::WrongKey)));
    namespace.unlock(&other).unwrap();
    check(&mut namespace, &contents_after(&log, 150), "with the other key");
}

#[test]
fn passwords_are_sealed_if_there_is_a_key_for_them() {
    let disk = SimDisk::new(1);
    let with_key = || Options { secret: Some(MasterKey::new([5; 32]).into()), ..super::options() };
    let engine = Engine::open(Arc::new(disk.clone()), with_key()).unwrap();
    let settings = Settings { password: Some(Password::new(b"opensesame")), ..Settings::default() };
    assert!(!format!("{settings:?}").contains("opensesame"));
    engine.create(&name(), settings.clone()).unwrap().close().unwrap();
    let contents = disk.contents("/data/n/zdb-namespace".as_ref()).unwrap();
    assert!(!contents.windows(4).any(|bytes| bytes == b"open"));
    assert_eq!(engine.load(&name()).unwrap().settings(), &settings);
    drop(engine);
    assert!(matches!(load(&open(&disk).unwrap()), Err(Error::PasswordSealed)));
}

#[test]
fn a_passphrase_opens_what_it_made_and_another_one_does_not() {
    let disk = SimDisk::new(1);
    let with = |text: &[u8]| Options { secret: Some(passphrase(text)), ..super::options() };
    let open = |text| Engine::open(Arc::new(disk.clone()), with(text)).unwrap();
    let engine = open(b"correct horse");
    let settings = Settings { password: Some(Password::new(b"opensesame")), ..Settings::default() };
    let made = engine.options().secret.clone().unwrap();
    let mut namespace = engine.create_encrypted(&name(), settings.clone(), &made).unwrap();
    namespace.set(b"k", b"v", 0).unwrap();
    let derivation = *namespace.derivation().unwrap();
    namespace.close().unwrap();
    let plain = crate::Name::new(b"plain").unwrap();
    engine.create(&plain, settings.clone()).unwrap().close().unwrap();
    drop(engine);
    for file in ["/data/n/zdb-namespace", "/data/plain/zdb-namespace"] {
        let contents = disk.contents(file.as_ref()).unwrap();
        for secret in [&b"horse"[..], b"sesame"] {
            assert!(!contents.windows(secret.len()).any(|bytes| bytes == secret), "{file}");
        }
    }

    // Both passwords are sealed with the key, made in the same way.
    let engine = open(b"correct horse");
    assert_eq!(engine.load(&plain).unwrap().settings(), &settings);
    let mut namespace = engine.load(&name()).unwrap();
    assert_eq!(namespace.derivation(), Some(&derivation));
    assert_eq!(namespace.settings(), &settings);
    assert!(matches!(get(&mut namespace, b"k"), Err(Error::KeyNeeded)));
    assert!(matches!(namespace.unlock(&passphrase(b"wrong horse")), Err(Error::WrongKey)));
    assert!(matches!(namespace.unlock(&secret()), Err(Error::WrongKey)));
    // Who made the key elsewhere opens it as well, if in the same way.
    let key = derivation.derive(b"correct horse").unwrap();
    let other = Secret::Derived(key.clone(), Derivation::new([9; 16]));
    assert!(matches!(namespace.unlock(&other), Err(Error::WrongKey)));
    namespace.unlock(&Secret::Derived(key, derivation)).unwrap();
    assert_eq!(get(&mut namespace, b"k").unwrap().unwrap(), b"v");

    // Another passphrase, made into a key in the same way.
    namespace.change_secret(&passphrase(b"battery staple")).unwrap();
    assert_eq!(namespace.derivation(), Some(&derivation));
    namespace.close().unwrap();
    let mut namespace = engine.load(&name()).unwrap();
    assert!(matches!(namespace.unlock(&passphrase(b"correct horse")), Err(Error::WrongKey)));
    namespace.unlock(&passphrase(b"battery staple")).unwrap();
    drop((namespace, engine));
    assert!(matches!(open(b"wrong horse").load(&plain), Err(Error::WrongKey)));
}

#[test]
fn a_namespace_of_a_key_may_become_one_of_a_passphrase_and_back() {
    let (_disk, engine, mut namespace) = create(1, Durability::Group, true);
    let log = fill(&mut namespace, 1, 20);
    assert!(namespace.derivation().is_none());
    assert!(matches!(namespace.unlock(&passphrase(b"words")), Err(Error::WrongKey)));
    namespace.change_secret(&passphrase(b"words")).unwrap();
    let derivation = *namespace.derivation().unwrap();
    namespace.close().unwrap();
    let mut namespace = engine.load(&name()).unwrap();
    namespace.unlock(&passphrase(b"words")).unwrap();
    namespace.change_secret(&secret()).unwrap();
    namespace.close().unwrap();
    let mut namespace = load(&engine).unwrap();
    check(&mut namespace, &contents_after(&log, 20), "with the key again");
    assert_eq!(namespace.derivation(), Some(&derivation), "it stays, and opens nothing");
    assert!(matches!(namespace.unlock(&passphrase(b"words")), Err(Error::WrongKey)));
}
