//! An [`Interval`] as bytes, from one gotrace to another of the same build: from a daemon to a command that shows it.
//!
//! What is written is what serde derives of the model, in postcard's encoding, so that a new field is carried by being
//! there. What cannot be derived is here, for `#[serde(with = "crate::wire")]`: gotrace's own names ([`Name`]), histograms
//! without their empty buckets, and locations, of which each is written once, and by its number from then on. It is no
//! stable format: [`layout`] tells whether two builds write alike.
//!
//! Invariants: reading never panics; it takes memory by the length of what is read, histograms and names have bounds of
//! their own. Errors: [`WireError`], on what no writer makes.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use gotrace_common::{BUCKETS, Histogram};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest as _, Sha256};

use crate::{Interval, Level, Location, STOP_REASONS, TRIGGERS, samples};

/// One of gotrace's own names, as outputs have it. An alias, as serde takes each `&'static str` that it sees for one that
/// is borrowed from what is read.
pub type Name = &'static str;

/// Histograms of an interval that is read: a few bytes are 1,176 in memory.
const MAX_HISTOGRAMS: usize = 1 << 17;
/// Names that are read and not known, which stay for good, and the bytes of one.
const MAX_NAMES: usize = 1024;
const MAX_NAME: usize = 256;

/// What is no interval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireError(String);

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WireError {}

impl From<postcard::Error> for WireError {
    fn from(error: postcard::Error) -> Self {
        Self(error.to_string())
    }
}

thread_local! {
    /// Numbers of the locations that were written, by their addresses, while an interval is.
    static WRITTEN: RefCell<Option<HashMap<*const Location, u32>>> = const { RefCell::new(None) };
    /// What was read of an interval, while one is.
    static READ: RefCell<Option<Read>> = const { RefCell::new(None) };
}

#[derive(Default)]
struct Read {
    locations: Vec<Arc<Location>>,
    histograms: usize,
}

/// Writes an interval behind what is there.
///
/// # Errors
/// None that memory gives.
pub fn encode(interval: &Interval, behind: Vec<u8>) -> Result<Vec<u8>, WireError> {
    WRITTEN.set(Some(HashMap::new()));
    let bytes = postcard::to_extend(interval, behind);
    WRITTEN.set(None);
    Ok(bytes?)
}

/// Reads an interval, and nothing else.
///
/// # Errors
/// [`WireError`]
pub fn decode(bytes: &[u8]) -> Result<Interval, WireError> {
    READ.set(Some(Read::default()));
    let read = postcard::take_from_bytes(bytes);
    READ.set(None);
    match read? {
        (interval, []) => Ok(interval),
        (_, rest) => Err(WireError(format!("{} bytes too many", rest.len()))),
    }
}

/// Stands for how intervals are written: builds whose fields differ have different ones.
#[must_use]
pub fn layout() -> String {
    let digest = Sha256::digest(encode(&samples::whole(), Vec::new()).unwrap_or_default());
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn serialize<T: Wire, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    value.write(to)
}

pub(crate) fn deserialize<'de, T: Wire, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    T::read(from)
}

/// What is written here, and what holds such.
pub(crate) trait Wire: Sized {
    fn write<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error>;
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error>;
}

/// For serde to write.
struct Out<'a, T>(&'a T);

impl<T: Wire> Serialize for Out<'_, T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.write(to)
    }
}

/// For serde to read.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct In<T>(T);

impl<'de, T: Wire> Deserialize<'de> for In<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        T::read(from).map(Self)
    }
}

/// What serde writes by itself.
macro_rules! plain {
    ($($type:ty),*) => {$(
        impl Wire for $type {
            fn write<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                self.serialize(to)
            }

            fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                Self::deserialize(from)
            }
        }
    )*};
}

plain!(u16, u64, Arc<str>);

impl<T: Wire> Wire for Option<T> {
    fn write<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.as_ref().map(Out).serialize(to)
    }

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Option::<In<T>>::deserialize(from)?.map(|In(value)| value))
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn write<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.iter().map(Out))
    }

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Vec::<In<T>>::deserialize(from)?.into_iter().map(|In(value)| value).collect())
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn write<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        (Out(&self.0), Out(&self.1)).serialize(to)
    }

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let (In(first), In(second)) = Deserialize::deserialize(from)?;
        Ok((first, second))
    }
}

