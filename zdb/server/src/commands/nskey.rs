//! `NSKEY`: keys of encrypted namespaces, handed over by an administrator on the unix socket.
//!
//! A key is sealed for us and for one namespace ([`crate::seal`]). If it comes from a passphrase, the
//! administrator's program makes it of that: it asks how, and says how when it hands the key over. So the
//! passphrase never leaves its owner, and no client waits for Argon2id.

use zdb_engine::{Derivation, Error, MasterKey, Name, Secret};
use zdb_resp::write;

use super::Call;
use super::spaces::{NOT_FOUND, check_new};
use crate::core::Worked;
use crate::refusal::{Outcome, Refusal};
use crate::seal::{Agreement, KEY_SIZE, SEALED_SIZE};
use crate::session::{read_hex, write_hex};

const NOT_ALLOWED: &str = "This name is not allowed";
const NO_RANDOMNESS: &str = "No randomness available";
const NOT_TAKEN: &str = "Cannot take the key";

/// `NSKEY`: our half of an agreement. `NSKEY name sealed [derivation]`: unlocks an encrypted namespace,
/// seals its keys anew if it is open, makes it if there is none. `NSKEY name ROTATE`: new records get a new
/// key. `NSKEY name DERIVATION`: how a passphrase becomes its key.
pub(super) fn nskey(call: &mut Call<'_, '_>) -> Outcome {
    if !call.session.is_local {
        return Err(Refusal::unauthorized("Keys are handed over on the unix socket only"));
    }
    match (call.count(), call.argument(2)) {
        (1, _) => {
            let agreement = Agreement::new().ok_or(NO_RANDOMNESS)?;
            let mut digits = [0; 2 * KEY_SIZE];
            write_hex(agreement.public(), &mut digits);
            call.session.agreement = Some(agreement);
            write::bulk(call.output.buffer(), &digits);
            Ok(())
        }
        (3, word) if word.eq_ignore_ascii_case(b"ROTATE") => rotate(call),
        (3, word) if word.eq_ignore_ascii_case(b"DERIVATION") => derivation(call),
        (3 | 4, _) => take_key(call),
        _ => Err("Unexpected arguments".into()),
    }
}

fn rotate(call: &mut Call<'_, '_>) -> Outcome {
    let id = call.core.namespaces.find(call.argument(1)).ok_or(NOT_FOUND)?;
    let asker = call.asker();
    call.core.begin(id, Some(asker), None, |mut namespace| {
        let rotated = namespace.rotate_data_key();
        Worked::done(namespace, rotated, "Cannot change the key")
    })?;
    call.later()
}

/// The namespace's own way, or a new one for what has none yet.
fn derivation(call: &mut Call<'_, '_>) -> Outcome {
    let known = match call.core.namespaces.find(call.argument(1)) {
        Some(id) => {
            let entry = call.core.namespaces.get_mut(id).ok_or(NOT_FOUND)?;
            entry.loaded()?.derivation().copied()
        }
        None => None,
    };
    let derivation = match known {
        Some(derivation) => derivation,
        None => {
            let mut salt = [0; 16];
            match rustix::rand::getrandom(&mut salt, rustix::rand::GetRandomFlags::empty()) {
                Ok(count) if count == salt.len() => Derivation::new(salt),
                _ => return Err(NO_RANDOMNESS.into()),
            }
        }
    };
    write::bulk(call.output.buffer(), derivation.to_string().as_bytes());
    Ok(())
}

fn take_key(call: &mut Call<'_, '_>) -> Outcome {
    let bytes = call.argument(1);
    let name = Name::new(bytes).map_err(|_| NOT_ALLOWED)?;
    let sealed = read_hex::<SEALED_SIZE>(call.argument(2));
    let sealed = sealed.ok_or("A sealed key has 160 hex digits")?;
    let derivation = call.request.argument(3).map(parse_derivation).transpose()?;
    let known = call.core.namespaces.find(bytes);
    match known {
        Some(id) => {
            // Before the agreement is used up: the request may have to be tried again.
            call.core.namespaces.get_mut(id).ok_or(NOT_FOUND)?.loaded()?;
        }
        None => check_new(call, bytes, "Could not create namespace")?,
    }
    let agreement = call.session.agreement.take().ok_or("Ask for our half first: NSKEY")?;
    let refused = Refusal::unauthorized("This key was not sealed for us");
    let key: MasterKey = agreement.open(bytes, &sealed).ok_or(refused)?;
    let secret = match derivation {
        Some(derivation) => Secret::Derived(key, derivation),
        None => Secret::Key(key),
    };
    let asker = call.asker();
    let Some(id) = known else {
        let (engine, settings) = (call.core.engine.clone(), call.core.new_settings());
        let new = name.clone();
        call.core.begin_making(name, Some(asker), move || {
            let made = engine.create_encrypted(&new, settings, &secret);
            Worked::made(made, "Could not create namespace")
        });
        return call.later();
    };
    call.core.begin(id, Some(asker), None, move |mut namespace| {
        let stats = namespace.stats();
        let taken = if !stats.encrypted {
            Err(Error::WrongKey)
        } else if stats.key_needed {
            namespace.unlock(&secret)
        } else {
            namespace.change_secret(&secret)
        };
        Worked::done(namespace, taken, NOT_TAKEN)
    })?;
    call.later()
}

