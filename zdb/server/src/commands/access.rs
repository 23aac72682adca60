//! Rights: passwords, challenges, and keys of encrypted namespaces.

use zdb_engine::{Error, NAME_SIZE_MAX, Name};
use zdb_resp::write;

use super::Call;
use crate::core::{Entry, NAMESPACE_COUNT_MAX};
use crate::refusal::{ACCESS_DENIED, Outcome, Refusal, common};
use crate::seal::{Agreement, KEY_SIZE, SEALED_SIZE};
use crate::session::{ANSWER_SIZE, CHALLENGE_SIZE, is_answer, is_same, read_hex, write_hex};

/// Longest password of the administrator, in bytes.
const ADMIN_PASSWORD_SIZE_MAX: usize = 128;
/// Longest password at `SELECT`, in bytes.
const PASSWORD_SIZE_MAX: usize = 255;

const TOO_LONG: &str = "Password too long";
const ONLY_SECURE: &str = "Only SECURE extra method supported";
const NO_CHALLENGE: &str = "No CHALLENGE requested, secure authentication not available";
const HASH_SIZE: &str = "Invalid hash length";

/// `AUTH password`, `AUTH SECURE CHALLENGE`, `AUTH SECURE hash`.
pub(super) fn auth(call: &mut Call<'_, '_>) -> Outcome {
    if call.count() == 3 {
        if !call.argument(1).eq_ignore_ascii_case(b"SECURE") {
            return Err(ONLY_SECURE.into());
        }
        if call.argument(2).eq_ignore_ascii_case(b"CHALLENGE") {
            return challenge(call);
        }
        return auth_secure(call);
    }
    let password = call.argument(1);
    if password.len() > ADMIN_PASSWORD_SIZE_MAX {
        return Err(TOO_LONG.into());
    }
    let admin = call.core.policy.admin.as_ref().ok_or("Authentication disabled")?;
    if !is_same(admin.reveal(), password) {
        return Err(ACCESS_DENIED);
    }
    call.session.is_admin = true;
    call.ok()
}

/// A new challenge; the one before is forgotten.
fn challenge(call: &mut Call<'_, '_>) -> Outcome {
    let mut bytes = [0; CHALLENGE_SIZE / 2];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(count) if count == bytes.len() => {}
        _ => return Err("No randomness available".into()),
    }
    let mut digits = [0; CHALLENGE_SIZE];
    write_hex(&bytes, &mut digits);
    call.session.challenge = Some(digits);
    write::simple(call.output.buffer(), &digits);
    Ok(())
}

/// The challenge is used up whatever becomes of it.
fn auth_secure(call: &mut Call<'_, '_>) -> Outcome {
    let admin = call.core.policy.admin.as_ref().ok_or("Authentication disabled")?;
    let challenge = call.session.challenge.ok_or(NO_CHALLENGE)?;
    let answer = call.argument(2);
    if answer.len() != ANSWER_SIZE {
        return Err(HASH_SIZE.into());
    }
    call.session.challenge = None;
    if !is_answer(&challenge, admin.reveal(), answer) {
        return Err(ACCESS_DENIED);
    }
    call.session.is_admin = true;
    call.ok()
}

/// `SELECT namespace [password]`, `SELECT namespace SECURE hash`.
pub(super) fn select(call: &mut Call<'_, '_>) -> Outcome {
    if call.count() < 2 {
        return Err("Invalid argument".into());
    }
    let name = call.argument(1);
    if name.len() > NAME_SIZE_MAX {
        return Err("Namespace too long".into());
    }
    let id = call.core.namespaces.find(name).ok_or("Namespace not found")?;
    let entry = call.core.namespaces.get_mut(id).ok_or("Namespace not found")?;
    let is_public = entry.loaded()?.settings().public;
    let mut is_writable = true;
    let mut uses_challenge = false;
    if let Some(password) = call.core.password(id) {
        match call.count() {
            2 if is_public => is_writable = false,
            2 => return Err(Refusal::unauthorized("Namespace protected and private")),
            3 => {
                let given = call.argument(2);
                if given.len() > PASSWORD_SIZE_MAX {
                    return Err(TOO_LONG.into());
                }
                if !is_same(password.reveal(), given) {
                    return Err(ACCESS_DENIED);
                }
            }
            4 => {
                check_answer(call, password.reveal())?;
                uses_challenge = true;
            }
            _ => return Err("Too many arguments".into()),
        }
    }
    if uses_challenge {
        // The existing server lets the same answer open the namespace again and again.
        call.session.challenge = None;
    }
    call.session.namespace = id;
    call.session.is_writable = is_writable;
    call.ok()
}

