//! The goroutine profile as text, `goroutine profile: total 12`: what `net/http/pprof` answers with `?debug=1`
//! (`runtime/pprof`, `printCountProfile`, `printStackRecord`), so that what reads that reads this.
//!
//! What differs by nature: stacks have all their frames, however deep; the addresses are those of physical frames, so
//! that functions that were inlined there share one; a goroutine that ran while it was read has the address of its entry
//! function alone. Stacks that are as frequent are in the order of their oldest goroutine.

use std::{
    cmp::Reverse,
    io::{self, Write},
};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{Dump, incomplete};
use gotrace_go::Frame;
use gotrace_inspect::snapshot::{Goroutine, LabelsId, NamedFrame, Names, StackFrame, StackId};
use gotrace_model::printable::write_json;

/// Width of a tab.
const TAB: usize = 8;

/// What goroutines of an entry have in common.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    stack: Option<StackId>,
    /// Tells apart what has no stack.
    entry_pc: u64,
    labels: Option<LabelsId>,
}

/// A line below an entry: its address, and its function with the offset in it and its place, where they are known.
type Line = (u64, Option<(String, String)>);

/// Writes the profile.
///
/// # Errors
/// What the writer says.
pub fn write(out: &mut dyn Write, dump: &Dump<'_>, names: &mut Names) -> io::Result<()> {
    let mut places: HashMap<Key, usize, FixedState> = HashMap::default();
    let mut entries: Vec<(&Goroutine, u64)> = Vec::new();
    for &g in &dump.goroutines {
        let entry_pc = if g.stack.is_some() { 0 } else { g.entry_pc };
        let n = *places.entry(Key { stack: g.stack, entry_pc, labels: g.labels }).or_insert(entries.len());
        match entries.get_mut(n) {
            Some((_, count)) => *count += 1,
            None => entries.push((g, 1)),
        }
    }
    drop(places);
    entries.sort_by_key(|(first, count)| (Reverse(*count), first.goid));
    writeln!(out, "{} profile: total {}", dump.header.kind.name(), dump.goroutines.len())?;
    for (first, count) in entries {
        write!(out, "{count} @")?;
        let frames = dump.snapshot.frames(first);
        let shown = if frames.is_empty() {
            let pc = first.entry_pc;
            let place = |f: &Frame| (format!("{}+0x0", f.function), format!("{}:{}", f.file, f.line));
            write!(out, " {pc:#x}")?;
            vec![(pc, names.entry(pc).map(place))]
        } else {
            let stack = stack_of(dump, frames, names);
            let shown = frames.iter().zip(&stack.left_out).filter(|(_, left_out)| !**left_out);
            shown.into_iter().try_for_each(|(frame, _)| write!(out, " {:#x}", frame.pc()))?;
            stack.lines()
        };
        writeln!(out)?;
        labels(out, dump.snapshot.labels_of(first))?;
        lines(out, &shown)?;
    }
    // Comments for what parses this.
    if !dump.header.note.is_empty() {
        writeln!(out, "# gotrace: {}", dump.header.note)?;
    }
    incomplete(&dump.snapshot.counts).map_or(Ok(()), |what| writeln!(out, "# gotrace: incomplete: {what}"))
}

/// `# labels: {"key":"value", "other":"value"}`, where there are any.
fn labels(out: &mut dyn Write, labels: &[(Box<str>, Box<str>)]) -> io::Result<()> {
    if labels.is_empty() {
        return Ok(());
    }
    let mut sorted: Vec<_> = labels.iter().collect();
    sorted.sort();
    write!(out, "# labels: {{")?;
    for (n, (key, value)) in sorted.into_iter().enumerate() {
        if n > 0 {
            write!(out, ", ")?;
        }
        write_json(out, key)?;
        write!(out, ":")?;
        write_json(out, value)?;
    }
    writeln!(out, "}}")
}

/// A stack as Go collects it: without what the compiler made around functions.
struct Stack<'a> {
    /// The address of each physical frame's call, and how far that lies behind the beginning of its function.
    calls: Vec<(u64, u64)>,
    /// Functions, innermost first.
    named: Vec<NamedFrame<'a>>,
    /// Which physical frames have none but those that are left out.
    left_out: Vec<bool>,
}

fn stack_of<'a>(dump: &Dump<'_>, frames: &[StackFrame], names: &'a mut Names) -> Stack<'a> {
    let call = |frame: &StackFrame| {
        let pc = frame.pc().saturating_sub(u64::from(frame.is_return_address()));
        let link_time = pc.wrapping_sub(dump.snapshot.bias);
        (pc, names.binary().function_at(link_time).map_or(0, |f| link_time.wrapping_sub(f.entry)))
    };
    let calls = frames.iter().map(call).collect();
    let mut named = names.stack(frames);
    let mut left_out = vec![false; frames.len()];
    let mut shown = vec![false; frames.len()];
    let mut callee: Option<&str> = None;
    named.retain(|f| {
        // A wrapper that panicked itself is shown.
        let panics = matches!(callee, Some("runtime.gopanic" | "runtime.sigpanic" | "runtime.panicwrap"));
        callee = Some(&f.frame.function);
        let keep = !f.frame.wrapper || panics;
        if let Some(of) = if keep { shown.get_mut(f.physical) } else { left_out.get_mut(f.physical) } {
            *of = true;
        }
        keep
    });
    left_out.iter_mut().zip(shown).for_each(|(left_out, shown)| *left_out &= !shown);
    Stack { calls, named, left_out }
}

