//! Where results go. Each room takes the types of `gotrace-model` and writes them down in one format.

pub mod api;
pub mod check;
pub mod collector;
pub mod contention;
pub mod dump;
mod history;
pub mod json;
pub mod leaks;
pub mod otlp;
mod outside;
mod places;
mod profile;
pub mod prometheus;
pub mod ps;
pub mod reading;
pub mod reports;
pub mod requests;
pub mod text;
pub mod top;

#[cfg(test)]
mod printed_tests;
