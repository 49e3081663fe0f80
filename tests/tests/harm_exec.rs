//! A program that executes another comes to no harm, however soon it does and whoever watches: Go programs
//! that are small, that take long to read, and `gosu`; into Go programs and others, and into what was written in
//! place just before. Needs root, `go`, gosu and bash.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use gotrace_tests::{
    export::Export,
    gobuild::Mode,
    gotrace::privileged,
    harm::{
        BUILDS, Code, Harm, NEWEST, OK, Place, Watcher, Way, Worker, command, end, ends, ends_with, lives,
        shell, trials,
    },
};

/// How long who was executed works: longer than gotrace takes to read the largest file.
const WORK: &str = "600ms";

/// How long who executes another works before: not at all in half of the trials, and up to when gotrace has read
/// it and has put its probes in place.
fn first(i: usize) -> &'static str {
    ["0s", "5ms", "0s", "30ms", "0s", "100ms", "0s", "300ms"][i % 8]
}

/// What the shell works, which ends as the Go program does.
fn shell_work() -> String {
    format!("for ((i = 0; i < 60000; i++)); do ((s += i)); done; [ $s = 1799970000 ] && echo {OK}")
}

/// The programs of the trials.
struct Programs {
    place: Place,
    wrapper: PathBuf,
    big: PathBuf,
    gosu: PathBuf,
    worker: PathBuf,
    bash: PathBuf,
    code: Code,
}

/// Who executes whom.
const PAIRS: [&str; 5] = ["small", "60 MB", "gosu", "60 MB, bash", "small, bash"];

impl Programs {
    fn new() -> Result<Self> {
        let place = Place::new()?;
        let gosu = Path::new("/usr/sbin/gosu");
        ensure!(gosu.exists(), "gosu is not here: `cargo xtask setup` installs it");
        let mut this = Self {
            wrapper: place.program("wrapper", "1.24.11", Mode::Plain)?,
            big: place.program("big", NEWEST, Mode::Big)?,
            gosu: place.copy("gosu", gosu)?,
            worker: place.program("worker", NEWEST, Mode::Plain)?,
            bash: place.copy("shell", Path::new("/bin/bash"))?,
            code: Code::default(),
            place,
        };
        for program in [&this.wrapper, &this.big, &this.gosu, &this.worker, &this.bash] {
            this.code = this.code.with(program, program)?;
        }
        Ok(this)
    }