impl<K: Wire + Ord, V: Wire> Wire for BTreeMap<K, V> {
    fn write<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.iter().map(|(key, value)| (Out(key), Out(value))))
    }

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let read = BTreeMap::<In<K>, In<V>>::deserialize(from)?;
        Ok(read.into_iter().map(|(In(key), In(value))| (key, value)).collect())
    }
}

/// Names that are known, and then those that were read.
static NAMES: LazyLock<Mutex<BTreeSet<Name>>> = LazyLock::new(|| {
    let levels = Level::ALL.map(Level::name);
    Mutex::new(TRIGGERS.into_iter().chain(STOP_REASONS).chain(levels).collect())
});

/// A name for good; `None` where there are too many, or it is too long for one.
fn name_of(text: String) -> Option<Name> {
    // Whole values: a panic elsewhere leaves none half written.
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.get(text.as_str()) {
        return Some(known);
    }
    if text.len() > MAX_NAME || names.len() >= MAX_NAMES {
        return None;
    }
    let name: Name = text.leak();
    names.insert(name);
    Some(name)
}

impl Wire for Name {
    fn write<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self)
    }

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        name_of(String::deserialize(from)?)
            .ok_or_else(|| D::Error::custom("too many names, or too long a one"))
    }
}

/// A location that was not there before, or the number of one that was.
#[derive(Serialize, Deserialize)]
enum Shared<L> {
    New(L),
    Known(u32),
}

impl Wire for Arc<Location> {
    fn write<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        // Its address stands for it: the interval that holds it is borrowed meanwhile.
        let known = WRITTEN.with_borrow_mut(|written| {
            let written = written.as_mut()?;
            let next = u32::try_from(written.len()).ok()?;
            let number = *written.entry(Self::as_ptr(self)).or_insert(next);
            (number != next).then_some(number)
        });
        match known {
            Some(number) => Shared::<&Location>::Known(number),
            None => Shared::New(&**self),
        }
        .serialize(to)
    }

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let shared = Shared::<Location>::deserialize(from)?;
        READ.with_borrow_mut(|read| match (shared, read) {
            (Shared::New(location), read) => {
                let location = Self::new(location);
                if let Some(read) = read {
                    read.locations.push(Self::clone(&location));
                }
                Ok(location)
            }
            (Shared::Known(number), Some(read)) => read.locations.get(number as usize).cloned().ok_or(()),
            (Shared::Known(_), None) => Err(()),
        })
        .map_err(|()| D::Error::custom("a location that was not told"))
    }
}

