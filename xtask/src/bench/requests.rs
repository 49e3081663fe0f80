//! What tracing requests costs an HTTP server, by interleaved samples: without gotrace, at level `full`, and with
//! `gotrace requests` that tells slow requests alone, or all. The client is another process, and is not traced.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Binaries, Extent,
    agent::{cpu_seconds, resident_mib},
    build_go, median,
    observer::{attach, bpftrace, places_of_requests},
    process::{GoProgram, Speaking},
    programs::{Counting, Runs},
    report::{Bar, Report},
};
use crate::util::run;

/// CPU time of the server for an empty request on top of level `full`, in nanoseconds: where slow ones alone are told, and
/// where all are.
const ADDED_NS: [f64; 2] = [6_000.0, 10_000.0];
/// Of the throughput without gotrace, and of that at level `full`, this much is left where slow requests are told.
const LEFT_IN_ALL: f64 = 0.9;
const LEFT_OF_FULL: f64 = 0.97;
/// gotrace's own share of a core, in percent, at so many requests a second of which the slow ones alone are told, and its
/// memory.
const REQUESTS: f64 = 10_000.0;
const AGENT_PERCENT: f64 = 3.0;
const AGENT_MIB: f64 = 80.0;
/// Of what bpftrace adds at entries and returns of the same functions, gotrace may add so much.
const SHARE_OF_BPFTRACE: f64 = 0.1;
/// What a request of the server takes whose throughput is measured.
const WORK: &str = "200us";
/// Connections of the client.
const CONNECTIONS: usize = 4;

/// Who watches the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watched {
    ByNobody,
    AtLevelFull,
    /// `gotrace requests` with this `--slow`.
    Requests(&'static str),
}

const ALL: [Watched; 4] =
    [Watched::ByNobody, Watched::AtLevelFull, Watched::Requests("auto"), Watched::Requests("0ms")];

impl Watched {
    fn begin(self, server: &GoProgram, gotrace: &Path) -> Result<Option<Speaking>> {
        match self {
            Self::ByNobody => Ok(None),
            Self::AtLevelFull => attach(gotrace, server.pid(), &["--level", "full"]).map(Some),
            Self::Requests(slow) => {
                let mut command = Command::new(gotrace);
                command.args(["requests", "--budget", "none", "--format", "json", "--slow", slow]);
                let process = Speaking::start(command.args(["--pid", &server.pid().to_string()]))?;
                let header = process.json().context("gotrace could not trace requests")?;
                ensure!(header["schema"] == "gotrace.requests/1", "gotrace began with {header}");
                Ok(Some(process))
            }
        }
    }
}

/// Samples of each way, at least: one of a busy server varies by more than what is measured.
const SAMPLES: usize = 24;

/// A sample of a server under load.
struct Sample {
    /// CPU time of the server for a request.
    server_ns: f64,
    /// The same with the client's, which is not traced, but waits otherwise.
    both_ns: f64,
    /// Requests a second.
    rate: f64,
}

/// A server, and who asks it.
struct Pair {
    server: GoProgram,
    client: GoProgram,
    port: f64,
}

impl Pair {
    fn start(program: &Path, work: &str) -> Result<Self> {
        let procs = std::thread::available_parallelism().map_or(1, usize::from);
        let (mut server, client) = (GoProgram::start(program, procs)?, GoProgram::start(program, procs)?);
        let answer = server.ask(&format!("serve {work}"))?;
        let port = answer["count"].as_f64().context("the server's port")?;
        Ok(Self { server, client, port })
    }

