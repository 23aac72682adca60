//! The kernel's command line for who doesn't bring one: boots fast, and says only what went wrong.

use crate::{OutputSpec, VmSpec};

/// What every guest of ours gets.
///
/// - `quiet`: nothing but errors on the console, since every line costs exits.
/// - `panic=-1`: a panic is over at once; pvpanic has told the VMM before.
/// - `cryptomgr.notests`: half of a stock kernel's boot is tests of its own ciphers.
/// - `rcupdate.rcu_expedited=1`: grace periods are waited for actively while booting.
/// - `i8042.noaux i8042.nomux i8042.dumbkbd`: nothing is asked of a keyboard that isn't there.
/// - `pci=noearly`: the bus is found by ACPI; looking for it by ports first costs exits.
/// - `no_timer_check tsc=reliable`: KVM's timers are what they say.
const COMMON: &str = "quiet panic=-1 cryptomgr.notests rcupdate.rcu_expedited=1 \
                      i8042.noaux i8042.nomux i8042.dumbkbd pci=noearly no_timer_check \
                      tsc=reliable";

/// The command line that a description without one means.
pub(crate) fn default_cmdline(spec: &VmSpec) -> String {
    let mut words = vec![COMMON];
    if spec.serial == OutputSpec::Off {
        words.push("8250.nr_uarts=0");
    } else {
        words.push("console=ttyS0");
    }
    // The last console named is `/dev/console`.
    if spec.console != OutputSpec::Off {
        words.push("console=hvc0");
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consoles_follow_the_description() {
        let quiet = default_cmdline(&VmSpec::default());
        assert!(quiet.ends_with(" tsc=reliable 8250.nr_uarts=0"), "{quiet}");
        let both =
            VmSpec { console: OutputSpec::Pty, serial: OutputSpec::Stdio, ..VmSpec::default() };
        let both = default_cmdline(&both);
        assert!(both.ends_with(" console=ttyS0 console=hvc0"), "{both}");
        assert!(!both.contains("nr_uarts"), "{both}");
    }
}
