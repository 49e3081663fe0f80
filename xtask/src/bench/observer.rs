//! What watches the Go program while a sample is taken: gotrace, bpftrace, or Go's own execution tracer.

use std::{path::Path, process::Command};

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

/// bpftrace with a counting probe at the entry and at each return of the functions that gotrace probes for requests.
pub fn bpftrace_of_requests(gotrace: &Path, program: &Path, pid: u32) -> Result<Speaking> {
    let mut inspect = Command::new(gotrace);
    inspect.args(["inspect", "--format", "json", "--level", "full"]).arg(program);
    let plan: Value = serde_json::from_str(&capture(&mut inspect)?).context("reading the probe plan")?;
    let probes =
        [&plan["probes"], &plan["requests"]["points"]].into_iter().filter_map(Value::as_array).flatten();
    let mut names: Vec<&str> = probes.filter_map(|probe| probe["function"].as_str()).collect();
    names.sort_unstable();
    names.dedup();
    ensure!(names.iter().any(|name| name.contains("ServeHTTP")), "no probes of requests are planned");
    let mut places: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    // Of each line: file and line, address, code, instruction.
    let listing = capture(Command::new("go").args(["tool", "objdump"]).arg(program))?;
    let mut function: Option<(&str, Option<u64>)> = None;
    for line in listing.lines() {
        if let Some(text) = line.strip_prefix("TEXT ") {
            let name = text.split("(SB)").next().unwrap_or_default();
            function = names.contains(&name).then_some((name, None));
            continue;
        }
        let Some((name, begin)) = &mut function else { continue };
        let mut fields = line.split_whitespace().skip(1);
        let address = fields.next().and_then(|at| u64::from_str_radix(at.trim_start_matches("0x"), 16).ok());
        let Some(address) = address else { continue };
        let begin = *begin.get_or_insert(address);
        if fields.nth(1) == Some("RET") {
            places.push(format!("\"{name}\"+{}", address - begin));
        }
    }
    ensure!(places.len() > names.len(), "no returns were found");
    bpftrace(program, pid, &places)
}

/// bpftrace with a counting probe at each place, a function's name in quotes with an offset or none, when they are in place.
fn bpftrace(program: &Path, pid: u32, places: &[String]) -> Result<Speaking> {
    let path = program.display();
    // What an interval prints is read only when all probes are in place.
    let mut script = "interval:ms:100 { printf(\"ready\\n\"); }".to_owned();
    for (i, place) in places.iter().enumerate() {
        script += &format!(" uprobe:{path}:{place} {{ @c[{i}] = count(); }}");
    }
    let process = Speaking::start(Command::new("bpftrace").args(["-p", &pid.to_string(), "-e", &script]))?;
    while process.line().context("bpftrace could not attach")? != "ready" {}
    Ok(process)
}