    /// What gotrace's programs do for a request: how often they run, and for how many nanoseconds; and what it takes itself
    /// for one, in seconds of processor time, and of memory.
    fn programs(&mut self, watched: Watched, gotrace: &Path, extent: Extent) -> Result<[f64; 4]> {
        let gotrace = watched.begin(&self.server, gotrace)?.context("gotrace watches")?;
        let before = Runs::of(gotrace.pid())?;
        let cpu_before = cpu_seconds(gotrace.pid())?;
        let load = format!("load {} {CONNECTIONS} {}ms", self.port, 4 * extent.sample.as_millis());
        let count = self.client.ask(&load)?["count"].as_f64().context("a count of answers")?;
        let runs = Runs::of(gotrace.pid())?.since(before);
        let cpu = cpu_seconds(gotrace.pid())? - cpu_before;
        let resident = resident_mib(gotrace.pid())?;
        gotrace.interrupt()?;
        gotrace.end()?;
        ensure!(count > 0.0 && runs.count > 0, "nothing was answered, or the kernel counts nothing");
        Ok([runs.count as f64 / count, runs.ns as f64 / count, cpu / count, resident])
    }

    /// What bpftrace with counting probes at these places adds to a request of the server.
    fn bpftrace(&mut self, program: &Path, places: &[String], extent: Extent) -> Result<f64> {
        let mut added = Vec::new();
        for _ in 0..extent.pairs {
            let without = self.sample(extent)?;
            let bpftrace = bpftrace(program, self.server.pid(), places)?;
            added.push(self.sample(extent)?.server_ns - without.server_ns);
            bpftrace.interrupt()?;
            bpftrace.end()?;
        }
        Ok(median(added))
    }

    fn sample(&mut self, extent: Extent) -> Result<Sample> {
        let before = self.server.ask("used")?;
        let load = format!("load {} {CONNECTIONS} {}ms", self.port, extent.sample.as_millis());
        let answer = self.client.ask(&load)?;
        let after = self.server.ask("used")?;
        let of = |value: &serde_json::Value, name: &str| {
            value[name].as_f64().with_context(|| format!("no {name} in {value}"))
        };
        let count = of(&answer, "count")?;
        ensure!(count > 0.0, "nothing was answered");
        let server_ns = of(&after, "cpu_ns")? - of(&before, "cpu_ns")?;
        let both_ns = of(&answer, "cpu_ns")? + server_ns;
        let rate = count / (of(&answer, "wall_ns")? / 1e9);
        Ok(Sample { server_ns: server_ns / count, both_ns: both_ns / count, rate })
    }

    /// So many samples of each, in turns: forwards and back, so that none is always behind another one.
    fn samples(&mut self, gotrace: &Path, extent: Extent, each: usize) -> Result<[Vec<Sample>; ALL.len()]> {
        let mut samples: [Vec<Sample>; ALL.len()] = Default::default();
        self.sample(extent)?;
        for n in 0..each {
            let mut order: Vec<usize> = (0..ALL.len()).collect();
            if n % 2 == 1 {
                order.reverse();
            }
            for at in order {
                let gotrace = ALL[at].begin(&self.server, gotrace)?;
                samples[at].push(self.sample(extent)?);
                if let Some(gotrace) = gotrace {
                    gotrace.interrupt()?;
                    gotrace.end()?;
                }
            }
        }
        Ok(samples)
    }
}

