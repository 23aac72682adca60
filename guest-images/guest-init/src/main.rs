//! The first process of a guest: finds its disks, mounts its root, starts its entrypoint.

fn main() {
    if std::process::id() != 1 {
        eprintln!("guest-init: this is the first process of a guest's initramfs, and nothing else");
        std::process::exit(2);
    }
    guest_init::run()
}
