//! A file that is not what it was comes to no harm, nor gotrace to a wrong idea of it: written in place
//! between two runs, replaced by another of the same inode number, size and time, and opened for writing while
//! probes are in it. Needs root, `go` and overlayfs.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use gotrace_tests::{
    gobuild::Mode,
    gotrace::privileged,
    harm::{
        BUILDS, Code, Harm, Mount, NEWEST, Place, Watcher, Way, Worker, command, end, lives, shell, trials,
        until,
    },
};

/// Builds with one size and one time of change.
struct Alike(Vec<PathBuf>);

impl Alike {
    fn new(place: &Place) -> Result<Self> {
        let copy = |(n, (version, mode))| place.program(&format!("build{n}"), version, mode);
        let builds = BUILDS.into_iter().enumerate().map(copy).collect::<Result<Vec<_>>>()?;
        let size = builds.iter().map(|b| Ok(fs::metadata(b)?.size())).collect::<Result<Vec<_>>>()?;
        let most = *size.iter().max().context("builds")?;
        for build in &builds {
            let file = fs::File::options().write(true).open(build)?;
            file.set_len(most)?;
            file.set_modified(std::time::UNIX_EPOCH)?;
        }
        Ok(Self(builds))
    }

    /// What the code of the program there is when it is the first of them, the second, and so on.
    fn codes(&self, program: &Path) -> Result<Vec<Code>> {
        self.0.iter().map(|build| Code::default().with(program, build)).collect()
    }

    fn get(&self, i: usize) -> &Path {
        &self.0[i % self.0.len()]
    }
}

/// Runs the program for some time; it is traced.
fn run(program: &Path, code: &Code, place: &Place) -> Result<()> {
    lives(&mut command(&[&program.display().to_string(), "work", "400ms", place.mark()]), 1, code)
}

/// `kill; cat new >prog; ./prog`, without a rest.
#[test]
fn written_in_place_and_started_again() {
    if !privileged("harm_files") {
        return;
    }
    let harm = Harm::default();
    for way in Way::all().expect("doctor tells") {
        let place = Place::new().expect("a directory");
        let builds = Alike::new(&place).expect("the programs build");
        let program = place.program("program", NEWEST, Mode::Plain).expect("it builds");
        let codes = builds.codes(&program).expect("they can be read");
        let daemon = place.full_daemon(way).expect("the daemon starts");
        for signal in [libc::SIGTERM, libc::SIGKILL] {
            let name = format!("rewritten and started again: signal {signal}, daemon, {}", way.name());
            harm.trials(&name, trials(10, 100), 1, |i| {
                shell("cat \"$1\" >\"$2\"", &[builds.get(i), &program])?;
                let path = program.display().to_string();
                let code = &codes[i % codes.len()];
                let worker = Worker::start(&mut command(&[&path, "work", "1h", place.mark()]))?;
                let until = Instant::now() + Duration::from_millis([50, 150, 300, 500][i % 4]);
                while Instant::now() < until {
                    code.check(worker.pid())?;
                    thread::sleep(Duration::from_millis(20));
                }
                if signal == libc::SIGTERM {
                    return worker.end();
                }
                worker.is_probed(builds.get(i)).context("it is gone before it was killed")?;
                worker.signal(signal);
                drop(worker);
                Ok(())
            });
        }
        end(daemon).expect("somebody was traced");
    }
    harm.none();
}

