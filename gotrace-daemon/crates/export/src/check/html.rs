//! `check --html FILE`: a report that can be sent to somebody: one file that loads nothing and runs nothing, with the
//! verdict, each finding with its stacks, holders and reason, what was checked and what was not, who waits for which lock
//! and channel, and a flame graph of all goroutines.
//!
//! What the program chose (names, paths, peers) is escaped, and the page's own policy forbids every script, form and
//! request, whatever stands in it.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use sha2::{Digest as _, Sha256};

use super::{Report, Weight, markdown::utc};
use crate::{
    dump::{
        Dump,
        svg::{escaped, picture},
    },
    leaks::text::{finding, looked, proof},
    reading::{Lock, Locks},
    text::duration,
};
use gotrace_inspect::snapshot::Names;
use gotrace_model::printable::printable;

/// Legible in light and dark, on paper and on a telephone.
const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:15px/1.5 system-ui,sans-serif;max-width:78rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}\
pre{overflow:auto;padding:.8rem;border:1px solid #8886;border-radius:6px;font-size:13px;line-height:1.4}\
summary{cursor:pointer;font-weight:600}\
.problem summary{color:#c62828}.warning summary{color:#b26a00}\
dt{font-weight:600}dd{margin:0 0 .4rem 0}\
table{border-collapse:collapse;font-size:13px}th,td{text-align:left;vertical-align:top;padding:.3rem .8rem .3rem 0;\
border-bottom:1px solid #8884}td.n{text-align:right}\
figure{margin:0;overflow:auto}figure svg{max-width:100%;height:auto}";

/// Writes it. `goroutines`: all that there are at the end; `None` where that is not known any more. `locks`: who waits for
/// whom then, or why that is not known.
///
/// # Errors
/// What the writer says.
pub fn write(
    out: &mut dyn Write,
    report: Report<'_>,
    goroutines: Option<&Dump<'_>>,
    locks: Option<&Result<Locks, String>>,
    names: &mut Names,
) -> io::Result<()> {
    let Report { header, coverage, next, .. } = report;
    let name = header.executable.rsplit('/').next().unwrap_or(header.executable);
    let title = format!("{} (pid {}): {}", text(name), header.pid, text(&report.verdict()));
    let hash = BASE64_STANDARD.encode(Sha256::digest(STYLE.as_bytes()));
    writeln!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-{hash}'; \
         base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<dl>"
    )?;
    let mut facts = vec![
        ("executable", header.executable.to_owned()),
        ("built with", header.go_version.to_owned()),
        ("checked", format!("{} for {}", utc(header.time_unix_nano), duration(Some(header.duration_ns)))),
        ("goroutines", looked(header)),
    ];
    facts.extend(header.proof.and_then(proof).map(|line| ("heap", line)));
    facts.push(("by", format!("gotrace {}", env!("CARGO_PKG_VERSION"))));
    for (what, value) in facts {
        writeln!(out, "<dt>{what}</dt><dd>{}</dd>", text(&value))?;
    }
    writeln!(out, "</dl>")?;
    for weight in Weight::ALL {
        let (class, mut title) = match weight {
            Weight::Problem => ("problem", Some("Problems")),
            Weight::Warning => ("warning", Some("Warnings")),
            Weight::Known => ("known", Some("Known")),
        };
        for found in report.of(weight) {
            if let Some(title) = title.take() {
                writeln!(out, "<h2>{title}</h2>")?;
            }
            let count = found.count();
            let s = if count == 1 { "" } else { "s" };
            let runs =
                names.runs(found.entry_pc, &found.stack).map_or("?".to_owned(), |f| f.function.clone());
            writeln!(
                out,
                "<details open class=\"{class}\"><summary>{}: {count} goroutine{s} of {}</summary>",
                found.verdict.name(),
                text(&runs)
            )?;
            let mut block = Vec::new();
            finding(&mut block, found, header.outside, names)?;
            let block = String::from_utf8_lossy(&block);
            let lines = block.lines().map(|line| line.strip_prefix("  ").unwrap_or(line));
            let lines = lines.collect::<Vec<_>>().join("\n");
            writeln!(out, "<pre>{}</pre></details>", escaped(&lines))?;
        }
        for condition in report.conditions(weight) {
            if let Some(title) = title.take() {
                writeln!(out, "<h2>{title}</h2>")?;
            }
            write!(
                out,
                "<details open class=\"{class}\"><summary>{}</summary><p>{}</p>",
                condition.name,
                text(&condition.sentence)
            )?;
            if !condition.details.is_empty() {
                write!(out, "<pre>{}</pre>", escaped(condition.details.trim_end()))?;
            }
            writeln!(out, "</details>")?;
        }
    }
    let mut checked = String::new();
    for &verdict in &coverage.checked {
        let _ = writeln!(checked, "<li>{}: {}</li>", verdict.name(), text(&report.result(verdict)));
    }
    if let Some(throttling) = &coverage.throttling {
        let _ = writeln!(checked, "<li>throttling: {}</li>", text(&throttling.sentence()));
    }
    if let Some(requests) = report.requests {
        let _ = writeln!(checked, "<li>slow: {}</li>", text(&requests.sentence()));
    }
    list(out, "Checked", if checked.is_empty() { "<li>nothing</li>" } else { &checked })?;
    let mut left = String::new();
    for item in &coverage.not_checked {
        let _ = writeln!(left, "<li>{}: {}</li>", text(&item.what), text(&item.why));
    }
    list(out, "Not checked", &left)?;
    let mut commands = String::new();
    for (command, purpose) in next {
        let _ = writeln!(commands, "<li><code>{}</code>: {purpose}</li>", text(command));
    }
    list(out, "Next", &commands)?;
    if let Some(locks) = locks {
        who_waits(out, locks)?;
    }
    if let Some(dump) = goroutines {
        writeln!(out, "<h2>All goroutines</h2>\n<figure>")?;
        picture(out, dump, names, false)?;
        writeln!(out, "</figure>")?;
    }
    writeln!(out, "</body>\n</html>")
}

/// Who waits for which lock and channel, and who holds it.
fn who_waits(out: &mut dyn Write, locks: &Result<Locks, String>) -> io::Result<()> {
    writeln!(out, "<h2>Locks and channels</h2>")?;
    let Locks { notes, objects } = match locks {
        Ok(locks) => locks,
        Err(why) => return writeln!(out, "<p>Who waits for whom is not known: {}</p>", text(why)),
    };
    if objects.is_empty() {
        writeln!(out, "<p>No goroutine waits for a lock or a channel.</p>")?;
    } else {
        writeln!(
            out,
            "<table>\n<tr><th>lock or channel<th>waiting<th>who waits<th>who holds or uses it</tr>"
        )?;
    }
    for Lock { name, waiting, waiters, held_by, .. } in objects {
        let cells = [name, waiters, held_by].map(|cell| text(cell));
        let [name, waiters, held_by] = cells;
        writeln!(out, "<tr><td>{name}<td class=\"n\">{waiting}<td>{waiters}<td>{held_by}</tr>")?;
    }
    if !objects.is_empty() {
        writeln!(out, "</table>")?;
    }
    let notes: String = notes.iter().map(|note| format!("<li>{}</li>\n", text(note))).collect();
    if notes.is_empty() { Ok(()) } else { writeln!(out, "<ul>\n{notes}</ul>") }
}

fn list(out: &mut dyn Write, title: &str, items: &str) -> io::Result<()> {
    if items.is_empty() { Ok(()) } else { writeln!(out, "<h2>{title}</h2>\n<ul>\n{items}</ul>") }
}

/// A text of one line in which nothing is markup.
fn text(text: &str) -> String {
    escaped(&printable(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(locks: &Result<Locks, String>) -> String {
        let mut out = Vec::new();
        who_waits(&mut out, locks).expect("a vector takes everything");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn who_waits_for_whom_is_a_table_in_which_nothing_is_markup() {
        let lock = Lock {
            name: "mutex, 0xc000012340".into(),
            waiting: 8,
            waiters: "8 × main.<script>".into(),
            held_by: "held by main.bookkeeper (books.go:5)".into(),
            ..Lock::default()
        };
        let notes = vec!["holders of 3 locks were not looked for".into()];
        let html = written(&Ok(Locks { notes, objects: vec![lock] }));
        for part in [
            "<td>mutex, 0xc000012340<td class=\"n\">8<td>8 × main.&lt;script&gt;",
            "held by main.bookkeeper",
            "<li>holders of 3",
        ] {
            assert!(html.contains(part), "{part} in {html}");
        }
        assert!(written(&Ok(Locks::default())).contains("No goroutine waits"));
        assert!(written(&Err("it has <exited>".into())).contains("not known: it has &lt;exited&gt;"));
    }
}