fn check_answer(call: &Call<'_, '_>, password: &[u8]) -> Outcome {
    if !call.argument(2).eq_ignore_ascii_case(b"SECURE") {
        return Err(ONLY_SECURE.into());
    }
    let challenge = call.session.challenge.ok_or(NO_CHALLENGE)?;
    let answer = call.argument(3);
    if answer.len() != ANSWER_SIZE {
        return Err(HASH_SIZE.into());
    }
    if is_answer(&challenge, password, answer) { Ok(()) } else { Err(ACCESS_DENIED) }
}

/// `NSKEY`: our half of an agreement. `NSKEY name sealed`: unlocks an encrypted namespace, seals its
/// keys anew if it is open, makes it if there is none. `NSKEY name ROTATE`: new records get a new key.
pub(super) fn nskey(call: &mut Call<'_, '_>) -> Outcome {
    if !call.session.is_local {
        return Err(Refusal::unauthorized("Keys are handed over on the unix socket only"));
    }
    match call.count() {
        1 => {
            let agreement = Agreement::new().ok_or("No randomness available")?;
            let mut digits = [0; 2 * KEY_SIZE];
            write_hex(agreement.public(), &mut digits);
            call.session.agreement = Some(agreement);
            write::bulk(call.output.buffer(), &digits);
            Ok(())
        }
        3 if call.argument(2).eq_ignore_ascii_case(b"ROTATE") => rotate_key(call),
        3 => take_key(call),
        _ => Err("Unexpected arguments".into()),
    }
}

fn rotate_key(call: &mut Call<'_, '_>) -> Outcome {
    let id = call.core.namespaces.find(call.argument(1)).ok_or("Namespace not found")?;
    let entry = call.core.namespaces.get_mut(id).ok_or("Namespace not found")?;
    let rotated = entry.loaded()?.rotate_data_key();
    rotated.map_err(|error| common(&error, "Cannot change the key"))?;
    call.ok()
}

