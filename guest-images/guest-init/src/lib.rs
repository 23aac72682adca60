//! The first process of a guest: finds its disks, mounts its root, starts its entrypoint.
