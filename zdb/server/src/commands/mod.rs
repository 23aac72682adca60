//! Commands: one table, one file for each family.
//!
//! | family | commands |
//! |---|---|
//! | [`keys`] | `SET SETX GET MGET DEL EXISTS CHECK LENGTH KEYTIME` |
//! | [`scan`] | `SCAN SCANX RSCAN KEYCUR HISTORY KSCAN DBSIZE` |
//! | [`access`], [`nskey`] | `AUTH SELECT NSKEY` |
//! | [`spaces`], [`nsinfo`] | `NSNEW NSMAKE NSDEL NSLIST NSSET NSINFO NSJUMP NSSNAP FLUSH RELOAD` |
//! | [`system`] | `PING HELLO TIME INFO HOOKS STOP MIRROR MASTER *` |
//! | [`watch`] | `WAIT` |
//! | [`segments`] | `INDEX DATA REPL` |
//!
//! The table says who may call a command and with how many arguments; what that refuses, a handler
//! never sees. A handler writes its reply, or gives a [`Refusal`] and has written nothing, or begins a
//! [`Task`](crate::core::Task) whose answer is the reply. One that needs a namespace asks for it before it
//! does anything else, because another thread may have it: then the request is postponed as it is.

mod access;
mod keys;
mod nsinfo;
mod nskey;
mod scan;
mod segments;
mod spaces;
mod system;
#[cfg(test)]
pub(crate) mod testing;
mod watch;

use std::time::Instant;

pub(crate) use spaces::{parse_durability, unavailable};
use zdb_resp::request::Request;
use zdb_resp::write;

use crate::core::{Asker, Core};
use crate::output::Output;
use crate::refusal::{Outcome, PERMISSION_DENIED, Refusal};
use crate::session::Session;

/// A session's namespace was removed (`reference: zdb 2.2`).
pub(crate) const DETACHED: Refusal =
    Refusal::closing("Your active namespace is not available anymore (probably removed).");
const UNKNOWN: &str = "Command not supported";
/// Longest name of a command.
const NAME_SIZE_MAX: usize = 8;

/// What a handler works with.
pub(crate) struct Call<'c, 'r> {
    pub(crate) core: &'c mut Core,
    pub(crate) session: &'c mut Session,
    pub(crate) output: &'c mut Output,
    pub(crate) request: Request<'r>,
    /// When it began.
    pub(crate) begin: Instant,
}

/// How far a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Executed {
    /// When it ended, so that a batch reads the clock once for each request.
    pub(crate) end: Instant,
    /// Whether nothing was done, because a namespace is away: it is to be executed again.
    pub(crate) is_postponed: bool,
}

impl<'r> Call<'_, 'r> {
    /// An argument; 0 is the command's name. Empty if it is missing.
    pub(crate) fn argument(&self, index: usize) -> &'r [u8] {
        self.request.argument(index).unwrap_or_default()
    }

    /// Arguments, the command's name included.
    pub(crate) fn count(&self) -> usize {
        self.request.count()
    }

    /// For a task: its answer will be this command's reply. To be called when the task has begun.
    pub(crate) fn asker(&self) -> Asker {
        let command = CommandId::find(self.argument(0));
        Asker { client: self.session.client, command, begin: self.begin }
    }

    /// A task has begun: the reply comes later.
    pub(crate) fn later(&mut self) -> Outcome {
        self.session.is_asking = true;
        Ok(())
    }

    /// Replies nil.
    pub(crate) fn nil(&mut self) {
        write_nil(self.output.buffer(), self.session);
    }

    /// Replies `+OK`.
    pub(crate) fn ok(&mut self) -> Outcome {
        write::simple(self.output.buffer(), b"OK");
        Ok(())
    }
}

/// Nil, as the client's protocol has it.
pub(crate) fn write_nil(out: &mut Vec<u8>, session: &Session) {
    if session.is_resp3 { write::null(out) } else { write::nil(out) }
}

type Handler = fn(&mut Call<'_, '_>) -> Outcome;

/// A row of the table.
struct Command {
    name: &'static str,
    /// Whether it is for administrators.
    is_admin: bool,
    arguments: Arguments,
    handler: Handler,
}

/// What arguments a command takes; counts include its name.
#[derive(Clone, Copy)]
enum Arguments {
    /// The handler checks them.
    Any,
    /// So many.
    Between(usize, usize),
    /// So many, none of them empty.
    Filled(usize, usize),
}

