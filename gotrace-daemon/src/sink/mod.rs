//! Where results go. Each sink takes the types of [`model`] and writes them down in one format.

pub mod dump;
pub mod json;
pub mod leaks;
mod levels;
pub mod model;
pub mod otlp;
pub mod prometheus;
pub mod text;
pub mod top;
