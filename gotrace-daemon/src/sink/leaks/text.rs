//! `leaks --format text`: for people. A block a finding, the worst first.

use std::io::{self, Write};

use super::{Header, ProofSummary, When};
use crate::{
    gobin::Frame,
    heap::Evidence,
    leak::{AtLeastAtMost, Finding, Holder, Verdict},
    printable::printable,
    snapshot::{Names, ObjectKind, StackFrame, Wait, WaitObject},
};

fn duration(ns: u64) -> String {
    crate::sink::text::duration(Some(ns))
}

/// Goids that are listed.
const MAX_GOIDS: usize = 8;
/// Frames that are shown of a stack, without those that Go's own traceback leaves out.
const MAX_FRAMES: usize = 12;
/// Places that are shown of one finding, beside its first.
const MAX_PARTS: usize = 8;
/// Holders of a lock that are shown.
const MAX_HOLDERS: usize = 4;
/// Columns before what is said.
const INDENT: &str = "              ";
/// Columns of a line of a sentence.
const WIDTH: usize = 96;

/// Writes findings.
///
/// # Errors
/// What the writer says.
pub fn write(
    out: &mut impl Write,
    header: Header<'_>,
    findings: &[Finding],
    names: &mut Names,
) -> io::Result<()> {
    let name = printable(header.executable.rsplit('/').next().unwrap_or(header.executable));
    let looked = match header.when {
        When::Watched => {
            let (came, exited) = header.came_and_exited;
            let number = |n: u64| if n == 0 { "none".to_owned() } else { n.to_string() };
            format!(
                "; {} snapshots over {} saw {} come and {} exit",
                header.looks,
                duration(header.duration_ns),
                number(came),
                number(exited)
            )
        }
        When::Once => ", not watched".to_owned(),
        When::AtItsEnd => ", alive when it ended".to_owned(),
    };
    let found = match findings.len() {
        0 => "no leaks found".to_owned(),
        1 => "1 finding".to_owned(),
        n => format!("{n} findings"),
    };
    writeln!(out, "pid {} ({name}): {found} ({} goroutines{looked})", header.pid, header.goroutines)?;
    if header.when == When::Once {
        writeln!(out, "  run with --watch 60s to also detect growing and stuck goroutines")?;
    }
    if let Some(line) = header.proof.and_then(proof) {
        writeln!(out, "  {line}")?;
    }
    for finding in findings {
        writeln!(out)?;
        self::finding(out, finding, names)?;
    }
    Ok(())
}

/// `512 B`, `1.5 KiB`, `2.0 GiB`.
fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (bytes as f64, None);
    for name in UNITS {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, Some(name));
    }
    unit.map_or(format!("{bytes} B"), |unit| format!("{value:.1} {unit}"))
}

/// What marking the heap came to.
fn proof(proof: &ProofSummary) -> Option<String> {
    let of = bytes;
    let passes = match proof.passes {
        0 if proof.void > 0 => {
            return Some(format!(
                "nothing is proven: in none of {} tries the list of goroutines could be read whole",
                proof.void
            ));
        }
        0 => return None,
        1 => "1 heap scan".to_owned(),
        n => format!("{n} heap scans"),
    };
    let held = match (proof.retained.leaked_bytes, proof.retained.heap_bytes) {
        (Some(leaked), Some(heap)) if leaked > 0 => {
            format!("; leaked goroutines retain {} of {}", of(leaked), of(heap))
        }
        (_, Some(heap)) => format!("; {} in use", of(heap)),
        _ => String::new(),
    };
    let refuted = match proof.refuted {
        0 => String::new(),
        n => format!("; {n} that were proven unreachable have run or vanished: an error of gotrace"),
    };
    Some(format!("{passes}{held}{refuted}"))
}

