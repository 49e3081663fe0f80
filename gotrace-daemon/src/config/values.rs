//! Values of the configuration file as people write them, and the places of errors.

use std::{fmt, str::FromStr, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, Visitor},
};

use crate::units;

/// A time: `10s`, `1m30s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span(pub Duration);

/// A size: `8M`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u32);

/// Any size: `256M`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// Bytes a second: `256M`, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(pub Option<u64>);

/// A share: `1%`, `0.01`, or `off`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share(pub Option<f64>);

/// A time: `1s`, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound(pub Option<Duration>);

/// A number: `1000`, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub Option<u32>);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        units::duration(text).map(Self)
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        units::ring_bytes(text).map(Self)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        units::bytes(text).map(Self)
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        units::bytes(text).map(|rate| Self(Some(rate))).map_err(|e| format!("{e}, or off"))
    }
}

impl FromStr for Bound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        units::duration(text).map(|time| Self(Some(time))).map_err(|e| format!("{e}, or off"))
    }
}

impl FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        units::count(text).map(|count| Self(Some(count))).map_err(|e| format!("{e}, or off"))
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        units::budget(text).map(Self)
    }
}

macro_rules! from_text {
    ($($name:ty),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                text(deserializer)
            }
        }
    )*};
}

from_text!(Bound, Count, Span, Bytes, Size, Share, Rate);

/// A value by its text; a bare number is text too.
pub(super) fn text<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr,
    T::Err: fmt::Display,
{
    struct Text;

    impl Visitor<'_> for Text {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("text")
        }

        fn visit_str<E>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }
    }

    deserializer.deserialize_str(Text)?.parse().map_err(D::Error::custom)
}

/// What is wrong, in one line, without the place: that is told apart.
pub(super) fn message(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let line = text.lines().next().unwrap_or_default();
    let line = line.strip_prefix("error: ").unwrap_or(line);
    // The parser's own place stands at the end or the beginning, as the versions have it.
    let line = line.split(" at line ").next().unwrap_or(line);
    line.to_owned()
}

/// Line and column of a field by its name; 0 where it is not written.
pub(super) fn place_of(yaml: &str, field: &str) -> (u64, u64) {
    yaml.lines()
        .enumerate()
        .find_map(|(number, line)| {
            let code = line.split(" #").next().unwrap_or(line);
            // At its beginning, or within braces.
            let place = code.match_indices(field).map(|(at, _)| at).find(|at| {
                let before = &code[..*at];
                let key = before.trim_end_matches([' ', '\t']);
                let begins = before.len() > key.len() || key.is_empty() || key.ends_with(['{', ',']);
                let alone = key.is_empty() || key.ends_with(['{', ',', '-']);
                begins && alone && code[at + field.len()..].trim_start().starts_with(':')
            })?;
            Some((number as u64 + 1, place as u64 + 1))
        })
        .unwrap_or((0, 0))
}
