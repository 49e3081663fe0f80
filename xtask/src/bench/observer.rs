//! What watches the Go program while a sample is taken: gotrace, bpftrace, or Go's own execution tracer.

use std::{collections::BTreeSet, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    Binaries,
    process::{GoProgram, Speaking},
};
use crate::util::capture;

/// The levels, from little to much.
pub const LEVELS: [&str; 3] = ["lifecycle", "waits", "full"];

/// Who watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// gotrace at a level.
    Gotrace(&'static str),
    /// bpftrace, counting calls of the functions that gotrace probes at a level.
    Bpftrace(&'static str),
    /// `runtime/trace`.
    ExecutionTracer,
}

impl Kind {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        LEVELS.into_iter().flat_map(|l| [Self::Gotrace(l), Self::Bpftrace(l)]).chain([Self::ExecutionTracer])
    }
}

/// One that watches.
pub enum Observer {
    /// A process beside the program.
    Process(Speaking),
    /// Something in the program itself.
    Inside,
}

impl Observer {
    /// Begins to watch; comes back when everything is in place.
    pub fn begin(kind: Kind, program: &mut GoProgram, binaries: &Binaries) -> Result<Self> {
        match kind {
            Kind::Gotrace(level) => {
                Ok(Self::Process(attach(&binaries.gotrace, program.pid(), &["--level", level])?))
            }
            Kind::Bpftrace(level) => {
                let functions = functions(binaries, level)?;
                Ok(Self::Process(bpftrace(&binaries.program, program.pid(), &functions)?))
            }
            Kind::ExecutionTracer => {
                program.ask("trace on")?;
                Ok(Self::Inside)
            }
        }
    }

    /// Ends.
    pub fn end(self, program: &mut GoProgram) -> Result<()> {
        match self {
            Self::Process(process) => {
                process.interrupt()?;
                process.end().map(drop)
            }
            Self::Inside => program.ask("trace off").map(drop),
        }
    }
}

/// `gotrace attach`, when its probes are in place.
pub fn attach(gotrace: &Path, pid: u32, more: &[&str]) -> Result<Speaking> {
    let mut command = Command::new(gotrace);
    // What a level costs is measured at that level, whatever it costs.
    let attach = ["attach", "--budget", "none", "--quiet", "--format", "json", "--pid", &pid.to_string()];
    command.args(attach).args(more);
    let process = Speaking::start(&mut command)?;
    let header = process.json().context("gotrace could not attach: `gotrace doctor` tells why")?;
    ensure!(header["schema"] == "gotrace.attach/1", "gotrace began with {header}");
    Ok(process)
}

/// The functions that gotrace probes at a level, in quotes.
fn functions(binaries: &Binaries, level: &str) -> Result<Vec<String>> {
    let mut inspect = Command::new(&binaries.gotrace);
    inspect.args(["inspect", "--format", "json", "--level", level]).arg(&binaries.program);
    let plan: Value = serde_json::from_str(&capture(&mut inspect)?).context("reading the probe plan")?;
    let probes = plan["probes"].as_array().context("the probe plan lists no probes")?;
    let mut names: Vec<String> =
        probes.iter().filter_map(|p| Some(p["function"].as_str()?.to_owned())).collect();
    names.sort();
    names.dedup();
    ensure!(!names.is_empty(), "the probe plan is empty");
    Ok(names.into_iter().map(|name| format!("\"{name}\"")).collect())
}

/// Entries and returns of the functions that gotrace probes for requests, as offsets in the file.
pub fn places_of_requests(gotrace: &Path, program: &Path) -> Result<Vec<String>> {
    let mut inspect = Command::new(gotrace);
    inspect.args(["inspect", "--format", "json", "--level", "full"]).arg(program);
    let plan: Value = serde_json::from_str(&capture(&mut inspect)?).context("reading the probe plan")?;
    let probes =
        [&plan["probes"], &plan["requests"]["points"]].into_iter().filter_map(Value::as_array).flatten();
    let number = |value: &Value| u64::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok();
    // All code is in one segment.
    let mut apart =
        probes.clone().filter_map(|p| number(&p["address"])?.checked_sub(number(&p["file_offset"])?));
    let apart = apart.next().context("the probe plan tells no file offsets")?;
    let names: BTreeSet<&str> = probes.filter_map(|probe| probe["function"].as_str()).collect();
    ensure!(names.iter().any(|name| name.contains("ServeHTTP")), "no probes of requests are planned");
    // Of each line: file and line, address, code, instruction.
    let listing = capture(Command::new("go").args(["tool", "objdump"]).arg(program))?;
    let (mut places, mut entries) = (Vec::new(), 0);
    let (mut wanted, mut begins) = (false, false);
    for line in listing.lines() {
        if let Some(text) = line.strip_prefix("TEXT ") {
            wanted = names.contains(text.split("(SB)").next().unwrap_or_default());
            begins = wanted;
            continue;
        }
        let mut fields = line.split_whitespace().skip(1);
        let address = fields.next().filter(|_| wanted).and_then(|at| at.strip_prefix("0x"));
        let address = address.and_then(|at| u64::from_str_radix(at, 16).ok());
        let Some(address) = address else { continue };
        let returns = fields.nth(1) == Some("RET");
        if begins || returns {
            places.push(format!("{:#x}", address - apart));
        }
        entries += usize::from(std::mem::take(&mut begins));
    }
    ensure!(entries > 0 && places.len() > entries, "no entries or no returns were found");
    Ok(places)
}

/// bpftrace with a counting probe at each place, when they are in place: the name of a function in quotes, or, in a program
/// without symbols, an offset in its file, which Debian's bpftrace takes as it is.
pub fn bpftrace(program: &Path, pid: u32, places: &[String]) -> Result<Speaking> {
    let path = program.display();
    // What an interval prints is read only when all probes are in place.
    let mut script = "interval:ms:100 { printf(\"ready\\n\"); }".to_owned();
    for (i, place) in places.iter().enumerate() {
        script += &format!(" uprobe:{path}:{place} {{ @c[{i}] = count(); }}");
    }
    let mut command = Command::new("bpftrace");
    command.args(["--unsafe", "-p", &pid.to_string(), "-e", &script]);
    let process = Speaking::start(&mut command)?;
    while process.line().context("bpftrace could not attach")? != "ready" {}
    Ok(process)
}
