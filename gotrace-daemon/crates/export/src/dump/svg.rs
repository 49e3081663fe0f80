//! `dump --format svg`: a flame graph as one file that needs nothing else: outermost functions at the
//! bottom, width by number of goroutines, tooltips with counts. In a browser a click zooms in, `Reset zoom`
//! out, `Search` marks what matches a regular expression.
//!
//! Frames narrower than `MIN_WIDTH` are not drawn, and of deep stacks the middle is left out; the picture
//! says so.

use std::{
    fmt::Write as _,
    hash::BuildHasher,
    io::{self, Write},
};

use super::{Dump, flame::Flame};
use gotrace_inspect::snapshot::Names;
use gotrace_model::printable::printable;

/// Width of the picture, in pixels.
const WIDTH: f64 = 1200.0;
const SIDE: f64 = 10.0;
/// Height of a frame.
const ROW: usize = 18;
/// Above and below the frames.
const HEAD: usize = 64;
const FOOT: usize = 34;
/// Of a character.
const CHARACTER: f64 = 7.0;
/// Narrower frames are not drawn.
const MIN_WIDTH: f64 = 0.1;
/// Frames of one stack that are drawn; of deeper ones the middle is not.
const MAX_DEPTH: usize = 100;

const STYLE: &str = "<style>.f:hover rect{stroke:#000}.f,.b{cursor:pointer}.hide{display:none}\
                     .match rect{fill:#d04bd8}</style>\n";
const SCRIPT: &str = include_str!("svg.js");

/// A rectangle: a function below the same callers.
struct Rect {
    /// From 0 at the bottom, where all goroutines are.
    row: usize,
    frame: u32,
    /// Goroutines to the left.
    start: u64,
    count: u64,
}

/// Writes a picture.
///
/// # Errors
/// What the writer says.
pub fn write(out: &mut dyn Write, dump: &Dump<'_>, names: &mut Names) -> io::Result<()> {
    writeln!(out, "<?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"no\"?>")?;
    picture(out, dump, names, true)
}

/// Writes the element alone, for a page. `moves`: with styles and a script, for zoom and search.
///
/// # Errors
/// What the writer says.
pub(crate) fn picture(
    out: &mut dyn Write,
    dump: &Dump<'_>,
    names: &mut Names,
    moves: bool,
) -> io::Result<()> {
    let flame = Flame::new(dump, names);
    let (total, elided_frame) = (flame.total(), u32::try_from(flame.frames.len()).unwrap_or(u32::MAX));
    let all = elided_frame.saturating_add(1);
    let mut elided = 0;
    let mut stacks: Vec<(Vec<u32>, u64)> = Vec::with_capacity(flame.stacks.len());
    for (mut stack, count) in flame.stacks {
        if stack.len() > MAX_DEPTH {
            elided += count;
            stack.splice(MAX_DEPTH / 2..stack.len() - MAX_DEPTH / 2 + 1, [elided_frame]);
        }
        stacks.push((stack, count));
    }
    stacks.sort_unstable();
    let per_goroutine = (WIDTH - 2.0 * SIDE) / total.max(1) as f64;
    let mut narrow = 0_u64;
    let rects = rects(&stacks, all, |count| {
        let wide = count as f64 * per_goroutine >= MIN_WIDTH;
        narrow += u64::from(!wide);
        wide
    });
    let rows = rects.iter().map(|r| r.row + 1).max().unwrap_or(0);
    let height = HEAD + rows * ROW + FOOT;

    let executable = dump.header.executable;
    let program = printable(executable.rsplit('/').next().unwrap_or(executable));
    let title = format!("Goroutines of {program} (process {})", dump.snapshot.pid);
    let title = escaped(&title);
    let style = if moves { STYLE } else { "" };
    write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" version=\"1.1\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"monospace\" font-size=\"12\">\n\
         {style}<rect x=\"0\" y=\"0\" width=\"{WIDTH}\" height=\"{height}\" fill=\"#fdfdfb\"/>\n\
         <text x=\"{}\" y=\"26\" font-size=\"17\" text-anchor=\"middle\">{title}</text>\n",
        WIDTH / 2.0,
    )?;
    if moves {
        let right = WIDTH - SIDE;
        write!(
            out,
            "<text id=\"reset\" class=\"b hide\" x=\"{SIDE}\" y=\"26\">Reset zoom</text>\n\
             <text id=\"search\" class=\"b\" x=\"{right}\" y=\"26\" text-anchor=\"end\">Search</text>\n\
             <text id=\"matched\" x=\"{right}\" y=\"46\" text-anchor=\"end\"> </text>\n",
        )?;
    }
    let mut notes = Vec::new();
    if total == 0 {
        notes.push("no goroutine is wanted".to_owned());
    }
    if narrow > 0 {
        notes.push(format!("{} too narrow to draw", counted(narrow, "frame")));
    }
    if elided > 0 {
        notes.push(format!("{} without the middle of a deep stack", counted(elided, "goroutine")));
    }
    if !notes.is_empty() {
        writeln!(out, "<text x=\"{SIDE}\" y=\"46\" fill=\"#777\">{}</text>", notes.join("; "))?;
    }
    writeln!(out, "<text id=\"details\" x=\"{SIDE}\" y=\"{}\"> </text>", height - 12)?;
    writeln!(out, "<g id=\"frames\" data-total=\"{total}\">")?;
    for Rect { row, frame, start, count } in rects {
        let (name, file) = match flame.frames.get(frame as usize) {
            Some(frame) => (&*frame.name, &*frame.file),
            None if frame == elided_frame => ("[frames left out]", ""),
            None => ("all", ""),
        };
        let share = 100.0 * count as f64 / total.max(1) as f64;
        let mut tooltip = format!("{name}: {}, {share:.2}%", counted(count, "goroutine"));
        if !file.is_empty() {
            let _ = write!(tooltip, "\n{file}");
        }
        let (x, width) = (SIDE + start as f64 * per_goroutine, count as f64 * per_goroutine);
        let y = HEAD + (rows - 1 - row) * ROW;
        writeln!(
            out,
            "<g class=\"f\" data-s=\"{start}\" data-c=\"{count}\" data-n=\"{}\"><title>{}</title>\
             <rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" rx=\"2\" fill=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{}\">{}</text></g>",
            escaped(name),
            escaped(&tooltip),
            ROW - 1,
            colour(name),
            x + 3.0,
            y + ROW - 5,
            escaped(&fitting(name, width)),
        )?;
    }
    if !moves {
        return writeln!(out, "</g>\n</svg>");
    }
    writeln!(out, "</g>\n<script>//<![CDATA[\n{SCRIPT}//]]></script>\n</svg>")
}