impl Wire for Histogram {
    fn write<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self { count, sum_ns, max_ns, buckets } = self;
        let filled: Vec<(u8, u64)> = (0..).zip(*buckets).filter(|(_, n)| *n > 0).collect();
        (count, sum_ns, max_ns, filled).serialize(to)
    }

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let is_room = READ.with_borrow_mut(|read| {
            let Some(read) = read else { return true };
            read.histograms += 1;
            read.histograms <= MAX_HISTOGRAMS
        });
        if !is_room {
            return Err(D::Error::custom("too many histograms"));
        }
        let (count, sum_ns, max_ns, filled): (_, _, _, Vec<(u8, u64)>) = Deserialize::deserialize(from)?;
        let mut buckets = [0; BUCKETS];
        for (bucket, n) in filled {
            let bucket = buckets.get_mut(usize::from(bucket));
            *bucket.ok_or_else(|| D::Error::custom("a bucket that there is not"))? = n;
        }
        Ok(Self { count, sum_ns, max_ns, buckets })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Peer, Place, Places, Site};

    fn encoded(interval: &Interval) -> Vec<u8> {
        encode(interval, Vec::new()).expect("memory")
    }

    #[test]
    fn an_interval_comes_back_whole() {
        let whole = samples::whole();
        let read = decode(&encoded(&whole)).expect("what was written");
        let (before, after) = (format!("{whole:#?}"), format!("{read:#?}"));
        for (before, after) in before.lines().zip(after.lines()) {
            assert_eq!(before, after);
        }
        assert_eq!(before, after);
        // A field that is nothing could be left out, and nobody would see it here.
        let nothing = [": None,", ": 0,", ": 0.0,", ": false,", ": [],", ": {},", ": \"\","];
        let empty: Vec<&str> =
            before.lines().filter(|line| nothing.iter().any(|nothing| line.ends_with(nothing))).collect();
        assert!(empty.is_empty(), "fill these in samples::whole: {empty:#?}");
        let bare = samples::interval(&samples::resource(), 1, vec![samples::site("main.a", 3, 3)]);
        assert_eq!(format!("{:?}", decode(&encoded(&bare)).expect("written")), format!("{bare:?}"));
    }

    #[test]
    fn a_location_is_written_once_and_one_again() {
        let at = samples::location("main.unmistakable", "/src/unmistakable.go", 7);
        let site = Site { entry: Arc::clone(&at), created_by: Some(at), ..samples::site("", 2, 1) };
        let interval = samples::interval(&samples::resource(), 1, vec![site.clone(), site]);
        let bytes = encoded(&interval);
        let name = b"main.unmistakable";
        assert_eq!(bytes.windows(name.len()).filter(|window| window == name).count(), 1);
        let read = decode(&bytes).expect("written");
        let [first, second] = &read.sites[..] else { panic!("{:?}", read.sites) };
        assert!(Arc::ptr_eq(&first.entry, &second.entry));
        assert!(first.created_by.as_ref().is_some_and(|at| Arc::ptr_eq(at, &first.entry)));
        // The next one is on its own.
        assert_eq!(encoded(&interval), bytes);
        assert!(decode(&bytes).is_ok());
    }

    #[test]
    fn what_is_cut_damaged_or_made_up_is_an_error_and_no_panic() {
        let bytes = encoded(&samples::whole());
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "{length} of {}", bytes.len());
        }
        assert_eq!(
            decode(&[&bytes[..], b"x"].concat()).expect_err("one more").to_string(),
            "1 bytes too many"
        );
        for at in 0..bytes.len() {
            for with in [0, 1, 0x7f, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] = with;
                // It may be one of another process, and must not take more than there is.
                let _ = decode(&damaged);
            }
        }
        for made_up in [&[0xff; 64][..], &[0; 4096], &[0x80; 4096]] {
            assert!(decode(made_up).is_err());
        }
    }

    #[test]
    fn histograms_and_names_have_their_bounds() {
        let bare = samples::interval(&samples::resource(), 1, Vec::new());
        let place = Place {
            stack: Vec::new(),
            at: None,
            peer: Some(Peer::Other),
            waits: Histogram::default(),
            ..samples::places().places.remove(0)
        };
        let of = |count| {
            let places = vec![place.clone(); count];
            encoded(&Interval { waits_at: Arc::new(Places { places, ..Places::default() }), ..bare.clone() })
        };
        assert!(decode(&of(1000)).is_ok());
        assert!(decode(&of(MAX_HISTOGRAMS)).is_err());
        assert!(name_of("n".repeat(MAX_NAME + 1)).is_none());
        assert_eq!(name_of("heap".into()), Some("heap"));
    }

    #[test]
    fn builds_that_write_alike_have_the_same_layout() {
        assert_eq!((layout(), layout().len()), (layout(), 16));
    }

    /// A program with many creation sites and places, whose stacks have much in common.
    #[test]
    fn a_report_of_a_large_program_stays_small() {
        let location = |n: usize| {
            let function = format!("github.com/example/shop/internal/inventory.(*Pool{n}).worker.func1");
            samples::location(&function, &format!("/src/shop/internal/inventory/pool_{n}.go"), 10)
        };
        let locations: Vec<_> = (0..3000).map(location).collect();
        let at = |n: usize| Arc::clone(&locations[n % locations.len()]);
        let durations: Vec<u64> = (0..200).map(|n| n * n * 30_000).collect();
        let site = |n| Site {
            entry: at(n),
            created_by: Some(at(n + 500)),
            waits: samples::histogram(&durations),
            ..samples::site("", 900, 400)
        };
        let place = |n| Place {
            at: Some(at(n)),
            stack: (0..20).map(|frame| at(n + frame * 7)).collect(),
            waits: samples::histogram(&durations),
            ..samples::places().places.remove(0)
        };
        let places = Places { places: (0..2000).map(place).collect(), ..samples::places() };
        let sites = (0..500).map(site).collect();
        let interval =
            Interval { waits_at: Arc::new(places), ..samples::interval(&samples::resource(), 1, sites) };
        let bytes = encoded(&interval);
        println!("{} bytes", bytes.len());
        assert!(bytes.len() < 1_000_000, "{} bytes", bytes.len());
        assert_eq!(decode(&bytes).expect("written").waits_at.places.len(), 2000);
    }
}
