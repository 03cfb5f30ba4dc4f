//! The narrowbit command.
fn main() {}