/// Takes the samples and adds their medians to the report.
pub fn measure(binaries: &Binaries, extent: Extent, target: &Path, report: &mut Report) -> Result<()> {
    let program: PathBuf = build_go("web", target)?;
    let stripped = program.with_extension("stripped");
    run(Command::new("strip").arg("-o").args([&stripped, &program]))?;
    let places = places_of_requests(&binaries.gotrace, &program)?;
    let bpftrace = Pair::start(&stripped, "0s")?.bpftrace(&stripped, &places, extent)?;
    let mut pair = Pair::start(&program, "0s")?;
    let each = if extent.pairs < 9 { extent.pairs } else { SAMPLES };
    let samples = pair.samples(&binaries.gotrace, extent, each)?;
    programs(&mut pair, &binaries.gotrace, extent, report)?;
    report.add(
        "an empty request, the server: added by bpftrace, entries and returns",
        "ns",
        bpftrace,
        None,
        None,
    );
    for whose in ["the server", "server and client"] {
        let ns = |sample: &Sample| if whose == "the server" { sample.server_ns } else { sample.both_ns };
        // What one costs more than the other, sample by sample, and how far the mean of that may be off.
        let added = |of: usize, to: usize| -> (f64, f64) {
            let apart: Vec<f64> =
                samples[of].iter().zip(&samples[to]).map(|(of, to)| ns(of) - ns(to)).collect();
            (median(apart.clone()), standard_error(&apart))
        };
        let name = |what: &str| format!("an empty request, {whose}: {what}");
        let without = median(samples[0].iter().map(ns).collect());
        report.add(name("untraced"), "ns", without, None, None);
        report.add(name("added by level full"), "ns", added(1, 0).0, Some(without), None);
        for (n, (what, most)) in
            [("--slow auto", ADDED_NS[0]), ("--slow 0ms", ADDED_NS[1])].into_iter().enumerate()
        {
            let more = name(&format!("added by requests {what}"));
            let is_server = whose == "the server";
            // Beside what bpftrace adds, which was measured of the server.
            let (beside, bar) = match is_server {
                true => (bpftrace, Some(Bar::RatioAtMost(SHARE_OF_BPFTRACE))),
                false => (without, None),
            };
            report.add(&more, "ns", added(n + 2, 0).0, Some(beside), bar);
            let (to_full, error) = added(n + 2, 1);
            let bar = is_server.then_some(Bar::AtMost(most));
            report.add(format!("{more} to level full"), "ns", to_full, Some(without), bar);
            report.add(format!("{more} to level full, standard error"), "ns", error, None, None);
        }
    }
    let samples = Pair::start(&program, WORK)?.samples(&binaries.gotrace, extent, each)?;
    let rate = |n: usize| median(samples[n].iter().map(|sample| sample.rate).collect());
    report.add(format!("requests of {WORK}: untraced"), "1/s", rate(0), None, None);
    report.add(format!("requests of {WORK}: level full"), "1/s", rate(1), Some(rate(0)), None);
    let name = format!("requests of {WORK}: requests --slow auto");
    report.add(&name, "1/s", rate(2), Some(rate(0)), None);
    // Of what one serves more than the other, round by round: what the machine does besides changes from one to the next.
    for (beside, than, least) in [(0, "untraced", LEFT_IN_ALL), (1, "level full", LEFT_OF_FULL)] {
        let left: Vec<f64> =
            samples[2].iter().zip(&samples[beside]).map(|(of, to)| of.rate / to.rate).collect();
        let error = standard_error(&left);
        let name = format!("{name}, of the throughput of {than}");
        report.add(&name, "1", median(left), None, Some(Bar::AtLeast(least)));
        report.add(format!("{name}, standard error"), "1", error, None, None);
    }
    Ok(())
}

/// Of the mean of some values.
fn standard_error(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let square = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (square / n).sqrt()
}

/// What the kernel counts of gotrace's programs for an empty request.
fn programs(pair: &mut Pair, gotrace: &Path, extent: Extent, report: &mut Report) -> Result<()> {
    let _counting = Counting::begin()?;
    let mut at_full = None;
    for (watched, what) in
        ALL.into_iter().skip(1).zip(["level full", "requests --slow auto", "requests --slow 0ms"])
    {
        let [count, ns, cpu, resident] = pair.programs(watched, gotrace, extent)?;
        let (full_count, full_ns) = *at_full.get_or_insert((count, ns));
        report.add(format!("an empty request: runs of programs, {what}"), "1", count, Some(full_count), None);
        report.add(format!("an empty request: time in programs, {what}"), "ns", ns, Some(full_ns), None);
        if watched == Watched::Requests("auto") {
            let name = format!("gotrace's processor time at {REQUESTS} requests/s, {what}");
            report.add(name, "% of a core", cpu * REQUESTS * 100.0, None, Some(Bar::AtMost(AGENT_PERCENT)));
            report.add(
                format!("gotrace's memory, {what}"),
                "MiB",
                resident,
                None,
                Some(Bar::AtMost(AGENT_MIB)),
            );
        }
    }
    Ok(())
}