/// Rectangles of sorted stacks; those that `wide` refuses, by their number of goroutines, are left out.
fn rects(stacks: &[(Vec<u32>, u64)], all: u32, mut wide: impl FnMut(u64) -> bool) -> Vec<Rect> {
    let mut rects = Vec::new();
    // Frames of the stack before, with the number of goroutines where each began.
    let mut open: Vec<(u32, u64)> = Vec::new();
    let mut at = 0;
    let mut close = |open: &mut Vec<(u32, u64)>, keep: usize, at: u64| {
        while open.len() > keep
            && let Some((frame, start)) = open.pop()
        {
            if wide(at - start) {
                rects.push(Rect { row: open.len() + 1, frame, start, count: at - start });
            }
        }
    };
    for (stack, count) in stacks {
        let same = open.iter().zip(stack).take_while(|((frame, _), other)| frame == *other).count();
        close(&mut open, same, at);
        open.extend(stack.iter().skip(same).map(|&frame| (frame, at)));
        at += count;
    }
    close(&mut open, 0, at);
    if at > 0 {
        rects.push(Rect { row: 0, frame: all, start: 0, count: at });
    }
    rects
}

/// `1 goroutine`, `1234 goroutines`.
fn counted(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// As much of a name as a width has place for; the path of the package goes first.
fn fitting(name: &str, width: f64) -> String {
    let places = ((width - 6.0) / CHARACTER).max(0.0) as usize;
    if name.chars().count() <= places {
        return name.to_owned();
    }
    let name = name.get(path_end(name)..).unwrap_or(name);
    match name.chars().count() {
        n if n <= places => name.to_owned(),
        _ if places < 3 => String::new(),
        _ => name.chars().take(places - 2).chain("..".chars()).collect(),
    }
}

/// Where the last element of a package's path begins. A slash within parentheses or brackets is none of
/// the path.
fn path_end(name: &str) -> usize {
    let path = &name[..name.find(['(', '[']).unwrap_or(name.len())];
    path.rfind('/').map_or(0, |slash| slash + 1)
}

/// Functions of a package have a colour in common; what goroutines do is blue.
fn colour(name: &str) -> String {
    if name == "all" || name.starts_with('[') {
        return "#b9cde4".to_owned();
    }
    let path = path_end(name);
    let package = name[path..].find('.').map_or(name, |dot| &name[..path + dot]);
    let hash = |text: &str| foldhash::fast::FixedState::with_seed(0).hash_one(text);
    let (hue, light) = (10 + hash(package) % 45, 66 + hash(name) % 10);
    format!("hsl({hue},85%,{light}%)")
}

/// Text within XML, and within HTML. Characters that XML cannot have are replaced.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' => escaped.push('\n'),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rectangles_lie_above_what_called_them() {
        // 0 calls 1 in two goroutines and 2 in three; 9 is all of them.
        let stacks = [(vec![0, 1], 2), (vec![0, 2], 3), (vec![3], 1)];
        let mut rects: Vec<_> =
            rects(&stacks, 9, |_| true).iter().map(|r| (r.row, r.frame, r.start, r.count)).collect();
        rects.sort_unstable();
        assert_eq!(rects, [(0, 9, 0, 6), (1, 0, 0, 5), (1, 3, 5, 1), (2, 1, 0, 2), (2, 2, 2, 3)]);
        assert_eq!(rects.len(), 5);
        let wide = super::rects(&stacks, 9, |count| count > 2);
        assert_eq!(wide.iter().map(|r| r.frame).collect::<Vec<_>>(), [2, 0, 9]);
    }

    #[test]
    fn names_cannot_break_out_of_the_picture() {
        assert_eq!(escaped("a<b>&\"c\u{1b}\u{0}"), "a&lt;b&gt;&amp;&quot;c\u{fffd}\u{fffd}");
        assert_eq!(fitting("net/http.(*conn).serve", 200.0), "net/http.(*conn).serve");
        assert_eq!(fitting("net/http.(*conn).serve", 140.0), "http.(*conn).serve");
        assert_eq!(fitting("net/http.(*conn).serve", 60.0), "http...");
        assert_eq!(fitting("é/é.é", 28.0), "é.é");
        assert_eq!(fitting("main.f", 5.0), "");
        assert_eq!(fitting("main.f[a/b]", 62.0), "main.f..");
    }
}
