//! What `gotrace daemon` takes on a node: processor time and memory with 50 Go processes of 5 binaries, at
//! rest and while they make 10,000 goroutines a second; how soon a process that has just started is seen; how
//! long it takes to put probes into 100 binaries and to leave them.
//!
//! Everything that is traced was started here: the rules take executables below a directory of the bench's own.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    Binaries, Extent,
    agent::{cpu_seconds, milliseconds, resident_mib},
    median,
    process::{GoProgram, Speaking},
    report::{Bar, Report},
};

/// Processes, the binaries that they run, and the goroutines that all of them make in a second.
const PROCESSES: usize = 50;
const BINARIES: usize = 5;
const RATE: usize = 10_000;
/// Binaries that are attached to at once, a process each.
const FILES: usize = 100;

/// Most processes that have probes at once, in this bench and others.
const MOST: usize = 256;

/// Most of a core, in percent: under load and at rest.
const LOADED: f64 = 5.0;
const RESTING: f64 = 0.2;
/// Most resident memory, in MiB.
const RESIDENT_MIB: f64 = 120.0;
/// From the start of a process to its first event, in milliseconds.
const FIRST_EVENT_MS: f64 = 250.0;
/// To attach to all binaries, and to leave all, in milliseconds.
const ALL_MS: f64 = 5_000.0;

/// How long anything may take to be seen on the daemon's page.
const PATIENCE: Duration = Duration::from_secs(60);
/// What is not a figure: time for the first snapshots, and for what was begun to be over.
const SETTLING: Duration = Duration::from_secs(5);

/// Takes all figures.
pub fn measure(binaries: &Binaries, extent: Extent, target: &Path, report: &mut Report) -> Result<()> {
    let place = Place::new(&target.join("bench-daemon"))?;
    load(binaries, extent, &place, report)?;
    first_events(binaries, extent, &place, report)?;
    for level in ["lifecycle", "full"] {
        attach_all(binaries, extent, &place, level, report)?;
    }
    Ok(())
}

/// At rest, then with goroutines born; with figures on the page alone, and with each goroutine as a span.
fn load(binaries: &Binaries, extent: Extent, place: &Place, report: &mut Report) -> Result<()> {
    let files = place.files(&binaries.program, "load", BINARIES)?;
    let mut programs =
        (0..PROCESSES).map(|n| GoProgram::start(&files[n % BINARIES], 1)).collect::<Result<Vec<_>>>()?;
    let command = format!("churn {} {}ms", RATE / PROCESSES, extent.load.as_millis());
    let mut collector = Speaking::start(Command::new(&binaries.line).arg("receive"))?;
    let endpoint =
        collector.json()?["endpoint"].as_str().context("the collector told no endpoint")?.to_owned();
    for (name, endpoint) in [("", None), (", each goroutine a span", Some(endpoint))] {
        let config = place.config("level: lifecycle", endpoint.as_deref())?;
        let daemon = Daemon::start(&binaries.gotrace, &config)?;
        daemon.until(PATIENCE, "all processes are traced", |page| {
            page.sum("gotrace_processes", "gotrace_engine=\"events\"") == PROCESSES as f64
        })?;
        thread::sleep(SETTLING);
        if endpoint.is_none() {
            // Until each has been reported on more than once, and then for as long as everything comes by that comes
            // by at rest: a snapshot of each, a look for suspects, a look at all of `/proc`.
            thread::sleep(extent.load * 2);
            let resting = daemon.share_during(|| {
                thread::sleep(extent.load * 4);
                Ok(())
            })?;
            let name = format!("daemon: {PROCESSES} processes at rest");
            report.add(name, "% of a core", resting * 100.0, None, Some(Bar::AtMost(RESTING)));
        }
        let mut made = 0.0;
        let share = daemon.share_during(|| {
            for program in &mut programs {
                program.tell(&command)?;
            }
            for program in &mut programs {
                made += program.answer()?["count"].as_f64().unwrap_or(0.0);
            }
            Ok(())
        })?;
        let resident = resident_mib(daemon.pid())?;
        daemon.until(PATIENCE, "all births are counted or lost", |page| {
            let churned = "gotrace_created_by_function_name=\"main.churn\"";
            let lost = page.sum("gotrace_events_lost_total", "");
            page.sum("gotrace_goroutine_created_total", churned) + lost >= made
        })?;
        let page = daemon.page()?;
        let rate = made / extent.load.as_secs_f64();
        report.add(format!("daemon: goroutines{name}"), "1/s", rate, None, None);
        let bar = Some(Bar::AtMost(LOADED));
        report.add(format!("daemon: processor time{name}"), "% of a core", share * 100.0, None, bar);
        let bar = Some(Bar::AtMost(RESIDENT_MIB));
        report.add(format!("daemon: resident memory{name}"), "MiB", resident, None, bar);
        let lost = page.sum("gotrace_events_lost_total", "");
        report.add(format!("daemon: events lost{name}"), "events", lost, None, None);
        daemon.end()?;
    }
    collector.hush();
    let received = collector.json()?["spans"].as_f64().unwrap_or(0.0);
    report.add("daemon: spans received", "spans", received, None, None);
    collector.end()?;
    for program in programs {
        program.end()?;
    }
    Ok(())
}

