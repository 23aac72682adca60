//! The `hostd` command.

fn main() {}