/// All commands. The hottest come first, because look-up goes from the top.
static TABLE: &[Command] = &[
    command("GET", Arguments::Filled(2, 2), keys::get),
    command("SET", Arguments::Between(3, 4), keys::set),
    command("EXISTS", Arguments::Filled(2, 2), keys::exists),
    command("DEL", Arguments::Filled(2, 3), keys::del),
    command("MGET", Arguments::Any, keys::mget),
    command("PING", Arguments::Any, system::ping),
    command("SETX", Arguments::Between(3, 4), keys::set),
    command("LENGTH", Arguments::Filled(2, 2), keys::length),
    command("KEYTIME", Arguments::Filled(2, 2), keys::keytime),
    command("CHECK", Arguments::Filled(2, 2), keys::check),
    command("SCAN", Arguments::Any, scan::scan),
    command("SCANX", Arguments::Any, scan::scan),
    command("RSCAN", Arguments::Any, scan::rscan),
    command("KEYCUR", Arguments::Filled(2, 2), scan::keycur),
    command("HISTORY", Arguments::Any, scan::history),
    command("KSCAN", Arguments::Any, scan::kscan),
    command("DBSIZE", Arguments::Any, scan::dbsize),
    command("SELECT", Arguments::Any, access::select),
    command("HELLO", Arguments::Any, system::hello),
    command("AUTH", Arguments::Filled(2, 3), access::auth),
    admin("NSKEY", Arguments::Between(1, 4), nskey::nskey),
    admin("NSNEW", Arguments::Filled(2, 2), spaces::nsnew),
    admin("NSMAKE", Arguments::Filled(2, spaces::MAKE_COUNT_MAX), spaces::nsmake),
    admin("NSDEL", Arguments::Filled(2, 2), spaces::nsdel),
    command("NSLIST", Arguments::Any, spaces::nslist),
    admin("NSSET", Arguments::Filled(4, 4), spaces::nsset),
    command("NSINFO", Arguments::Filled(2, 2), nsinfo::nsinfo),
    admin("NSJUMP", Arguments::Any, spaces::nsjump),
    command("FLUSH", Arguments::Any, spaces::flush),
    admin("RELOAD", Arguments::Filled(2, 2), spaces::reload),
    admin("NSSNAP", Arguments::Filled(4, 4), spaces::nssnap),
    command("TIME", Arguments::Any, system::time),
    command("INFO", Arguments::Any, system::info),
    command("WAIT", Arguments::Any, watch::wait),
    admin("HOOKS", Arguments::Any, system::hooks),
    admin("INDEX", Arguments::Any, segments::index),
    admin("DATA", Arguments::Any, segments::data),
    admin("REPL", Arguments::Any, segments::repl),
    admin("MIRROR", Arguments::Any, system::mirror),
    admin("MASTER", Arguments::Any, system::mirror),
    command("STOP", Arguments::Any, system::stop),
    command("*", Arguments::Any, system::star),
];

/// Names of all commands, packed: looking one up compares numbers.
static KEYS: [u64; COMMAND_COUNT] = {
    let mut keys = [0; COMMAND_COUNT];
    let mut index = 0;
    while index < keys.len() {
        keys[index] = match pack(TABLE[index].name.as_bytes()) {
            Some(key) => key,
            None => panic!("a command's name is longer than NAME_SIZE_MAX"),
        };
        index += 1;
    }
    keys
};

/// Commands in the table.
pub(crate) const COMMAND_COUNT: usize = 42;
const _: () = assert!(TABLE.len() == COMMAND_COUNT);

const fn command(name: &'static str, arguments: Arguments, handler: Handler) -> Command {
    Command { name, is_admin: false, arguments, handler }
}

const fn admin(name: &'static str, arguments: Arguments, handler: Handler) -> Command {
    Command { name, is_admin: true, arguments, handler }
}

/// A command, by its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CommandId(usize);

impl CommandId {
    /// The command of that name, whatever its case.
    pub(crate) fn find(name: &[u8]) -> Option<Self> {
        let key = pack(name)?;
        KEYS.iter().position(|other| *other == key).map(Self)
    }

    /// Its name, in capitals.
    pub(crate) fn name(self) -> &'static str {
        self.row().name
    }

    /// All, in the order of the table.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..COMMAND_COUNT).map(Self)
    }

    /// Its row's number.
    pub(crate) fn index(self) -> usize {
        self.0
    }

    fn row(self) -> &'static Command {
        &TABLE[self.0]
    }
}