/// From the start of a process until its first goroutine stands on the page. The page is made anew every
/// 100 ms, which is in the figure.
fn first_events(binaries: &Binaries, extent: Extent, place: &Place, report: &mut Report) -> Result<()> {
    let files = place.files(&binaries.program, "first", extent.pairs + 1)?;
    let config = place.config("level: lifecycle, interval: 100ms", None)?;
    let daemon = Daemon::start(&binaries.gotrace, &config)?;
    let first_of = |file: &Path| -> Result<f64> {
        let begun = Instant::now();
        let mut program = GoProgram::start(file, 1)?;
        program.tell("churn 1000 2s")?;
        let label = format!("process_pid=\"{}\"", program.pid());
        daemon.until(PATIENCE, "its first goroutine is counted", |page| {
            page.sum("gotrace_goroutine_created_total", &label) > 0.0
        })?;
        let took = milliseconds(begun.elapsed());
        program.answer()?;
        program.end()?;
        Ok(took)
    };
    let (known, new) = files.split_first().context("files")?;
    first_of(known)?;
    let known = new.iter().map(|_| first_of(known)).collect::<Result<_>>()?;
    let new = new.iter().map(|file| first_of(file)).collect::<Result<_>>()?;
    let bar = Some(Bar::AtMost(FIRST_EVENT_MS));
    report.add("daemon: exec to first event on the page, known binary", "ms", median(known), None, bar);
    report.add("daemon: exec to first event on the page, new binary", "ms", median(new), None, bar);
    daemon.end()?;
    Ok(())
}

/// From the start of the daemon until all binaries have probes, and from the signal to its end.
fn attach_all(
    binaries: &Binaries,
    extent: Extent,
    place: &Place,
    level: &str,
    report: &mut Report,
) -> Result<()> {
    let files = place.files(&binaries.program, "all", FILES)?;
    let programs = files.iter().map(|file| GoProgram::start(file, 1)).collect::<Result<Vec<_>>>()?;
    let config = place.config(&format!("level: {level}"), None)?;
    let (mut attached, mut detached) = (Vec::new(), Vec::new());
    for _ in 0..extent.snapshots {
        let begun = Instant::now();
        let daemon = Daemon::start(&binaries.gotrace, &config)?;
        daemon.until(PATIENCE, "all files have probes", |page| {
            page.sum("gotrace_probed_files", "") == FILES as f64
        })?;
        attached.push(milliseconds(begun.elapsed()));
        thread::sleep(SETTLING);
        detached.push(milliseconds(daemon.end()?));
    }
    let bar = Some(Bar::AtMost(ALL_MS));
    report.add(
        format!("daemon: attach to {FILES} binaries, level {level}"),
        "ms",
        median(attached),
        None,
        bar,
    );
    report.add(
        format!("daemon: leave {FILES} binaries and end, level {level}"),
        "ms",
        median(detached),
        None,
        bar,
    );
    for program in programs {
        program.end()?;
    }
    Ok(())
}

/// A directory for what is traced; removed when dropped.
pub struct Place(PathBuf);

