//! Helpers for gotrace's live tests.
