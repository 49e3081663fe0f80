//! `leaks --format text`: for people. A block a finding, the worst first.

use std::io::{self, Write};

use super::{Header, ProofSummary, When};
use crate::outside::{in_call, of_wait};
use gotrace_go::Frame;
use gotrace_inspect::{
    heap::Evidence,
    leak::{AtLeastAtMost, Awaited, Finding, Holder, Verdict},
    snapshot::{Names, ObjectKind, Outside, StackFrame, Wait, WaitObject},
};
use gotrace_model::printable::printable;

use crate::text::bytes;

fn duration(ns: u64) -> String {
    crate::text::duration(Some(ns))
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
pub(crate) const INDENT: &str = "              ";
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
    let found = match findings.len() {
        0 => "no leaks found".to_owned(),
        1 => "1 finding".to_owned(),
        n => format!("{n} findings"),
    };
    writeln!(out, "{}: {found} ({})", process(header), looked(header))?;
    if header.when == When::Once {
        writeln!(out, "  run with --watch 60s to also detect growing, stuck and stalled goroutines")?;
    }
    if let Some(line) = header.proof.and_then(proof) {
        writeln!(out, "  {line}")?;
    }
    for finding in findings {
        writeln!(out)?;
        self::finding(out, finding, header.outside, names)?;
    }
    Ok(())
}

/// `pid 7 (server)`.
pub(crate) fn process(header: Header<'_>) -> String {
    let name = printable(header.executable.rsplit('/').next().unwrap_or(header.executable));
    format!("pid {} ({name})", header.pid)
}

/// What was looked at, and how often: `52 goroutines; 19 snapshots over 22s: 14 created, none exited`.
pub(crate) fn looked(header: Header<'_>) -> String {
    let looked = match header.when {
        When::Watched => {
            let (came, exited) = header.came_and_exited;
            let number = |n: u64| if n == 0 { "none".to_owned() } else { n.to_string() };
            format!(
                "; {} {} over {}: {} created, {} exited",
                header.looks,
                if header.looks == 1 { "snapshot" } else { "snapshots" },
                duration(header.duration_ns),
                number(came),
                number(exited)
            )
        }
        When::Once => ", not watched".to_owned(),
        When::AtItsEnd => ", alive at exit".to_owned(),
    };
    format!("{} goroutines{looked}", header.goroutines)
}