    /// The words of a pair: who executes works for `first` before, `gosu` not at all.
    fn words(&self, pair: &str, first: &str) -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        let (wrapper, executed) = pair.split_once(", ").unwrap_or((pair, "worker"));
        let mut words = match wrapper {
            "gosu" => vec![text(&self.gosu), "nobody".into()],
            "small" => vec![text(&self.wrapper), "exec".into(), first.into()],
            _ => vec![text(&self.big), "exec".into(), first.into()],
        };
        match executed {
            "bash" => words.extend([text(&self.bash), "-c".into(), shell_work()]),
            _ => words.extend([text(&self.worker), "work".into(), WORK.into()]),
        }
        words.push(self.place.mark().into());
        words
    }

    /// All of them have another time of change.
    fn touch(&self) -> Result<()> {
        let all = [&self.wrapper, &self.big, &self.gosu, &self.worker, &self.bash];
        all.into_iter().try_for_each(|program| shell("touch \"$1\"", &[program]))
    }

    fn command(&self, pair: &str, first: &str) -> Command {
        let words = self.words(pair, first);
        command(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

#[test]
fn under_the_daemon() {
    if !privileged("harm_exec") {
        return;
    }
    let programs = Programs::new().expect("the programs build");
    let harm = Harm::default();
    for way in Way::all().expect("doctor tells") {
        for level in ["full", "default"] {
            let place = &programs.place;
            let daemon = match level {
                "full" => place.full_daemon(way),
                _ => place.daemon(way, "", ""),
            };
            let daemon = daemon.expect("the daemon starts");
            for pair in PAIRS {
                let name = format!("exec: daemon, level {level}, {}: {pair}", way.name());
                harm.trials(&name, trials(4, 100), 2, |i| {
                    if i % 2 == 0 {
                        // gotrace has to read it anew, and the other one meanwhile executes what it knows.
                        programs.touch()?;
                    }
                    lives(&mut programs.command(pair, first(i)), 1, &programs.code)
                });
            }
            end(daemon).expect("somebody was traced");
        }
    }
    harm.none();
}

#[test]
fn under_attach() {
    if !privileged("harm_exec") {
        return;
    }
    let programs = Programs::new().expect("the programs build");
    let harm = Harm::default();
    for way in Way::all().expect("doctor tells") {
        for (level, pair) in [
            ("full", "small"),
            ("full", "60 MB"),
            ("full", "gosu"),
            ("full", "60 MB, bash"),
            ("waits", "small"),
        ] {
            let name = format!("exec: attach, level {level}, {}: {pair}", way.name());
            let begun = AtomicUsize::new(0);
            harm.trials(&name, trials(4, 50), 2, |i| {
                // From at once to when the probes are in place.
                let first = format!("{}ms", i * 137 % 700);
                let mut wrapper = programs.command(pair, &first);
                let out = tempfile::NamedTempFile::new()?;
                let mut child = wrapper.stdout(out.reopen()?).spawn()?;
                let mut gotrace = Watcher::attach(way, child.id(), &["--level", level])?;
                let status = ends_with(&mut child, &programs.code)?;
                gotrace.ends()?;
                begun.fetch_add(usize::from(gotrace.has_begun()), Ordering::Relaxed);
                let said = fs::read_to_string(out.path())?;
                ensure!(status.success() && said.ends_with(&format!("{OK}\n")), "{status}: {said}");
                Ok(())
            });
            eprintln!("  in {} of them probes were in place", begun.into_inner());
        }
    }
    harm.none();
}

#[test]
fn under_exec() {
    if !privileged("harm_exec") {
        return;
    }
    let programs = Programs::new().expect("the programs build");
    let harm = Harm::default();
    for way in Way::all().expect("doctor tells") {
        for (level, pair) in PAIRS.map(|p| ("full", p)).into_iter().chain([("waits", "gosu")]) {
            let name = format!("exec: exec --follow-children, level {level}, {}: {pair}", way.name());
            harm.trials(&name, trials(3, 50), 2, |i| {
                let mut gotrace = way.gotrace()?;
                gotrace.args(["exec", "--follow-children", "--quiet", "--level", level, "--"]);
                gotrace.args(["sh", "-c", "\"$@\"", "sh"]).args(programs.words(pair, first(i)));
                lives(&mut gotrace, 1, &programs.code)
            });
        }
    }
    harm.none();
}

/// A process that is traced, and writes what it executes next where it was itself executed from, again and
/// again.
#[test]
fn into_what_it_has_just_written() {
    const TURN: &str = r#"
        dir=$1 left=$2 mark=$3
        cat "$dir/build$((left % 4))" >"$dir/program"
        [ "$left" = 0 ] && exec "$dir/program" work 200ms "$mark"
        exec "$dir/program" exec 150ms /bin/sh "$dir/turn" "$dir" $((left - 1)) "$mark""#;
    if !privileged("harm_exec") {
        return;
    }
    let harm = Harm::default();
    for way in Way::all().expect("doctor tells") {
        let place = Place::new().expect("a directory");
        let daemon = place.full_daemon(way).expect("the daemon starts");
        let name = format!("exec: of what it has written in place, daemon, {}", way.name());
        harm.trials(&name, trials(2, 10), 1, |i| {
            let dir = place.path(&i.to_string());
            fs::create_dir(&dir)?;
            for (n, (version, mode)) in BUILDS.into_iter().enumerate() {
                place.program(&format!("{i}/build{n}"), version, mode)?;
            }
            fs::write(dir.join("turn"), TURN)?;
            fs::write(dir.join("program"), "")?;
            fs::set_permissions(dir.join("program"), fs::Permissions::from_mode(0o755))?;
            let mut sh = Command::new("/bin/sh");
            sh.arg(dir.join("turn")).arg(&dir).args([&trials(6, 10).to_string(), place.mark()]);
            lives(&mut sh, 1, &Code::default())
        });
        end(daemon).expect("somebody was traced");
    }
    harm.none();
}

/// Where addresses are not randomised a program that executes itself has everything where it had it before.
#[test]
fn itself_without_randomised_addresses() {
    if !privileged("harm_exec") {
        return;
    }
    let harm = Harm::default();
    for way in Way::all().expect("doctor tells") {
        // Perf events are put in place and removed one after the other, which takes a second and more.
        let (times, runs) = if way == Way::Links { (4, "500ms") } else { (2, "3s") };
        for (mode, who) in [(Mode::Plain, "attach"), (Mode::Pie, "attach"), (Mode::Plain, "daemon")] {
            let place = Place::new().expect("a directory");
            let program = place.program("program", NEWEST, mode).expect("it builds");
            let export = place.path("export.jsonl");
            let daemon = (who == "daemon").then(|| {
                let more = format!(
                    "limits: {{budget: off}}\notlp: {{export: {}}}\nspans: {{max_per_second: off}}\n",
                    export.display()
                );
                place.daemon(way, "level: full", &more).expect("the daemon starts")
            });
            let name = format!("exec: itself at the same addresses, {who}, {}, {}", mode.name(), way.name());
            harm.trials(&name, trials(2, 20), 1, |_| {
                if daemon.is_some() {
                    let mut first = Command::new("setarch");
                    first.args(["-R"]).arg(&program).args(["again", &times.to_string(), runs, place.mark()]);
                    return lives(&mut first, times + 1, &Code::default().with(&program, &program)?);
                }
                // On a busy machine an execution may be over before the probes are in place: then they take longer.
                for runs in [runs, "3s", "10s"] {
                    let (begun, said) = followed(way, &program, times, runs, &place, &export)?;
                    if begun >= times {
                        return distinct(&fs::read_to_string(&export)?);
                    }
                    eprintln!("{begun} of {} executions of {runs} were followed", times + 1);
                    ensure!(runs != "10s", "{said}");
                }
                Ok(())
            });
            if let Some(daemon) = daemon {
                end(daemon).expect("somebody was traced");
                let text = fs::read_to_string(&export).expect("it exports");
                let name = name + ", spans";
                harm.trials(&name, 1, 1, |_| distinct(&text));
            }
        }
    }
    harm.none();
}

/// Follows a program that executes itself so often, each time for so long; how many executions were followed, and what
/// gotrace said.
fn followed(
    way: Way,
    program: &Path,
    times: usize,
    runs: &str,
    place: &Place,
    export: &Path,
) -> Result<(usize, String)> {
    let out = tempfile::NamedTempFile::new()?;
    let mut first = Command::new("setarch");
    first.args(["-R"]).arg(program).args(["again", &times.to_string(), runs, place.mark()]);
    let mut child = first.stdout(out.reopen()?).spawn()?;
    // It is setarch until it is the program.
    while fs::read_link(format!("/proc/{}/exe", child.id()))? != program {
        thread::sleep(Duration::from_millis(1));
    }
    let more = ["--level", "full", "--quiet", "--export", export.to_str().unwrap_or_default()];
    let mut gotrace = Watcher::attach(way, child.id(), &more)?;
    let status = ends(&mut child)?;
    gotrace.ends()?;
    let said = fs::read_to_string(out.path())?;
    let worked = said.lines().filter(|l| *l == OK).count();
    ensure!(status.success() && worked == times + 1, "{status}: {said}");
    let said = gotrace.said();
    Ok((said.matches("\"schema\":\"gotrace.attach/1\"").count(), said))
}

/// Each span has an id of its own; there are some.
fn distinct(text: &str) -> Result<()> {
    let export = Export::parse(text)?;
    let mut ids: Vec<_> = export.spans.iter().map(|s| (&s.trace_id, &s.span_id)).collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    ensure!(all > 0, "nothing was traced");
    ensure!(ids.len() == all, "{} of {all} spans have the id of another", all - ids.len());
    Ok(())
}

/// What programs do that have children: none is hurt, nor the parent.
#[test]
fn children() {
    if !privileged("harm_exec") {
        return;
    }
    let harm = Harm::default();
    for way in Way::all().expect("doctor tells") {
        let place = Place::new().expect("a directory");
        let parent = place.program("parent", NEWEST, Mode::Plain).expect("it builds");
        let child = place.program("child", "1.26.6", Mode::Plain).expect("it builds");
        let (own, other) = (parent.display().to_string(), child.display().to_string());
        let daemon = place.full_daemon(way).expect("the daemon starts");
        // Its own file or another, that gotrace is to trace or is not.
        for (what, words) in [
            ("its own file", vec![&*own, "work", "60ms"]),
            ("its own file, traced", vec![&*own, "work", "60ms", place.mark()]),
            ("another, traced", vec![&*other, "work", "60ms", place.mark()]),
        ] {
            let name = format!("exec: children, daemon, {}: {what}", way.name());
            harm.trials(&name, trials(2, 20), 1, |_| {
                lives(
                    command(&[&own, "start", "8", "700ms"]).args(&words).arg(place.mark()),
                    1,
                    &Code::default(),
                )
            });
            if words.contains(&place.mark()) && words[0] == own {
                continue;
            }
            let what = what.trim_end_matches(", traced");
            let name = format!("exec: children, attach, {}: {what}", way.name());
            harm.trials(&name, trials(1, 20), 1, |_| {
                // Without the word: the daemon leaves them alone.
                let words = words.iter().filter(|w| **w != place.mark());
                let worker = Worker::start(command(&[&own, "start", "20", "1h"]).args(words))?;
                let mut gotrace = Watcher::attach(way, worker.pid(), &["--level", "full"])?;
                gotrace.begins()?;
                thread::sleep(Duration::from_millis(500));
                worker.end()?;
                gotrace.ends().map(drop)
            });
        }
        end(daemon).expect("somebody was traced");
    }
    harm.none();
}
