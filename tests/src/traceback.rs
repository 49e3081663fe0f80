//! Go's own tracebacks, read: what `runtime.Stack` gives and what the runtime prints on SIGQUIT. Input is
//! the text; output is a list of goroutines that can be held against what gotrace says.

use std::collections::BTreeMap;

/// A frame as a traceback prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Function, without arguments.
    pub function: String,
    /// `file:line`.
    pub position: String,
}

/// A goroutine of a traceback.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Goroutine {
    /// What it does: a status or a wait reason, without what stands in parentheses of its own.
    pub state: String,
    /// Whether it is locked to a thread.
    pub locked: bool,
    /// Its frames, innermost first.
    pub frames: Vec<Frame>,
    /// What each of them has between the parentheses.
    pub arguments: Vec<String>,
    /// Number of frames at the inner end, when the middle was left out.
    pub elided_after: Option<usize>,
    /// The function with the `go` statement, and its place.
    pub created_by: Option<Frame>,
    /// The goroutine that executed it, where the version of Go prints it.
    pub parent: Option<u64>,
}

/// Reads a traceback. The goroutine 0 of a SIGQUIT, which is a scheduler's stack, is left out.
#[must_use]
pub fn parse(text: &str) -> BTreeMap<u64, Goroutine> {
    let mut all = BTreeMap::new();
    let mut current: Option<(u64, Goroutine)> = None;
    let mut created = false;
    for line in text.lines() {
        if let Some((goid, state, locked)) = header(line) {
            all.extend(current.take());
            current = Some((goid, Goroutine { state, locked, ..Goroutine::default() }));
            created = false;
            continue;
        }
        let Some((_, goroutine)) = &mut current else { continue };
        if line.is_empty() {
            all.extend(current.take());
        } else if let Some(position) = line.strip_prefix('\t') {
            let position = position.split(' ').next().unwrap_or(position).to_owned();
            let frame = if created { goroutine.created_by.as_mut() } else { goroutine.frames.last_mut() };
            if let Some(frame) = frame {
                frame.position = position;
            }
        } else if let Some(rest) = line.strip_prefix("created by ") {
            let (function, parent) = match rest.split_once(" in goroutine ") {
                Some((function, parent)) => (function, parent.parse().ok()),
                None => (rest, None),
            };
            goroutine.created_by = Some(Frame { function: function.to_owned(), position: String::new() });
            goroutine.parent = parent;
            created = true;
        } else if line.starts_with("...") && line.contains("frames elided") {
            goroutine.elided_after = Some(goroutine.frames.len());
        } else if let Some(open) = arguments(line) {
            goroutine.arguments.push(line[open + 1..line.len() - 1].to_owned());
            goroutine.frames.push(Frame { function: line[..open].to_owned(), position: String::new() });
        }
    }
    all.extend(current);
    all.remove(&0);
    all
}

/// `goroutine 7 gp=0x… m=nil [chan receive, 2 minutes, locked to thread]:`
fn header(line: &str) -> Option<(u64, String, bool)> {
    let rest = line
        .strip_prefix("goroutine ")?
        .strip_suffix(']')
        .or(line.strip_prefix("goroutine ")?.strip_suffix("]:"))?;
    let (goid, state) = rest.split_once('[')?;
    let goid = goid.split(' ').next()?.parse().ok()?;
    let mut parts = state.split(", ");
    let mut state = parts.next()?;
    for suffix in [" (scan)", " (leaked)"] {
        state = state.strip_suffix(suffix).unwrap_or(state);
    }
    Some((goid, state.to_owned(), state_is_locked(parts)))
}

fn state_is_locked<'a>(mut attributes: impl Iterator<Item = &'a str>) -> bool {
    attributes.any(|a| a == "locked to thread")
}

/// Where the arguments of a frame begin: at the parenthesis that the last one closes.
#[must_use]
pub fn arguments(line: &str) -> Option<usize> {
    let line = line.strip_suffix(')')?;
    let mut depth = 1;
    for (at, c) in line.char_indices().rev() {
        match c {
            ')' => depth += 1,
            '(' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_runtime_prints() {
        let text = "SIGQUIT: quit\nPC=0x1 m=0\n\ngoroutine 0 gp=0x1 m=0 mp=0x2 [idle]:\nruntime.futex(0x1)\n\t/x:1\n\n\
                    goroutine 7 gp=0xc0 m=nil [chan receive, 2 minutes, locked to thread]:\n\
                    main.(*T).m(0x1, {0x2, 0x3})\n\t/a/b.go:12 +0x1d fp=0xc1 sp=0xc2 pc=0x3\n\
                    main.f[...](...)\n\t/a/c.go:3\n...3 frames elided...\npanic({0x1?, 0x2?})\n\t/p.go:4 +0x1\n\
                    created by main.main in goroutine 1\n\t/a/b.go:9 +0x11\n\nrax 0x0\n";
        let all = parse(text);
        assert_eq!(all.keys().copied().collect::<Vec<_>>(), [7]);
        let g = &all[&7];
        assert_eq!(
            (g.state.as_str(), g.locked, g.elided_after, g.parent),
            ("chan receive", true, Some(2), Some(1))
        );
        let frame = |f: &Frame| (f.function.clone(), f.position.clone());
        assert_eq!(
            g.frames.iter().map(frame).collect::<Vec<_>>(),
            [("main.(*T).m", "/a/b.go:12"), ("main.f[...]", "/a/c.go:3"), ("panic", "/p.go:4")]
                .map(|(a, b)| (a.to_owned(), b.to_owned()))
        );
        assert_eq!(frame(g.created_by.as_ref().expect("made")), ("main.main".into(), "/a/b.go:9".into()));
    }
}