/// What marking the heap came to.
pub(crate) fn proof(proof: &ProofSummary) -> Option<String> {
    let of = bytes;
    let passes = match proof.passes {
        0 if proof.void > 0 => {
            return Some(format!(
                "no leak proof: could not read the list of goroutines in {} attempts",
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
        n => format!("; {n} proven unreachable have run or vanished, which is a bug in gotrace"),
    };
    Some(format!("{passes}{held}{refuted}"))
}

/// Writes one finding. `outside`: what descriptors and system calls lead to, where that was looked up.
///
/// # Errors
/// What the writer says.
pub fn finding(
    out: &mut impl Write,
    finding: &Finding,
    outside: Option<&Outside>,
    names: &mut Names,
) -> io::Result<()> {
    let count = finding.count();
    write!(out, "  {:<12}{count} goroutine{}", finding.verdict.name(), if count == 1 { "" } else { "s" })?;
    if let Some(growth) = finding.growth {
        write!(out, ", growing by {:.2} to {:.2} per second", growth.low, growth.high)?;
    }
    let lives = match (finding.verdict, finding.lives) {
        (Verdict::LeftBehind, _) => "lived",
        (_, true) => "lives",
        _ => "blocked",
    };
    writeln!(out, ", {}", age(finding.oldest, count, lives))?;
    if let Some(retained) = finding.retained_bytes {
        let s = if count == 1 { "s" } else { "" };
        writeln!(out, "{INDENT}retain{s} {} of heap", bytes(retained))?;
    }
    if let Some(reason) = &finding.accepted.suppressed {
        writeln!(out, "{INDENT}suppressed: {}", printable(reason))?;
    }
    if finding.accepted.in_baseline == Some(true) {
        writeln!(out, "{INDENT}known: in the baseline")?;
    }
    if let Some(test) = &finding.test {
        writeln!(out, "{INDENT}created in {test}")?;
    }
    let others: Vec<u64> = finding.others.iter().flat_map(|o| o.goids.iter().copied()).collect();
    let own: Vec<u64> = finding.goids.iter().copied().filter(|goid| !others.contains(goid)).collect();
    let of = Stands {
        entry_pc: finding.entry_pc,
        created_pc: finding.created_pc,
        wait_reason: finding.wait_reason,
        awaited: finding.awaited,
        stack: &finding.stack,
        waits_on: &finding.waits_on,
        waits_on_total: finding.waits_on_total,
        goids: &own,
    };
    stands(out, of, outside, names)?;
    for part in finding.others.iter().take(MAX_PARTS) {
        let count = part.goids.len();
        writeln!(out, "{INDENT}plus {count} in the same wait cycle:")?;
        let of = Stands {
            entry_pc: part.entry_pc,
            created_pc: part.created_pc,
            wait_reason: part.wait_reason,
            awaited: None,
            stack: &part.stack,
            waits_on: &part.waits_on,
            waits_on_total: part.waits_on_total,
            goids: &part.goids,
        };
        stands(out, of, outside, names)?;
    }
    if finding.others.len() > MAX_PARTS {
        writeln!(out, "{INDENT}plus those at {} more places", finding.others.len() - MAX_PARTS)?;
    }
    for line in held_by(&finding.holders, finding.verdict == Verdict::Stalled, outside, names) {
        writeln!(out, "{INDENT}{line}")?;
    }
    for line in wrap(&format!("why: {}", finding.why)) {
        writeln!(out, "{INDENT}{line}")?;
    }
    Ok(())
}

/// Who holds what is waited for. The worse are named only where there is nothing better.
pub(super) fn held_by(
    holders: &[Holder],
    of_pool: bool,
    outside: Option<&Outside>,
    names: &mut Names,
) -> Vec<String> {
    let best = holders.iter().map(|h| h.evidence).min();
    let all: Vec<&Holder> = holders.iter().filter(|h| Some(h.evidence) == best).collect();
    let mut lines: Vec<String> =
        all.iter().take(MAX_HOLDERS).map(|h| held_by_one(h, of_pool, outside, names)).collect();
    if all.len() > MAX_HOLDERS {
        lines.push(format!("and {} more", all.len() - MAX_HOLDERS));
    }
    lines
}

/// `held by goroutine 7 (main.flusher) at main.flusher (store.go:12), which waits: sleep`. `of_pool`: what it
/// holds is a connection of one.
fn held_by_one(holder: &Holder, of_pool: bool, outside: Option<&Outside>, names: &mut Names) -> String {
    let how = match holder.evidence {
        Evidence::Locked => "held by",
        Evidence::Refers if of_pool => "a connection is probably held by",
        Evidence::Refers => "probably held by",
        Evidence::Encloses => "perhaps held by",
        Evidence::Candidate => "may hold one:",
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
    let waits_for = holder.waits_on.first().and_then(|(wait, object)| of_wait(*wait, object, outside));
    let waits_for = waits_for.or_else(|| in_call(holder.goid, &holder.stack, outside?, names));
    let waits_for = waits_for.map_or(String::new(), |w| format!(": {w}"));
    format!("{how} goroutine {} ({runs}) at {at}{inside}: {doing}{waits_for}", holder.goid)
}

/// Whether a function is of a package outside of the standard library: one with a dot in the first part of its path, or
/// the program's main.
pub(crate) fn is_own(function: &str) -> bool {
    let first = function.split('/').next().unwrap_or(function);
    function.starts_with("main.") || function.contains('/') && first.contains('.')
}

/// Goroutines of one site and place.
#[derive(Clone, Copy)]
struct Stands<'a> {
    entry_pc: u64,
    created_pc: u64,
    wait_reason: Option<u8>,
    awaited: Option<Awaited>,
    stack: &'a [StackFrame],
    waits_on: &'a [(Wait, WaitObject)],
    waits_on_total: usize,
    goids: &'a [u64],
}

fn stands(
    out: &mut impl Write,
    of: Stands<'_>,
    outside: Option<&Outside>,
    names: &mut Names,
) -> io::Result<()> {
    let entry = names.runs(of.entry_pc, of.stack).map_or("?".to_owned(), |f| f.function.clone());
    let unknown = if entry == "runtime.main" { "the runtime" } else { "?" };
    let made = names.created_by(of.created_pc).first().map_or(unknown.to_owned(), position);
    writeln!(out, "{INDENT}{entry}  created by {made}")?;
    let reason = of.wait_reason.and_then(|r| names.binary().wait_reasons().get(usize::from(r)).copied());
    let place = of.awaited.map_or(String::new(), |a| format!("{}: ", a.text()));
    if let Some(reason) = reason {
        writeln!(out, "{INDENT}{place}{reason}{}", objects(of.waits_on, of.waits_on_total, outside))?;
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
    let who = if count == 1 { does.to_owned() } else { format!("oldest {does}") };
    match (oldest.at_least_ns, oldest.at_most_ns) {
        (least, Some(most)) if duration(least) == duration(most) => format!("{who} for {}", duration(least)),
        (least, Some(most)) => format!("{who} for {} to {}", duration(least), duration(most)),
        (0, None) => format!("{who} for an unknown time"),
        (least, None) => format!("{who} for at least {}", duration(least)),
    }
}

fn objects(waits_on: &[(Wait, WaitObject)], total: usize, outside: Option<&Outside>) -> String {
    let Some((wait, first)) = waits_on.first() else { return String::new() };
    if let Some(text) = of_wait(*wait, first, outside).filter(|_| first.kind == ObjectKind::Fd) {
        return match total {
            1 => format!(": {text}"),
            n => format!(": {n} descriptors, e.g. {text}"),
        };
    }
    let kind = first.kind.name();
    let known = if first.address == 0 { String::new() } else { format!(" {:#x}", first.address) };
    let capacity = match first.kind {
        ObjectKind::Chan if first.known => format!(" (len {}, cap {})", first.len, first.cap),
        _ => String::new(),
    };
    match total {
        1 => format!(": {kind}{known}{capacity}"),
        n => format!(": {n} objects, e.g. {kind}{known}{capacity}"),
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
pub(crate) fn wrap(text: &str) -> Vec<String> {
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
        assert_eq!(age(bounds(0, None), 1, "blocked"), "blocked for an unknown time");
        assert_eq!(age(bounds(5_000_000_000, None), 2, "blocked"), "oldest blocked for at least 5.0s");
        assert_eq!(age(bounds(4_000_000_000, Some(5_000_000_000)), 1, "blocked"), "blocked for 4.0s to 5.0s");
    }
}