fn finding(out: &mut impl Write, finding: &Finding, names: &mut Names) -> io::Result<()> {
    let count = finding.count();
    write!(out, "  {:<12}{count} goroutine{}", finding.verdict.name(), if count == 1 { "" } else { "s" })?;
    if let Some(growth) = finding.growth {
        write!(out, ", +{:.2} to +{:.2} a second", growth.low, growth.high)?;
    }
    let lives = match (finding.verdict, finding.lives) {
        (Verdict::LeftBehind, _) => "lived",
        (_, true) => "lives",
        _ => "waits",
    };
    writeln!(out, ", {}", age(finding.oldest, count, lives))?;
    if let Some(retained) = finding.retained_bytes {
        let s = if count == 1 { "s" } else { "" };
        writeln!(out, "{INDENT}retain{s} {} of heap", bytes(retained))?;
    }
    if let Some(test) = &finding.test {
        writeln!(out, "{INDENT}made in {test}")?;
    }
    let others: Vec<u64> = finding.others.iter().flat_map(|o| o.goids.iter().copied()).collect();
    let own: Vec<u64> = finding.goids.iter().copied().filter(|goid| !others.contains(goid)).collect();
    let of = Stands {
        entry_pc: finding.entry_pc,
        created_pc: finding.created_pc,
        wait_reason: finding.wait_reason,
        stack: &finding.stack,
        waits_on: &finding.waits_on,
        waits_on_total: finding.waits_on_total,
        goids: &own,
    };
    stands(out, of, names)?;
    for part in finding.others.iter().take(MAX_PARTS) {
        let count = part.goids.len();
        writeln!(out, "{INDENT}and {count} more; they wait for each other:")?;
        let of = Stands {
            entry_pc: part.entry_pc,
            created_pc: part.created_pc,
            wait_reason: part.wait_reason,
            stack: &part.stack,
            waits_on: &part.waits_on,
            waits_on_total: part.waits_on_total,
            goids: &part.goids,
        };
        stands(out, of, names)?;
    }
    if finding.others.len() > MAX_PARTS {
        writeln!(out, "{INDENT}and those of {} places more", finding.others.len() - MAX_PARTS)?;
    }
    for holder in finding.holders.iter().take(MAX_HOLDERS) {
        writeln!(out, "{INDENT}{}", held_by(holder, names))?;
    }
    for line in wrap(&format!("why: {}", finding.why)) {
        writeln!(out, "{INDENT}{line}")?;
    }
    Ok(())
}

/// `held by goroutine 7 (main.flusher) at main.flusher (store.go:12), which waits: sleep`.
fn held_by(holder: &Holder, names: &mut Names) -> String {
    let how = match holder.evidence {
        Evidence::Locked => "held by",
        Evidence::Refers => "probably held by",
        Evidence::Encloses => "perhaps held by",
    };
    let runs = names.runs(holder.entry_pc, &holder.stack).map_or("?".to_owned(), |f| f.function.clone());
    let at = names.stack(&[holder.frame]).last().map_or("?".to_owned(), |f| position(f.frame));
    let stands = names.stack(&holder.stack);
    // Where it is in the program's own code.
    let inside = stands.iter().find(|f| !f.internal && is_own(&f.frame.function));
    let inside = inside
        .map(|f| position(f.frame))
        .filter(|i| *i != at)
        .map_or(String::new(), |i| format!(", now in {i}"));
    let reason = holder.wait_reason.and_then(|r| names.binary().wait_reasons().get(usize::from(r)).copied());
    let doing = reason.unwrap_or(holder.status.name());
    format!("{how} goroutine {} ({runs}) at {at}{inside}: {doing}", holder.goid)
}

/// Whether a function is of a package outside of the standard library: one with a dot in the first part of its path, or
/// the program's main.
fn is_own(function: &str) -> bool {
    let first = function.split('/').next().unwrap_or(function);
    function.starts_with("main.") || function.contains('/') && first.contains('.')
}

/// Goroutines of one site and place.
#[derive(Clone, Copy)]
struct Stands<'a> {
    entry_pc: u64,
    created_pc: u64,
    wait_reason: Option<u8>,
    stack: &'a [StackFrame],
    waits_on: &'a [(Wait, WaitObject)],
    waits_on_total: usize,
    goids: &'a [u64],
}