impl Place {
    /// An empty one.
    pub fn new(path: &Path) -> Result<Self> {
        // What an earlier run left, if anything.
        let _ = fs::remove_dir_all(path);
        fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path.to_path_buf()))
    }

    /// Copies of the program, each a file of its own.
    pub fn files(&self, program: &Path, name: &str, count: usize) -> Result<Vec<PathBuf>> {
        let copy = |n| {
            let file = self.0.join(format!("{name}{n}"));
            if !file.exists() {
                fs::copy(program, &file).with_context(|| format!("copying to {}", file.display()))?;
            }
            Ok(file)
        };
        (0..count).map(copy).collect()
    }

    /// A configuration whose rules take what is in this place.
    pub fn config(&self, trace: &str, endpoint: Option<&str>) -> Result<PathBuf> {
        let directory = self.0.display();
        let limits = format!("limits: {{processes: {MOST}}}");
        let mut text = format!(
            "trace: {{{trace}}}\nrules:\n  include:\n  - executable: [\"{directory}/**\"]\n{limits}\n"
        );
        if let Some(endpoint) = endpoint {
            text += &format!("otlp: {{endpoint: \"{endpoint}\", protocol: grpc}}\n");
        }
        let path = self.0.join("gotrace.yaml");
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // It lies in the target directory, and the next run begins by removing it.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running `gotrace daemon`, and the address of its pages.
pub struct Daemon {
    process: Speaking,
    address: String,
}

impl Daemon {
    fn start(gotrace: &Path, config: &Path) -> Result<Self> {
        Self::start_with(gotrace, config, &[])
    }

    /// Starts it with this configuration and these variables; comes back when it serves its pages.
    pub fn start_with(gotrace: &Path, config: &Path, variables: &[(&str, &str)]) -> Result<Self> {
        // What it says goes to its standard error.
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$0\" \"$@\" 2>&1"]).arg(gotrace).args([
            "daemon",
            "--listen",
            "127.0.0.1:0",
        ]);
        command.envs(variables.iter().copied());
        let process = Speaking::start(command.args(["--budget", "off", "--config"]).arg(config))?;
        loop {
            let line = process.line().context("gotrace daemon serves no pages")?;
            if let Some((_, address)) = line.split_once("http://") {
                let address = address.trim_end_matches("/metrics").to_owned();
                return Ok(Self { process, address });
            }
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its page.
    pub fn page(&self) -> Result<Page> {
        let mut stream = TcpStream::connect(&self.address).context("connecting to gotrace daemon")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: gotrace\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("reading gotrace daemon's page")?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "gotrace daemon answered {answer:.80}");
        Ok(Page(answer))
    }

    /// Waits until something is true of its page.
    pub fn until(&self, within: Duration, what: &str, holds: impl Fn(&Page) -> bool) -> Result<()> {
        let begun = Instant::now();
        while !holds(&self.page()?) {
            if begun.elapsed() > within {
                bail!("within {within:?} not true: {what}; the page:\n{}", self.page()?.0);
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Its share of a core while something runs.
    fn share_during(&self, run: impl FnOnce() -> Result<()>) -> Result<f64> {
        let (begun, before) = (Instant::now(), cpu_seconds(self.pid())?);
        run()?;
        Ok((cpu_seconds(self.pid())? - before) / begun.elapsed().as_secs_f64())
    }

    /// Has it end; how long that took.
    pub fn end(self) -> Result<Duration> {
        self.end_within(PATIENCE)
    }

    /// The same, with more patience.
    pub fn end_within(self, patience: Duration) -> Result<Duration> {
        let begun = Instant::now();
        self.process.interrupt()?;
        self.process.end_within(patience)?;
        Ok(begun.elapsed())
    }
}

/// The page for Prometheus.
pub struct Page(String);

impl Page {
    /// The sum of the series of a metric whose labels contain this text.
    pub fn sum(&self, name: &str, label: &str) -> f64 {
        let series = self.0.lines().filter_map(|line| line.strip_prefix(name));
        series
            .filter(|rest| rest.starts_with(['{', ' ']) && rest.contains(label))
            .filter_map(|rest| rest.rsplit_once(' ')?.1.trim().parse::<f64>().ok())
            // The sum of nothing would be -0.
            .fold(0.0, |sum, value| sum + value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_by_name_and_label() {
        let page = Page("a{x=\"1\"} 2\na{x=\"2\"} 3\r\nab{x=\"1\"} 7\na 5\n# a 9\n".into());
        assert_eq!(page.sum("a", ""), 10.0);
        assert_eq!(page.sum("a", "x=\"1\""), 2.0);
        assert_eq!(page.sum("b", ""), 0.0);
    }
}