/// Up to eight bytes as a number, in capitals. Empty names have none, nor have those with a NUL, which
/// pads.
const fn pack(name: &[u8]) -> Option<u64> {
    if name.is_empty() || name.len() > NAME_SIZE_MAX {
        return None;
    }
    let mut bytes = [0; NAME_SIZE_MAX];
    let mut index = 0;
    while index < name.len() {
        if name[index] == 0 {
            return None;
        }
        bytes[index] = name[index].to_ascii_uppercase();
        index += 1;
    }
    Some(u64::from_le_bytes(bytes))
}

/// Executes a request, and writes its reply unless that comes later.
pub(crate) fn execute(call: &mut Call<'_, '_>) -> Executed {
    let id = CommandId::find(call.argument(0));
    let outcome = match id {
        Some(id) => admit(call, id).and_then(|()| (id.row().handler)(call)),
        None => Err(UNKNOWN.into()),
    };
    let end = Instant::now();
    if let Err(Refusal { waits_for: Some(namespace), .. }) = &outcome {
        call.core.postpone(call.session.client, *namespace);
        return Executed { end, is_postponed: true };
    }
    // A task's answer is counted when it comes.
    if !call.session.is_asking {
        let took = end.saturating_duration_since(call.begin);
        call.core.metrics.note(id, took, outcome.as_ref().err());
    }
    if let Err(refusal) = outcome {
        call.session.is_closing |= refusal.closes;
        write::error(call.output.buffer(), refusal.text.as_bytes());
    }
    if let Some(id) = id {
        call.core.notify(call.session, id);
    }
    Executed { end, is_postponed: false }
}

/// Checks rights and arguments, as far as the table knows.
fn admit(call: &Call<'_, '_>, id: CommandId) -> Outcome {
    let row = id.row();
    if call.core.namespaces.get(call.session.namespace).is_none() {
        return Err(DETACHED);
    }
    if row.is_admin && !call.session.is_admin {
        return Err(PERMISSION_DENIED);
    }
    let (least, most, is_filled) = match row.arguments {
        Arguments::Any => return Ok(()),
        Arguments::Between(least, most) => (least, most, false),
        Arguments::Filled(least, most) => (least, most, true),
    };
    if !(least..=most).contains(&call.count()) {
        return Err("Unexpected arguments".into());
    }
    if is_filled && call.request.arguments().any(<[u8]>::is_empty) {
        return Err("Invalid argument".into());
    }
    Ok(())
}

/// A number as C's `atoll` reads it: what comes before the first other character, within bounds.
fn leading_number(text: &[u8]) -> i64 {
    let text = text.trim_ascii_start();
    let (is_negative, digits) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        Some((b'+', rest)) => (false, rest),
        _ => (false, text),
    };
    let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0_i64, |number, digit| {
        let digit = i64::from(digit - b'0');
        let number = number.saturating_mul(10);
        if is_negative { number.saturating_sub(digit) } else { number.saturating_add(digit) }
    })
}

#[cfg(test)]
mod tests {
    use super::testing::{Server, error, simple};
    use super::*;

    #[test]
    fn names_match_whole_and_in_any_case() {
        for id in CommandId::all() {
            assert_eq!(CommandId::find(id.name().as_bytes()), Some(id));
            assert_eq!(CommandId::find(id.name().to_ascii_lowercase().as_bytes()), Some(id));
        }
        for name in ["", "PIN", "SE", "KEYTIMES", "GET\0", "LONGER THAN ANY"] {
            assert_eq!(CommandId::find(name.as_bytes()), None, "{name}");
        }
    }

    #[test]
    fn numbers_are_read_as_c_does() {
        for (text, number) in [
            ("12", 12),
            (" 7x", 7),
            ("-5", -5),
            ("+5", 5),
            ("abc", 0),
            ("", 0),
            ("99999999999999999999", i64::MAX),
            ("-99999999999999999999", i64::MIN),
        ] {
            assert_eq!(leading_number(text.as_bytes()), number, "{text}");
        }
    }

    #[test]
    fn rights_are_checked_before_arguments() {
        let mut server = Server::with_admin("secret");
        let mut client = server.client();
        assert_eq!(server.ask(&mut client, &[b"NSNEW"]), error("Permission denied"));
        assert_eq!(server.ask(&mut client, &[b"AUTH", b"secret"]), simple("OK"));
        assert_eq!(server.ask(&mut client, &[b"NSNEW"]), error("Unexpected arguments"));
        assert_eq!(server.ask(&mut client, &[b"NSNEW", b""]), error("Invalid argument"));
        assert_eq!(server.ask(&mut client, &[b"NOPE"]), error("Command not supported"));
    }
}
