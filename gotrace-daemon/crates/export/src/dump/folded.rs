//! `dump --format folded`: a line a distinct stack, `outermost;…;innermost;[chan receive] 12`, sorted, as
//! flame graph tools read it.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use super::{Dump, flame::Flame};
use gotrace_inspect::snapshot::Names;

/// Writes stacks.
///
/// # Errors
/// What the writer says.
pub fn write(out: &mut dyn Write, dump: &Dump<'_>, names: &mut Names) -> io::Result<()> {
    let flame = Flame::new(dump, names);
    // Two files may have functions of one name.
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    for (stack, count) in &flame.stacks {
        *lines.entry(line(&flame, stack)).or_insert(0) += count;
    }
    for (text, count) in lines {
        writeln!(out, "{text} {count}")?;
    }
    Ok(())
}

fn line(flame: &Flame, stack: &[u32]) -> String {
    let mut text = String::new();
    for frame in stack.iter().filter_map(|&n| flame.frames.get(n as usize)) {
        if !text.is_empty() {
            text.push(';');
        }
        // What separates frames and lines cannot be part of them.
        text.extend(frame.name.chars().map(|c| match c {
            ';' => ':',
            '\n' | '\r' => ' ',
            c => c,
        }));
    }
    text
}
