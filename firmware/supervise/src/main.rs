//! The `supervise` command.

fn main() {}