/// Who looks at device, inode, size and time of change alone takes each for the one before.
#[test]
fn replaced_by_its_like() {
    const WAYS: [(&str, &str); 3] = [
        ("written in place", r#"cat "$1" >"$2" && touch -d @0 "$2""#),
        ("removed and made anew", r#"rm "$2"; cp "$1" "$2" && touch -d @0 "$2""#),
        ("renamed over", r#"cp "$1" "$2.new" && touch -d @0 "$2.new" && mv "$2.new" "$2""#),
    ];
    if !privileged("harm_files") {
        return;
    }
    let harm = Harm::default();
    for way in Way::all().expect("doctor tells") {
        for on in ["the machine's file system", "tmpfs", "overlayfs", "overlayfs over tmpfs"] {
            let place = Place::new().expect("a directory");
            let builds = Alike::new(&place).expect("the programs build");
            let _mounts = layered(&place, on, &builds).expect("it is mounted");
            let program = place.path("merged/program");
            let codes = builds.codes(&program).expect("they can be read");
            let daemon = place.full_daemon(way).expect("the daemon starts");
            for (what, script) in WAYS {
                let name = format!("replaced by its like: {what}, {on}, daemon, {}", way.name());
                harm.trials(&name, trials(3, 30), 1, |i| {
                    shell(script, &[builds.get(i), &program])?;
                    run(&program, &codes[i % codes.len()], &place)
                });
            }
            end(daemon).expect("somebody was traced");
        }
    }
    harm.none();
}

/// A directory `merged` with a program in it, on such a file system.
fn layered(place: &Place, on: &str, builds: &Alike) -> Result<Vec<Mount>> {
    let merged = place.path("merged");
    fs::create_dir(&merged)?;
    let mut mounts = Vec::new();
    match on {
        "tmpfs" => mounts.push(Mount::new("tmpfs", "mode=755", &merged)?),
        "overlayfs" | "overlayfs over tmpfs" => {
            let layers = place.path("layers");
            fs::create_dir(&layers)?;
            if on != "overlayfs" {
                mounts.push(Mount::new("tmpfs", "mode=755", &layers)?);
            }
            mounts.push(overlay(&layers, &merged, |lower| {
                shell("cp -p \"$1\" \"$2\"", &[builds.get(1), &lower.join("program")])
            })?);
        }
        _ => {}
    }
    if !merged.join("program").exists() {
        shell("cp -p \"$1\" \"$2\"", &[builds.get(1), &merged.join("program")])?;
    }
    // Last mounted, first unmounted.
    mounts.reverse();
    Ok(mounts)
}

/// Mounts directories below one over each other; the lower one is filled before.
fn overlay(layers: &Path, merged: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<Mount> {
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| layers.join(name));
    for dir in [&lower, &upper, &work] {
        fs::create_dir_all(dir)?;
    }
    fill(&lower)?;
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    Mount::new("overlay", &options, merged)
}

/// Of two layers, each with its program: one is run, then the other under its inode number, while the first
/// still runs.
#[test]
fn of_two_layers_under_one_inode_number() {
    if !privileged("harm_files") {
        return;
    }
    let harm = Harm::default();
    for way in Way::all().expect("doctor tells") {
        let place = Place::new().expect("a directory");
        let builds = Alike::new(&place).expect("the programs build");
        let daemon = place.full_daemon(way).expect("the daemon starts");
        let name = format!("upper and lower under one inode number: daemon, {}", way.name());
        harm.trials(&name, trials(3, 30), 1, |i| {
            let (layers, merged) = (place.path(&format!("layers{i}")), place.path(&format!("merged{i}")));
            fs::create_dir(&merged)?;
            let mount = overlay(&layers, &merged, |lower| {
                shell("cp -p \"$1\" \"$2\"", &[builds.get(i), &lower.join("program")])
            })?;
            let program = merged.join("program");
            let codes = builds.codes(&program)?;
            let path = program.display().to_string();
            let first = Worker::start(&mut command(&[&path, "work", "1h", place.mark()]))?;
            until("probes are in the lower one", || first.is_probed(builds.get(i)))?;
            // The upper one comes to be, first alike, under the number of the lower one.
            let number = fs::metadata(&program)?.ino();
            shell("touch -d @0 \"$1\"", &[&program])?;
            ensure!(fs::metadata(&program)?.ino() == number, "another number: the trial shows nothing");
            let second = Worker::start(&mut command(&[&path, "work", "1h", place.mark()]))?;
            thread::sleep(Duration::from_millis(200));
            second.end()?;
            // Then another, which the kernel allows behind its back.
            shell(
                "cat \"$1\" >\"$2\" && touch -d @0 \"$2\"",
                &[builds.get(i + 1), &layers.join("upper/program")],
            )?;
            run(&program, &codes[(i + 1) % codes.len()], &place)?;
            first.end()?;
            shell("cat \"$1\" >\"$2\" && touch -d @0 \"$2\"", &[builds.get(i + 2), &program])?;
            run(&program, &codes[(i + 2) % codes.len()], &place)?;
            drop(mount);
            Ok(())
        });
        end(daemon).expect("somebody was traced");
    }
    harm.none();
}

/// Who wants to write a file that has, or had, probes gets through, or is told at once that the file is being
/// executed, as without gotrace.
#[test]
fn opened_for_writing() {
    /// A lease that nobody gives back holds a writer for 45 s.
    /// Longer than an open takes that gotrace lets go, on a machine with other work; a lease that is not given up holds it for
    /// 45 s (`/proc/sys/fs/lease-break-time`).
    const AT_ONCE: Duration = Duration::from_secs(15);
    let soon = |what: &str, begun: Instant| -> Result<()> {
        ensure!(begun.elapsed() < AT_ONCE, "{what} took {:?}", begun.elapsed());
        Ok(())
    };
    if !privileged("harm_files") {
        return;
    }
    let harm = Harm::default();
    for way in Way::all().expect("doctor tells") {
        let place = Place::new().expect("a directory");
        let builds = Alike::new(&place).expect("the programs build");
        let program = place.path("program");
        let codes = builds.codes(&program).expect("they can be read");
        let fresh = |i: usize| -> Result<Worker> {
            shell("cat \"$1\" >\"$2\" && chmod 755 \"$2\"", &[builds.get(i), &program])?;
            Worker::start(&mut command(&[&program.display().to_string(), "work", "1h", place.mark()]))
        };
        let daemon = place.full_daemon(way).expect("the daemon starts");
        let name = format!("opened for writing: right after its end, daemon, {}", way.name());
        harm.trials(&name, trials(3, 50), 1, |i| {
            let worker = fresh(i)?;
            until("probes", || worker.is_probed(builds.get(i)))?;
            worker.end()?;
            let begun = Instant::now();
            let file = fs::File::options().write(true).truncate(true).open(&program)?;
            soon("opening", begun)?;
            drop(file);
            Ok(())
        });
        let name = format!("opened for writing: while it runs, daemon, {}", way.name());
        harm.trials(&name, trials(3, 50), 1, |i| {
            let worker = fresh(i)?;
            if i % 3 != 0 {
                until("probes", || worker.is_probed(builds.get(i)))?;
            }
            let begun = Instant::now();
            let opened = fs::File::options().write(true).open(&program);
            soon("opening", begun)?;
            ensure!(opened.is_err_and(|e| e.raw_os_error() == Some(libc::ETXTBSY)), "it could be opened");
            worker.end()
        });
        let name = format!("opened for writing: by what it executes, daemon, {}", way.name());
        harm.trials(&name, trials(3, 50), 1, |i| {
            shell("cat \"$1\" >\"$2\" && chmod 755 \"$2\"", &[builds.get(i), &program])?;
            let first = Duration::from_millis(300);
            let mut traced = Command::new(&program);
            traced.args(["exec", &format!("{}ms", first.as_millis()), "/bin/sh", "-c"]);
            traced.arg("exec 3<>\"$1\" && exec 3<&- && exec \"$1\" work 200ms");
            traced.args(["sh"]).arg(&program).arg(place.mark());
            let begun = Instant::now();
            lives(&mut traced, 1, &codes[i % codes.len()])?;
            soon("opening", begun)
        });
        // The kernel lets the layer below an overlay be written while the program runs.
        let name = format!("opened for writing: the layer below, daemon, {}", way.name());
        harm.trials(&name, trials(3, 50), 1, |i| {
            let (layers, merged) = (place.path(&format!("layers{i}")), place.path(&format!("merged{i}")));
            fs::create_dir(&merged)?;
            let mount = overlay(&layers, &merged, |_| Ok(()))?;
            let path = merged.join("program");
            shell("cp \"$1\" \"$2\"", &[builds.get(i), &path])?;
            let worker =
                Worker::start(&mut command(&[&path.display().to_string(), "work", "1h", place.mark()]))?;
            until("probes", || worker.is_probed(builds.get(i)))?;
            let begun = Instant::now();
            let file = fs::File::options().write(true).open(layers.join("upper/program"))?;
            soon("opening", begun)?;
            thread::sleep(Duration::from_millis(100));
            drop(file);
            thread::sleep(Duration::from_millis(100));
            worker.end()?;
            drop(mount);
            Ok(())
        });
        end(daemon).expect("somebody was traced");
        let name = format!("opened for writing: right after its end, attach, {}", way.name());
        harm.trials(&name, trials(2, 50), 1, |i| {
            shell("cat \"$1\" >\"$2\" && chmod 755 \"$2\"", &[builds.get(i), &program])?;
            let worker = Worker::start(&mut command(&[&program.display().to_string(), "work", "1h"]))?;
            let mut gotrace = Watcher::attach(way, worker.pid(), &["--level", "full"])?;
            gotrace.begins()?;
            worker.end()?;
            let begun = Instant::now();
            shell("cat \"$1\" >\"$2\"", &[builds.get(i + 1), &program])?;
            soon("writing", begun)?;
            gotrace.ends().map(drop)
        });
    }
    harm.none();
}
