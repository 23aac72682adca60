//! `vmm check`: what this host offers to VMs, in words.
//!
//! [`Facts`] are gathered in one place; what they mean is a pure function of them, so that every kind
//! of host can be tested on this one.

mod facts;
mod findings;

use clap::Args;
use vmm_machine::kvm::{self, KvmError};

use self::facts::Facts;
use self::findings::{Finding, Verdict, assess};
use crate::output::{self, Colour};

/// Say what this host offers to VMs, and what it lacks
///
/// Ends with 0 if VMs can run here, and with 1 if not.
#[derive(Args)]
pub(crate) struct CheckArguments {
    /// Print JSON: a list of {what, verdict, text, hint}, verdict being ok, limited or missing
    #[arg(long)]
    json: bool,
}

/// Runs the command, and says with which code to end.
pub(crate) fn run(arguments: &CheckArguments) -> anyhow::Result<u8> {
    let findings = assess(&Facts::gather());
    if arguments.json {
        output::print_json(&findings)?;
    } else {
        output::print(&show(&findings))?;
    }
    Ok(u8::from(findings.iter().any(|finding| finding.verdict == Verdict::Missing)))
}

/// Refuses to go on where no VM can run, and says exactly why.
pub(crate) fn require_kvm() -> Result<(), KvmError> {
    kvm::open().map(drop)
}

fn show(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let (word, colour) = match finding.verdict {
            Verdict::Ok => ("ok     ", Colour::Green),
            Verdict::Limited => ("limited", Colour::Yellow),
            Verdict::Missing => ("missing", Colour::Red),
        };
        let word = output::paint(word, colour);
        text.push_str(&format!("{word}  {:12}  {}\n", finding.what, finding.text));
        if let Some(hint) = &finding.hint {
            text.push_str(&format!("{:9}{:12}  hint: {hint}\n", "", ""));
        }
    }
    text
}