impl Stack<'_> {
    fn lines(&self) -> Vec<Line> {
        let Self { calls, named, left_out } = self;
        let line = |f: &NamedFrame<'_>| {
            let (pc, offset) = calls.get(f.physical).copied().unwrap_or((f.pc, 0));
            let place = format!("{}:{}", f.frame.file, f.frame.line);
            (pc, Some((format!("{}+{offset:#x}", f.frame.function), place)))
        };
        let mut shows = false;
        let mut lines: Vec<Line> = Vec::new();
        let mut rest = named.iter().peekable();
        for (n, ((pc, _), left_out)) in calls.iter().zip(left_out).enumerate() {
            if *left_out {
                continue;
            }
            // Outside of Go code a frame has no name.
            if rest.peek().is_none_or(|f| f.physical != n) {
                shows = true;
                lines.push((*pc, None));
            }
            while let Some(f) = rest.next_if(|f| f.physical == n) {
                let function = f.frame.function.as_str();
                let runtime = function.starts_with("runtime.") || function.starts_with("internal/runtime/");
                // Those of the runtime at the beginning are not shown, nor is where every stack ends.
                if function != "runtime.goexit" && (shows || !runtime) {
                    shows = true;
                    lines.push(line(f));
                }
            }
        }
        if !shows {
            lines.extend(named.iter().filter(|f| f.frame.function != "runtime.goexit").map(line));
        }
        lines
    }
}

/// Writes them in columns, as Go's `text/tabwriter` lays them out, and an empty line.
fn lines(out: &mut dyn Write, lines: &[Line]) -> io::Result<()> {
    for run in lines.chunk_by(|a, b| a.1.is_some() == b.1.is_some()) {
        let pcs: Vec<String> = run.iter().map(|(pc, _)| format!("{pc:#x}")).collect();
        let width = |text: &str| text.chars().count();
        let widest = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0);
        let pc_width = widest(&mut pcs.iter().map(|pc| width(pc)));
        let name_width = widest(&mut run.iter().flat_map(|(_, named)| named).map(|(name, _)| width(name)));
        for (pc, (_, named)) in pcs.iter().zip(run) {
            match named {
                None => writeln!(out, "#\t{pc}")?,
                Some((name, place)) => {
                    let (after_pc, after_name) = (tabs(width(pc), pc_width), tabs(width(name), name_width));
                    writeln!(out, "#\t{pc}{after_pc}{name}{after_name}{place}")?;
                }
            }
        }
    }
    writeln!(out)
}

/// The tabs that follow a text in a column whose widest one is so wide.
fn tabs(width: usize, widest: usize) -> String {
    let column = (widest + 1).next_multiple_of(TAB);
    "\t".repeat((column - width).div_ceil(TAB))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Filter,
            testing::{assert_golden, written},
        },
        *,
    };

    #[test]
    fn a_profile_counts_every_goroutine_and_looks_like_gos() {
        let text = written(&Filter::default(), |out, dump, names| write(out, dump, names));
        assert_golden("demo.count.txt", &text);
        let text = String::from_utf8(text).expect("text");
        let total = text.lines().next().and_then(|l| l.strip_prefix("goroutine profile: total "));
        let total: u64 = total.and_then(|n| n.parse().ok()).expect("a total");
        let counts = text.lines().filter_map(|l| l.split_once(" @ ")?.0.parse::<u64>().ok());
        assert_eq!(counts.sum::<u64>(), total);
        assert!(!text.contains("runtime.goexit"));
    }

    #[test]
    fn columns_are_those_of_tabwriter() {
        let mut out = Vec::new();
        let named = |pc, name: &str| (pc, Some((name.to_owned(), "/f.go:1".to_owned())));
        let all = [named(0x48_f1a3, "main.f+0x23"), named(0x41, "main.longer+0x123"), (0x7, None)];
        lines(&mut out, &all).expect("a vector takes it");
        let expected =
            "#\t0x48f1a3\tmain.f+0x23\t\t/f.go:1\n#\t0x41\t\tmain.longer+0x123\t/f.go:1\n#\t0x7\n\n";
        assert_eq!(String::from_utf8(out).expect("text"), expected);
    }

    #[test]
    fn labels_are_as_go_prints_them() {
        let mut out = Vec::new();
        let pair = |k: &str, v: &str| (Box::<str>::from(k), Box::<str>::from(v));
        labels(&mut out, &[pair("shop", "a \"b\""), pair("area", "x")]).expect("a vector takes it");
        labels(&mut out, &[]).expect("a vector takes it");
        assert_eq!(
            String::from_utf8(out).expect("text"),
            "# labels: {\"area\":\"x\", \"shop\":\"a \\\"b\\\"\"}\n"
        );
    }
}
