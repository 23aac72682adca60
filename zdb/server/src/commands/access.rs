//! Rights: passwords and challenges.

use zdb_engine::NAME_SIZE_MAX;
use zdb_resp::write;

use super::Call;
use crate::refusal::{ACCESS_DENIED, Outcome, Refusal};
use crate::session::{ANSWER_SIZE, CHALLENGE_SIZE, is_answer, is_same, write_hex};

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
    check_admin(call, call.argument(1))?;
    call.session.is_admin = true;
    call.ok()
}

/// Whether this is the administrator's password.
pub(super) fn check_admin(call: &Call<'_, '_>, password: &[u8]) -> Outcome {
    if password.len() > ADMIN_PASSWORD_SIZE_MAX {
        return Err(TOO_LONG.into());
    }
    let admin = call.core.policy.admin.as_ref().ok_or("Authentication disabled")?;
    if is_same(admin.reveal(), password) { Ok(()) } else { Err(ACCESS_DENIED) }
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

#[cfg(test)]
mod tests {
    use super::super::testing::{Server, error, simple};
    use super::*;

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
}
