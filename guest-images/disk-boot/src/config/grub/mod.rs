//! GRUB: its script, run as far as it says which kernel is booted (GNU GRUB manual 2.06, chapters 6 and
//! 16).
//!
//! ```text
//!   grub.cfg ──lex──► words ──parse──► statements ──run──► variables, menu entries
//!                                                               │ default, saved_entry
//!                                                               ▼
//!                                            an entry's statements, run ──► linux, initrd: an Offer
//! ```
//!
//! The scripts of distributions decide by variables and conditions, search file systems, source other
//! files and define functions, so they are run and not guessed at. What draws menus, plays sounds or
//! loads modules does nothing here and succeeds. Nothing is written: `save_env` does nothing, and a
//! one-time `next_entry` is not believed, since nobody would clear it.

mod condition;
mod lex;
mod parse;
mod run;
mod select;

use crate::filesystem::FileError;
use crate::volumes::{Place, Volumes};

use super::Offer;

/// Why a script offers nothing.
#[derive(Debug, thiserror::Error)]
pub enum GrubError {
    /// It is no script.
    #[error("line {line}: {reason}")]
    Syntax {
        /// Where.
        line: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// It runs for too long, or makes too much.
    #[error("it {0}")]
    TooMuch(&'static str),
    /// A file that it asks for can't be read.
    #[error(transparent)]
    File(#[from] FileError),
}

/// What the script at a place offers, the default first; none if there is no such file.
///
/// # Errors
/// [`GrubError`].
pub fn offers(volumes: &Volumes, place: &Place) -> Result<Option<Vec<Offer>>, GrubError> {
    let Some(text) = volumes.text(place)? else { return Ok(None) };
    let script = parse::parse(&text)?;
    let mut machine = run::Machine::new(volumes, place);
    machine.run(&script)?;
    select::offers(&mut machine).map(Some)
}

#[cfg(test)]
mod tests;
