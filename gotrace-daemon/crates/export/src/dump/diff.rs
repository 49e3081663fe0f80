//! Two dumps compared: of which creation sites and stacks there are more goroutines than before, fewer,
//! some for the first time, none any more. As JSON: one object a line, schema `gotrace.diff/1`.

use std::{
    cmp::Reverse,
    hash::Hash,
    io::{self, Write},
};

use serde::Serialize;
use serde_json::json;

pub use super::diff_text::write as write_text;
use super::read::{Counted, Place, Places, Site, Stack, Tally};
use gotrace_model::printable::write_json;

/// The schema of these lines.
pub const SCHEMA: &str = "gotrace.diff/1";

/// What happened to a number of goroutines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// There are more.
    Grew,
    /// There are fewer.
    Shrank,
    /// There were none.
    New,
    /// There are none any more.
    Gone,
}

impl Change {
    /// The name that outputs use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Grew => "grew",
            Self::Shrank => "shrank",
            Self::New => "new",
            Self::Gone => "gone",
        }
    }
}

/// A difference.
#[derive(Clone, Copy, Debug)]
pub struct Difference<'a, T> {
    /// Of what.
    pub what: &'a T,
    /// Goroutines in the first dump.
    pub before: u64,
    /// Goroutines in the second.
    pub after: u64,
}

impl<T> Difference<'_, T> {
    /// What happened.
    #[must_use]
    pub const fn change(&self) -> Change {
        match (self.before, self.after) {
            (0, _) => Change::New,
            (_, 0) => Change::Gone,
            (before, after) if before < after => Change::Grew,
            _ => Change::Shrank,
        }
    }

    /// How many more; negative for fewer.
    #[must_use]
    pub fn delta(&self) -> i128 {
        i128::from(self.after) - i128::from(self.before)
    }
}

/// Differences of one kind of things: the largest first, growth before shrinking.
#[derive(Debug)]
pub struct Differences<'a, T> {
    /// What is not the same.
    pub changed: Vec<Difference<'a, T>>,
    /// How many are.
    pub unchanged: u64,
}

/// What two dumps differ in.
#[derive(Debug)]
pub struct Diff<'a> {
    /// The first dump.
    pub before: &'a Tally,
    /// The second.
    pub after: &'a Tally,
    /// What the numbers in both mean.
    pub places: &'a Places,
    /// By creation site.
    pub sites: Differences<'a, Site>,
    /// By stack.
    pub stacks: Differences<'a, Stack>,
}

impl<'a> Diff<'a> {
    /// Compares two dumps that were counted with the same `places`.
    #[must_use]
    pub fn new(before: &'a Tally, after: &'a Tally, places: &'a Places) -> Self {
        Self {
            before,
            after,
            places,
            sites: compare(&before.sites, &after.sites),
            stacks: compare(&before.stacks, &after.stacks),
        }
    }

    /// Writes JSON lines.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        let Self { before, after, places, sites, stacks } = self;
        line(out, &json!({"schema": SCHEMA, "before": before, "after": after}))?;
        let place = |n: Option<u32>| n.and_then(|n| places.place(n));
        entries(out, "site", sites, |site| SiteObject {
            entry: place(site.entry),
            created_by: place(site.created_by),
        })?;
        entries(out, "stack", stacks, |stack| StackObject {
            state: places.text(stack.state),
            wait_reason: stack.wait_reason.map(|n| places.text(n)),
            stack: stack.frames.iter().filter_map(|&n| places.place(n)).collect(),
        })?;
        line(
            out,
            &json!({"summary": {
                "goroutines": {"before": before.goroutines, "after": after.goroutines},
                "sites": sites.counts(),
                "stacks": stacks.counts(),
            }}),
        )
    }
}

impl<T> Differences<'_, T> {
    /// How many changed in this way.
    #[must_use]
    pub fn count(&self, change: Change) -> u64 {
        self.changed.iter().filter(|d| d.change() == change).count() as u64
    }

    fn counts(&self) -> serde_json::Value {
        json!({
            "grew": self.count(Change::Grew),
            "shrank": self.count(Change::Shrank),
            "new": self.count(Change::New),
            "gone": self.count(Change::Gone),
            "unchanged": self.unchanged,
        })
    }
}

fn compare<'a, T: Eq + Hash + Ord>(before: &'a Counted<T>, after: &'a Counted<T>) -> Differences<'a, T> {
    let mut changed: Vec<Difference<'a, T>> = Vec::new();
    let mut unchanged = 0;
    for (what, &after) in after {
        match before.get(what).copied().unwrap_or(0) {
            same if same == after => unchanged += 1,
            before => changed.push(Difference { what, before, after }),
        }
    }
    for (what, &before) in before.iter().filter(|(what, _)| !after.contains_key(*what)) {
        changed.push(Difference { what, before, after: 0 });
    }
    // Those that changed alike come in the order of the dumps.
    changed.sort_unstable_by_key(|d| (Reverse(d.delta().abs()), Reverse(d.delta()), d.what));
    Differences { changed, unchanged }
}

#[derive(Serialize)]
struct SiteObject<'a> {
    entry: Option<&'a Place<'a>>,
    created_by: Option<&'a Place<'a>>,
}

#[derive(Serialize)]
struct StackObject<'a> {
    state: &'a str,
    wait_reason: Option<&'a str>,
    stack: Vec<&'a Place<'a>>,
}

#[derive(Serialize)]
struct Line<T> {
    by: &'static str,
    change: Change,
    before: u64,
    after: u64,
    delta: i128,
    #[serde(flatten)]
    what: T,
}

fn entries<'a, T, O: Serialize>(
    out: &mut dyn Write,
    by: &'static str,
    differences: &Differences<'a, T>,
    object: impl Fn(&'a T) -> O,
) -> io::Result<()> {
    for difference in &differences.changed {
        let (change, delta) = (difference.change(), difference.delta());
        let &Difference { what, before, after } = difference;
        line(out, &Line { by, change, before, after, delta, what: object(what) })?;
    }
    Ok(())
}

fn line(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    write_json(out, value)?;
    out.write_all(b"\n")
}
