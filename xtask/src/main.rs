//! gotrace's chores.
fn main() {}