fn take_key(call: &mut Call<'_, '_>) -> Outcome {
    let bytes = call.argument(1);
    let name = Name::new(bytes).map_err(|_| "This name is not allowed")?;
    let sealed = read_hex::<SEALED_SIZE>(call.argument(2));
    let sealed = sealed.ok_or("A sealed key has 160 hex digits")?;
    let agreement = call.session.agreement.take().ok_or("Ask for our half first: NSKEY")?;
    let refused = Refusal::unauthorized("This key was not sealed for us");
    let key = agreement.open(bytes, &sealed).ok_or(refused)?;
    let Some(id) = call.core.namespaces.find(bytes) else {
        if call.core.namespaces.ids().len() >= NAMESPACE_COUNT_MAX {
            return Err("Could not create namespace".into());
        }
        let settings = call.core.new_settings();
        let made = call.core.engine.create_encrypted(&name, settings, &key);
        let made = made.map_err(|error| common(&error, "Could not create namespace"))?;
        call.core.namespaces.insert(Entry::new(name, Ok(made)));
        call.core.announce("namespace-created", bytes);
        return call.ok();
    };
    let entry = call.core.namespaces.get_mut(id).ok_or("Namespace not found")?;
    let namespace = entry.loaded()?;
    let stats = namespace.stats();
    let taken = if !stats.encrypted {
        Err(Error::WrongKey)
    } else if stats.key_needed {
        namespace.unlock(&key)
    } else {
        namespace.change_master_key(&key)
    };
    taken.map_err(|error| common(&error, "Cannot take the key"))?;
    call.ok()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Server, error, simple};
    use super::*;
    use crate::seal;

    fn answer(reply: zdb_client::Value, password: &str) -> Vec<u8> {
        use sha1::{Digest, Sha1};
        let zdb_client::Value::Simple(challenge) = reply else { panic!("{reply:?}") };
        let hash = Sha1::new().chain_update(challenge).chain_update(b":").chain_update(password);
        let mut digits = vec![0; ANSWER_SIZE];
        write_hex(&hash.finalize(), &mut digits);
        digits
    }

    #[test]
    fn an_answer_opens_once() {
        let mut server = Server::new();
        let mut client = server.client();
        let mut ask = |arguments: &[&[u8]]| server.ask(&mut client, arguments);
        ask(&[b"NSNEW", b"n"]);
        ask(&[b"NSSET", b"n", b"password", b"pw"]);
        ask(&[b"NSSET", b"n", b"public", b"0"]);
        let answer = answer(ask(&[b"AUTH", b"SECURE", b"CHALLENGE"]), "pw");
        let select: [&[u8]; 4] = [b"SELECT", b"n", b"SECURE", &answer];
        assert_eq!(ask(&select), simple("OK"));
        assert_eq!(ask(&select), error(NO_CHALLENGE));
    }

    #[test]
    fn a_protected_server_is_read_only_without_its_password() {
        let mut server = Server::with_admin("secret");
        server.core().policy.is_protected = true;
        let mut client = server.client();
        let mut ask = |arguments: &[&[u8]]| server.ask(&mut client, arguments);
        let read_only = error("Namespace is in read-only mode");
        assert_eq!(ask(&[b"SET", b"k", b"v"]), read_only);
        assert_eq!(ask(&[b"SELECT", b"default", b"secre"]), error("Access denied"));
        assert_eq!(ask(&[b"SELECT", b"default", b"secret"]), simple("OK"));
        assert_eq!(ask(&[b"DEL", b"k"]), error("Key not found"));
        assert_eq!(ask(&[b"SELECT", b"default"]), simple("OK"));
        assert_eq!(ask(&[b"SET", b"k", b"v"]), read_only);
    }

    #[test]
    fn keys_come_on_the_unix_socket_and_open_what_they_made() {
        let mut server = Server::new();
        let mut far = server.client();
        let far_reply = server.ask(&mut far, &[b"NSKEY"]);
        assert_eq!(far_reply, error("Keys are handed over on the unix socket only"));
        let mut client = server.local_client();
        let hand_over = |server: &mut Server, client: &mut _, key: u8| {
            let zdb_client::Value::Bulk(digits) = server.ask(client, &[b"NSKEY"]) else { panic!() };
            let public = read_hex(&digits).unwrap();
            let sealed = seal::seal(b"dark", &[key; KEY_SIZE], &public).unwrap();
            let mut digits = vec![0; 2 * SEALED_SIZE];
            write_hex(&sealed, &mut digits);
            server.ask(client, &[b"NSKEY", b"dark", &digits])
        };
        assert_eq!(hand_over(&mut server, &mut client, 1), simple("OK"));
        server.ask(&mut client, &[b"SELECT", b"dark"]);
        server.ask(&mut client, &[b"SET", b"k", b"v"]);
        server.restart();
        let mut client = server.local_client();
        server.ask(&mut client, &[b"SELECT", b"dark"]);
        let locked = server.ask(&mut client, &[b"GET", b"k"]);
        assert_eq!(locked, error("Namespace is encrypted, its key is needed"));
        let wrong = hand_over(&mut server, &mut client, 2);
        assert_eq!(wrong, error("This key does not open the namespace"));
        assert_eq!(hand_over(&mut server, &mut client, 1), simple("OK"));
        let opened = server.ask(&mut client, &[b"GET", b"k"]);
        assert_eq!(opened, super::super::testing::bulk(b"v"));
    }
}
