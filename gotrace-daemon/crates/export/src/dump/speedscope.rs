//! `dump --format speedscope`: what <https://www.speedscope.app> opens (its file-format-schema.json): one
//! sampled profile whose weights are numbers of goroutines.

use std::io::{self, Write};

use serde::Serialize;

use super::{Dump, flame::Flame};
use gotrace_inspect::snapshot::Names;
use gotrace_model::printable::write_json;

#[derive(Serialize)]
struct File<'a> {
    #[serde(rename = "$schema")]
    schema: &'static str,
    name: &'a str,
    exporter: &'static str,
    shared: Shared<'a>,
    profiles: [Profile<'a>; 1],
    #[serde(rename = "activeProfileIndex")]
    active: u32,
}

#[derive(Serialize)]
struct Shared<'a> {
    frames: Vec<Frame<'a>>,
}

#[derive(Serialize)]
struct Frame<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
}

#[derive(Serialize)]
struct Profile<'a> {
    r#type: &'static str,
    name: &'a str,
    unit: &'static str,
    #[serde(rename = "startValue")]
    start: u64,
    #[serde(rename = "endValue")]
    end: u64,
    samples: Vec<&'a [u32]>,
    weights: Vec<u64>,
}

/// Writes a profile.
///
/// # Errors
/// What the writer says.
pub fn write(out: &mut dyn Write, dump: &Dump<'_>, names: &mut Names) -> io::Result<()> {
    let flame = Flame::new(dump, names);
    let executable = dump.header.executable;
    let program = executable.rsplit('/').next().unwrap_or(executable);
    let name = format!("goroutines of {program} ({})", dump.snapshot.pid);
    let frames =
        flame.frames.iter().map(|f| Frame { name: &f.name, file: (!f.file.is_empty()).then_some(&f.file) });
    let file = File {
        schema: "https://www.speedscope.app/file-format-schema.json",
        name: &name,
        exporter: concat!("gotrace ", env!("CARGO_PKG_VERSION")),
        shared: Shared { frames: frames.collect() },
        profiles: [Profile {
            r#type: "sampled",
            name: &name,
            unit: "none",
            start: 0,
            end: flame.total(),
            samples: flame.stacks.iter().map(|(s, _)| &s[..]).collect(),
            weights: flame.stacks.iter().map(|(_, count)| *count).collect(),
        }],
        active: 0,
    };
    write_json(out, &file)?;
    out.write_all(b"\n")
}
