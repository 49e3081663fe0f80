//! Spans as the bytes of `ScopeSpans.spans`.

use prost::encoding;

use super::convert;
use crate::sink::model::Span;

/// Encodes spans.
#[derive(Debug, Default)]
pub(super) struct Encoder;

impl Encoder {
    /// Appends a span.
    pub fn span(&mut self, out: &mut Vec<u8>, span: &Span) {
        encoding::message::encode(2, &convert::span(span), out);
    }
}
