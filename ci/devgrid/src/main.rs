//! A whole grid on one machine.

fn main() {}