fn stands(out: &mut impl Write, of: Stands<'_>, names: &mut Names) -> io::Result<()> {
    let entry = names.runs(of.entry_pc, of.stack).map_or("?".to_owned(), |f| f.function.clone());
    let made = names.created_by(of.created_pc).first().map_or("?".to_owned(), position);
    writeln!(out, "{INDENT}{entry}  by {made}")?;
    let reason = of.wait_reason.and_then(|r| names.binary().wait_reasons().get(usize::from(r)).copied());
    if let Some(reason) = reason {
        writeln!(out, "{INDENT}{reason}{}", objects(of.waits_on, of.waits_on_total))?;
    }
    let stack = names.stack(of.stack);
    let shown: Vec<_> = stack.iter().filter(|f| !f.internal).collect();
    for frame in shown.iter().take(MAX_FRAMES) {
        writeln!(out, "{INDENT}  {}", position(frame.frame))?;
    }
    if shown.len() > MAX_FRAMES {
        writeln!(out, "{INDENT}  … {} more", shown.len() - MAX_FRAMES)?;
    }
    let goids: Vec<String> = of.goids.iter().take(MAX_GOIDS).map(u64::to_string).collect();
    let more = of.goids.len().saturating_sub(MAX_GOIDS);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    writeln!(out, "{INDENT}goids {}{more}", goids.join(" "))
}

fn age(oldest: AtLeastAtMost, count: usize, does: &str) -> String {
    let who = if count == 1 { does.to_owned() } else { format!("the oldest {does}") };
    match (oldest.at_least_ns, oldest.at_most_ns) {
        (least, Some(most)) if duration(least) == duration(most) => format!("{who} {}", duration(least)),
        (least, Some(most)) => format!("{who} {} to {}", duration(least), duration(most)),
        (0, None) => format!("{who} for an unknown time"),
        (least, None) => format!("{who} at least {}", duration(least)),
    }
}

fn objects(waits_on: &[(Wait, WaitObject)], total: usize) -> String {
    let Some((_, first)) = waits_on.first() else { return String::new() };
    let kind = first.kind.name();
    let known = if first.address == 0 { String::new() } else { format!(" {:#x}", first.address) };
    let capacity = match first.kind {
        ObjectKind::Chan if first.known => format!(" (len {}, cap {})", first.len, first.cap),
        _ => first.descriptor().map_or_else(String::new, |number| format!(" (number {number})")),
    };
    match total {
        1 => format!(": {kind}{known}{capacity}"),
        n => format!(": {n} objects, such as {kind}{known}{capacity}"),
    }
}

fn position(frame: &Frame) -> String {
    let file = frame.file.rsplit('/').next().unwrap_or(&frame.file);
    if file.is_empty() {
        frame.function.clone()
    } else {
        format!("{} ({file}:{})", frame.function, frame.line)
    }
}

/// Lines of at most [`WIDTH`] columns, as far as words allow.
fn wrap(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        if let Some(line) = lines.last_mut() {
            if line.is_empty() {
                line.push_str(word);
                continue;
            }
            if line.chars().count() + 1 + word.chars().count() <= WIDTH {
                line.push(' ');
                line.push_str(word);
                continue;
            }
        }
        lines.push(format!("     {word}"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_wrapped_between_words() {
        let lines = wrap(&"goroutine ".repeat(30));
        assert!(lines.len() > 2);
        assert!(lines.iter().all(|l| l.chars().count() <= WIDTH + 5), "{lines:?}");
        assert_eq!(lines.concat().matches("goroutine").count(), 30);
        assert_eq!(wrap("short"), ["short"]);
    }

    #[test]
    fn bytes_have_units() {
        for (n, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2 << 30, "2.0 GiB")] {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn ages_say_what_is_known() {
        let bounds = |at_least_ns, at_most_ns| AtLeastAtMost { at_least_ns, at_most_ns };
        assert_eq!(age(bounds(0, None), 1, "waits"), "waits for an unknown time");
        assert_eq!(age(bounds(5_000_000_000, None), 2, "waits"), "the oldest waits at least 5.0s");
        assert_eq!(age(bounds(4_000_000_000, Some(5_000_000_000)), 1, "waits"), "waits 4.0s to 5.0s");
    }
}
