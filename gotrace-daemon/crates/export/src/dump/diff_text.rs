//! Two dumps compared, for people: which creation sites and stacks have more or fewer goroutines, the
//! largest difference first.

use std::io::{self, Write};

use super::{
    diff::{Change, Diff, Differences},
    read::{Place, Stack, Tally},
};
use crate::text::duration;
use gotrace_model::printable::printable;

/// Frames of a stack that are shown; of deeper ones the middle is not.
const SHOWN_FRAMES: usize = 40;

/// Writes plain lines.
///
/// # Errors
/// What the writer says.
pub fn write(diff: &Diff<'_>, out: &mut dyn Write) -> io::Result<()> {
    let Diff { before, after, places, sites, stacks } = diff;
    writeln!(out, "before  {}", described(before))?;
    let later = match (before.time_unix_nano, after.time_unix_nano) {
        (Some(first), Some(second)) if second >= first => {
            format!(", {} later", duration(Some(second - first)))
        }
        (Some(first), Some(second)) => format!(", {} EARLIER", duration(Some(first - second))),
        _ => String::new(),
    };
    writeln!(out, "after   {}{later}", described(after))?;
    heading(out, "by creation site", sites)?;
    for difference in &sites.changed {
        let site = difference.what;
        let place = |n: Option<u32>| n.and_then(|n| places.place(n));
        let entry = place(site.entry).map_or("?", |p| &p.function);
        let by = place(site.created_by).map_or_else(String::new, |p| format!("  created by {}", short(p)));
        numbers(out, difference.delta(), difference.before, difference.after, difference.change())?;
        writeln!(out, "{entry}{by}")?;
    }
    heading(out, "by stack", stacks)?;
    for (n, difference) in stacks.changed.iter().enumerate() {
        if n > 0 {
            writeln!(out)?;
        }
        let Stack { state, wait_reason, frames } = difference.what;
        numbers(out, difference.delta(), difference.before, difference.after, difference.change())?;
        writeln!(out, "[{}]", places.text(wait_reason.unwrap_or(*state)))?;
        if frames.is_empty() {
            writeln!(out, "            no stack")?;
        }
        let left_out = frames.len().saturating_sub(SHOWN_FRAMES);
        for (n, place) in frames.iter().filter_map(|&n| places.place(n)).enumerate() {
            let middle = SHOWN_FRAMES / 2..SHOWN_FRAMES / 2 + left_out;
            if left_out > 0 && n == middle.start {
                writeln!(out, "            ...{left_out} frames elided...")?;
            }
            if !middle.contains(&n) {
                writeln!(out, "            {}  {}", place.function, full(place))?;
            }
        }
    }
    Ok(())
}

/// `a.json: 12 goroutines of server (process 123, go1.24.3)`.
fn described(tally: &Tally) -> String {
    let Tally { source, pid, executable, go_version, goroutines, .. } = tally;
    let s = if *goroutines == 1 { "" } else { "s" };
    let mut text = format!("{source}: {goroutines} goroutine{s}");
    if let Some(executable) = executable {
        text.push_str(&format!(" of {}", printable(executable.rsplit('/').next().unwrap_or(executable))));
    }
    let known: Vec<String> =
        pid.map(|pid| format!("process {pid}")).into_iter().chain(go_version.clone()).collect();
    if !known.is_empty() {
        text.push_str(&format!(" ({})", known.join(", ")));
    }
    text
}

fn heading<T>(out: &mut dyn Write, name: &str, differences: &Differences<'_, T>) -> io::Result<()> {
    let counts = [Change::Grew, Change::New, Change::Shrank, Change::Gone]
        .map(|change| format!("{} {}", differences.count(change), change.name()));
    writeln!(out, "\n{name}: {}, {} unchanged", counts.join(", "), differences.unchanged)?;
    if !differences.changed.is_empty() {
        writeln!(out, "{:>9} {:>9} {:>9}", "change", "before", "after")?;
    }
    Ok(())
}

fn numbers(out: &mut dyn Write, delta: i128, before: u64, after: u64, change: Change) -> io::Result<()> {
    write!(out, "{delta:>+9} {before:>9} {after:>9}  {:<6}  ", change.name())
}

/// `main.main (main.go:30)`.
fn short(place: &Place<'_>) -> String {
    match (&place.file, place.line) {
        (Some(file), Some(line)) => {
            format!("{} ({}:{line})", place.function, file.rsplit('/').next().unwrap_or(file))
        }
        _ => place.function.to_string(),
    }
}

fn full(place: &Place<'_>) -> String {
    match (&place.file, place.line) {
        (Some(file), Some(line)) => format!("{file}:{line}"),
        (Some(file), None) => file.to_string(),
        _ => "?".to_owned(),
    }
}
