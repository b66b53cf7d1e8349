//! The threats of docs/security.md, each tried as an attacker would: with the objects of a store in hand, and without the keys.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../../../chunk/tests/support/captured_log.rs"]
mod captured_log;
mod guessing;
mod hostile;
mod reading;
mod salts;
mod secrets;
mod tampering;
mod world;
