//! The `mycelium` program.

fn main() {}
