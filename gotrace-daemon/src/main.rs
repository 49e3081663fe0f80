//! The command `gotrace`.
fn main() {}
