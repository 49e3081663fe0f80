//! What `gotrace dump --format json` prints, read into the same shape as Go's own tracebacks, and held
//! against them. Input is the text of both; output is what disagrees.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    gotrace::binary,
    traceback::{Frame, Goroutine},
};

/// A dump.
#[derive(Clone, Debug)]
pub struct Dump {
    /// The first line.
    pub header: Value,
    /// Goroutines by goid. Whether one is locked to its thread is not in a dump: `false`; arguments are not
    /// asked for.
    pub goroutines: BTreeMap<u64, Goroutine>,
    /// What the last line says.
    pub summary: Value,
    /// What was said on standard error.
    pub warnings: String,
}

impl Dump {
    /// Runs `gotrace dump` on a process. `whole` as in [`Self::parse`].
    ///
    /// # Errors
    /// When it fails, with its words.
    pub fn take(pid: u32, more: &[&str], whole: bool) -> Result<Self> {
        let output = Command::new(binary()?)
            .args(["dump", "--pid", &pid.to_string(), "--format", "json"])
            .args(more)
            .output()
            .context("starting gotrace dump")?;
        ensure!(
            output.status.success(),
            "gotrace dump ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let dump = Self::parse(&String::from_utf8(output.stdout)?, whole)?;
        Ok(Self { warnings: String::from_utf8_lossy(&output.stderr).into_owned(), ..dump })
    }

    /// Reads the lines. `whole`: with the frames that Go's tracebacks leave out at their default level.
    ///
    /// # Errors
    /// When a line is not what it should be, with the line.
    pub fn parse(text: &str, whole: bool) -> Result<Self> {
        let mut lines = text.lines().map(|line| {
            serde_json::from_str::<Value>(line).with_context(|| format!("a line of a dump: {line:?}"))
        });
        let header = lines.next().context("an empty dump")??;
        ensure!(header["schema"] == "gotrace.dump/1", "a dump begins with {header}");
        let mut goroutines = BTreeMap::new();
        for line in lines {
            let line = line?;
            if let Some(summary) = line.get("summary") {
                return Ok(Self { header, goroutines, summary: summary.clone(), warnings: String::new() });
            }
            let goid = line["goid"].as_u64().with_context(|| format!("a goroutine of a dump: {line}"))?;
            ensure!(goroutines.insert(goid, goroutine(&line, whole)).is_none(), "goroutine {goid} twice");
        }
        anyhow::bail!("a dump without a last line, after {} goroutines", goroutines.len())
    }

    /// How much the summary counts as not read, or not read consistently.
    #[must_use]
    pub fn unread(&self) -> u64 {
        let of = |field: &str| self.summary[field].as_u64().unwrap_or(u64::MAX);
        of("stacks_incomplete")
    }
}

fn goroutine(line: &Value, whole: bool) -> Goroutine {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let frame = |f: &Value| Frame {
        function: text(&f["function"]),
        position: format!("{}:{}", text(&f["file"]), f["line"]),
    };
    let state = match &line["wait_reason"] {
        Value::String(reason) => reason.clone(),
        _ => text(&line["state"]),
    };
    let mut frames: Vec<Frame> = line["stack"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|f| whole || f["internal"] != true)
        .map(frame)
        .collect();
    for frame in &mut frames {
        // As tracebacks call it.
        if frame.function == "runtime.gopanic" {
            frame.function = "panic".to_owned();
        }
    }
    Goroutine {
        state,
        locked: false,
        frames,
        arguments: Vec::new(),
        elided_after: None,
        created_by: line.get("created_by").filter(|c| c.is_object()).map(frame),
        parent: line["parent_goid"].as_u64(),
    }
}

/// Holds goroutines of a traceback against those of a dump, one by one; `whole` as in [`Dump::parse`].
/// Gives the number of frames that were compared.
pub fn disagreements(
    ours: &BTreeMap<u64, Goroutine>,
    theirs: &BTreeMap<u64, Goroutine>,
    whole: bool,
    wrong: &mut Vec<String>,
) -> usize {
    let mut compared = 0;
    for (goid, theirs) in theirs {
        let Some(ours) = ours.get(goid) else {
            wrong.push(format!("goroutine {goid} is not in the dump: {theirs:?}"));
            continue;
        };
        let mut differs = |what: &str, a: String, b: String| {
            if a != b {
                wrong.push(format!("goroutine {goid}: {what}:\n    dump      {a}\n    traceback {b}"));
            }
        };
        differs("state", ours.state.clone(), theirs.state.clone());
        // Up to Go 1.20 runtime.Stack ends after 100 frames, hidden ones included, and does not say so.
        let silent = !whole && (90..100).contains(&theirs.frames.len()) && ours.frames.len() > 100;
        let cut = theirs.elided_after.or(silent.then_some(theirs.frames.len()));
        if cut.is_none() {
            differs("number of frames", ours.frames.len().to_string(), theirs.frames.len().to_string());
        }
        let inner = cut.unwrap_or(theirs.frames.len()).min(theirs.frames.len());
        let outer = theirs.frames.len() - inner;
        let show = |frames: &[Frame]| format!("{frames:?}");
        differs(
            "innermost frames",
            show(&ours.frames[..inner.min(ours.frames.len())]),
            show(&theirs.frames[..inner]),
        );
        let from = ours.frames.len().saturating_sub(outer);
        differs("outermost frames", show(&ours.frames[from..]), show(&theirs.frames[inner..]));
        if theirs.created_by.is_some() {
            differs("made by", format!("{:?}", ours.created_by), format!("{:?}", theirs.created_by));
        }
        if let (Some(ours), Some(theirs)) = (ours.parent, theirs.parent) {
            differs("parent", ours.to_string(), theirs.to_string());
        }
        compared += theirs.frames.len();
    }
    compared
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traceback;

    const DUMP: &str = r#"{"schema":"gotrace.dump/1","pid":1}
{"goid":7,"state":"waiting","wait_reason":"chan receive","parent_goid":1,"created_by":{"function":"main.main","file":"/a.go","line":9},"stack":[{"function":"runtime.gopark","file":"/p.go","line":4,"internal":true},{"function":"main.f","file":"/a.go","line":3,"internal":false}]}
{"summary":{"goroutines":1,"stacks_incomplete":0}}
"#;
    const TRACEBACK: &str = "goroutine 7 [chan receive]:\nmain.f(0x1)\n\t/a.go:3 +0x1\n\
                             created by main.main in goroutine 1\n\t/a.go:9 +0x2\n";

    fn wrong(traceback: &str) -> Vec<String> {
        let dump = Dump::parse(DUMP, false).expect("a dump");
        let mut wrong = Vec::new();
        disagreements(&dump.goroutines, &traceback::parse(traceback), false, &mut wrong);
        wrong
    }

    #[test]
    fn what_agrees_and_what_does_not() {
        assert_eq!(wrong(TRACEBACK), Vec::<String>::new());
        for (from, to) in [
            ("goroutine 7", "goroutine 8"),
            ("receive", "send"),
            ("main.f", "main.g"),
            ("go:9", "go:8"),
            ("in goroutine 1", "in goroutine 2"),
        ] {
            assert_eq!(wrong(&TRACEBACK.replace(from, to)).len(), 1, "{from} as {to}");
        }
    }

    #[test]
    fn a_dump_that_is_cut_off_is_an_error() {
        let cut: Vec<&str> = DUMP.lines().take(2).collect();
        assert!(Dump::parse(&cut.join("\n"), false).is_err());
        assert!(Dump::parse("", false).is_err());
    }
}
