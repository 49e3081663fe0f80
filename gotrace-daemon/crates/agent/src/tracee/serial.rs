//! How values of other crates are written in a recording, for `#[serde(with = …)]`: histograms without their empty
//! buckets, clocks, verdicts by their names, bytes as bytes.
//!
//! Reading fails on what no writer makes (a bucket that there is not, a verdict without a name); it never panics.

use gotrace_common::{BUCKETS, Histogram};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// A histogram by its filled buckets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sparse {
    count: u64,
    sum_ns: u64,
    max_ns: u64,
    buckets: Vec<(u8, u64)>,
}

impl From<&Histogram> for Sparse {
    fn from(histogram: &Histogram) -> Self {
        let Histogram { count, sum_ns, max_ns, buckets } = histogram;
        let filled = (0u8..).zip(buckets).filter(|(_, n)| **n > 0).map(|(bucket, n)| (bucket, *n));
        Self { count: *count, sum_ns: *sum_ns, max_ns: *max_ns, buckets: filled.collect() }
    }
}

impl TryFrom<Sparse> for Histogram {
    type Error = String;

    fn try_from(sparse: Sparse) -> Result<Self, String> {
        let Sparse { count, sum_ns, max_ns, buckets } = sparse;
        let mut histogram = Self { count, sum_ns, max_ns, ..Self::default() };
        for (bucket, n) in buckets {
            *histogram
                .buckets
                .get_mut(usize::from(bucket))
                .ok_or_else(|| format!("a histogram has {BUCKETS} buckets, and no bucket {bucket}"))? = n;
        }
        Ok(histogram)
    }
}

pub(crate) mod histogram {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(histogram: &Histogram, to: S) -> Result<S::Ok, S::Error> {
        Sparse::from(histogram).serialize(to)
    }

    pub(crate) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Histogram, D::Error> {
        Sparse::deserialize(from)?.try_into().map_err(D::Error::custom)
    }
}

pub(crate) mod boxed_histogram {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        histogram: &Option<Box<Histogram>>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        histogram.as_deref().map(Sparse::from).serialize(to)
    }

    pub(crate) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Option<Box<Histogram>>, D::Error> {
        let sparse = Option::<Sparse>::deserialize(from)?;
        sparse.map(|sparse| sparse.try_into().map(Box::new)).transpose().map_err(D::Error::custom)
    }
}

/// Histograms by a small number.
pub(crate) mod rows {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(rows: &[(u8, Histogram)], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(rows.iter().map(|(row, histogram)| (row, Sparse::from(histogram))))
    }

    pub(crate) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Vec<(u8, Histogram)>, D::Error> {
        let rows = Vec::<(u8, Sparse)>::deserialize(from)?;
        rows.into_iter()
            .map(|(row, sparse)| Ok((row, sparse.try_into().map_err(D::Error::custom)?)))
            .collect()
    }
}

/// A flag for each kind of hit, but for those of requests, whose probes are taken to be emulated.
pub(crate) mod kinds {
    use super::*;
    use gotrace_common::Hit;

    /// Kinds that recordings of gotrace 0.2 had first.
    const FIRST: usize = 16;

    pub(crate) fn serialize<S: Serializer>(kinds: &[bool; Hit::COUNT], to: S) -> Result<S::Ok, S::Error> {
        let first: [bool; FIRST] = std::array::from_fn(|n| kinds[n]);
        first.serialize(to)
    }

    pub(crate) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<[bool; Hit::COUNT], D::Error> {
        let first = <[bool; FIRST]>::deserialize(from)?;
        Ok(std::array::from_fn(|n| first.get(n).copied().unwrap_or(false)))
    }
}

pub(crate) mod clock {
    use super::*;
    use gotrace_process::Clock;

    pub(crate) fn serialize<S: Serializer>(clock: &Clock, to: S) -> Result<S::Ok, S::Error> {
        (clock.offset_ns(), clock.error_ns()).serialize(to)
    }

    pub(crate) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Clock, D::Error> {
        let (offset_ns, error_ns) = Deserialize::deserialize(from)?;
        Ok(Clock::from_offset(offset_ns, error_ns))
    }
}

pub(crate) mod verdict {
    use super::*;
    use gotrace_inspect::leak::Verdict;

    pub(crate) fn serialize<S: Serializer>(verdict: &Verdict, to: S) -> Result<S::Ok, S::Error> {
        verdict.name().serialize(to)
    }

    pub(crate) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Verdict, D::Error> {
        let name = String::deserialize(from)?;
        Verdict::from_name(&name).ok_or_else(|| D::Error::custom("a verdict that this version does not know"))
    }
}

/// Whose code a function is, as a number.
pub(crate) mod origin {
    use super::*;
    use gotrace_go::Origin;

    const ALL: [Origin; 4] = [Origin::Own, Origin::Library, Origin::Standard, Origin::Waiting];

    pub(crate) fn serialize<S: Serializer>(origin: &Origin, to: S) -> Result<S::Ok, S::Error> {
        let number = ALL.iter().position(|known| known == origin).unwrap_or(0);
        u8::try_from(number).unwrap_or(0).serialize(to)
    }

    pub(crate) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Origin, D::Error> {
        let number = usize::from(u8::deserialize(from)?);
        ALL.get(number).copied().ok_or_else(|| D::Error::custom("code of nobody that this version knows"))
    }
}

pub(crate) mod bytes {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<&'a [u8], D::Error> {
        Deserialize::deserialize(from)
    }
}