fn parse_derivation(text: &[u8]) -> Result<Derivation, Refusal> {
    let derivation = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    derivation.ok_or_else(|| "A derivation is what NSKEY name DERIVATION says".into())
}

#[cfg(test)]
mod tests {
    use zdb_client::Value;

    use super::super::testing::{Server, bulk, error, simple};
    use super::*;
    use crate::connection::Connection;
    use crate::seal;

    /// Hands a key over, in the form for passphrases if there is a derivation.
    fn hand_over(
        server: &mut Server,
        client: &mut Connection,
        key: &[u8; KEY_SIZE],
        derivation: Option<&[u8]>,
    ) -> Value {
        let Value::Bulk(digits) = server.ask(client, &[b"NSKEY"]) else { panic!() };
        let public = read_hex(&digits).unwrap();
        let sealed = seal::seal(b"dark", key, &public).unwrap();
        let mut digits = vec![0; 2 * SEALED_SIZE];
        write_hex(&sealed, &mut digits);
        let mut words: Vec<&[u8]> = vec![b"NSKEY", b"dark", &digits];
        words.extend(derivation);
        server.ask(client, &words)
    }

    #[test]
    fn keys_come_on_the_unix_socket_and_open_what_they_made() {
        let mut server = Server::new();
        let mut far = server.client();
        let far_reply = server.ask(&mut far, &[b"NSKEY"]);
        assert_eq!(far_reply, error("Keys are handed over on the unix socket only"));
        let mut client = server.local_client();
        let (right, wrong) = ([1; KEY_SIZE], [2; KEY_SIZE]);
        assert_eq!(hand_over(&mut server, &mut client, &right, None), simple("OK"));
        server.ask(&mut client, &[b"SELECT", b"dark"]);
        server.ask(&mut client, &[b"SET", b"k", b"v"]);
        server.restart();
        let mut client = server.local_client();
        server.ask(&mut client, &[b"SELECT", b"dark"]);
        let locked = server.ask(&mut client, &[b"GET", b"k"]);
        assert_eq!(locked, error("Namespace is encrypted, its key is needed"));
        let refused = hand_over(&mut server, &mut client, &wrong, None);
        assert_eq!(refused, error("This key does not open the namespace"));
        assert_eq!(hand_over(&mut server, &mut client, &right, None), simple("OK"));
        assert_eq!(server.ask(&mut client, &[b"GET", b"k"]), bulk(b"v"));
        assert_eq!(server.ask(&mut client, &[b"NSKEY", b"dark", b"ROTATE"]), simple("OK"));
    }

    #[test]
    fn a_passphrases_key_is_made_as_the_server_says() {
        let mut server = Server::new();
        let mut client = server.local_client();
        let ask_how = |server: &mut Server, client: &mut Connection| match server
            .ask(client, &[b"NSKEY", b"dark", b"DERIVATION"])
        {
            Value::Bulk(text) => text,
            other => panic!("{other:?}"),
        };
        let how = ask_how(&mut server, &mut client);
        assert_ne!(ask_how(&mut server, &mut client), how, "nothing is agreed on yet");
        // A key stands for the passphrase's; making one takes a while.
        let key = [1; KEY_SIZE];
        assert_eq!(hand_over(&mut server, &mut client, &key, Some(&how)), simple("OK"));
        assert_eq!(ask_how(&mut server, &mut client), how);
        server.restart();
        let mut client = server.local_client();
        assert_eq!(ask_how(&mut server, &mut client), how, "also while it is locked");
        let other = b"argon2id:65536:3:4:00000000000000000000000000000000";
        let refused = hand_over(&mut server, &mut client, &key, Some(other));
        assert_eq!(refused, error("This key does not open the namespace"));
        assert_eq!(hand_over(&mut server, &mut client, &key, Some(&how)), simple("OK"));
        let bad = hand_over(&mut server, &mut client, &key, Some(b"argon2id:1:1:1:00"));
        assert_eq!(bad, error("A derivation is what NSKEY name DERIVATION says"));
    }
}
