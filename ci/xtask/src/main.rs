//! House rules that no lint knows.
fn main() {}
