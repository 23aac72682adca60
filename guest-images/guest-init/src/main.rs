//! The first process of a guest: finds its disks, mounts its root, starts its entrypoint.

use std::process::ExitCode;

fn main() -> ExitCode {
    if guest_init::agent::is_called() {
        return guest_init::agent::run();
    }
    if std::process::id() != 1 {
        eprintln!("guest-init: this is the first process of a guest's initramfs, and nothing else");
        return ExitCode::from(2);
    }
    guest_init::run()
}
