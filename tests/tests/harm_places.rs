//! Programs in all kinds of places and circumstances come to no harm: replaced while they run, by every tool's
//! way; bound over, linked twice, without a name, in a chroot, held by a debugger, under a filter of system calls;
//! from a file system that is unmounted after them, and from one that another program serves. Needs root, `go`,
//! overlayfs and bindfs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use gotrace_tests::{
    gobuild::Mode,
    gotrace::privileged,
    harm::{
        Code, Harm, Mount, NEWEST, OK, Place, Watcher, Way, Worker, changed, command, end, ends, lives,
        shell, trials, until,
    },
};

fn worker(program: &Path, mark: &str) -> Result<Worker> {
    Worker::start(&mut command(&[&program.display().to_string(), "work", "1h", mark]))
}

/// What becomes of the file `$1` while it runs, the new one being `$2`.
const CHANGES: [(&str, &str); 10] = [
    ("removed and made anew", r#"rm "$1" && cp "$2" "$1""#),
    ("renamed over", r#"cp "$2" "$1.new" && mv "$1.new" "$1""#),
    ("renamed over, then removed", r#"cp "$2" "$1.new" && mv "$1.new" "$1" && rm "$1" && cp "$2" "$1""#),
    (
        "as dpkg does",
        r#"cp "$2" "$1.dpkg-new" && ln "$1" "$1.dpkg-tmp" && mv "$1.dpkg-new" "$1" && rm "$1.dpkg-tmp""#,
    ),
    ("as rsync -t does", r#"cp "$2" "$1.x" && touch -r "$1" "$1.x" && mv "$1.x" "$1""#),
    ("a hard link more", r#"ln "$1" "$1.2""#),
    ("bound over", r#"mount --bind "$2" "$1""#),
    ("bound elsewhere", r#": >"$1.2" && mount --bind "$1" "$1.2""#),
    ("touched", r#"touch -d @0 "$1""#),
    ("other rights", r#"chmod 700 "$1" && chmod 755 "$1""#),
];

/// Makes a directory for one trial, with a program that can be changed there: plain, or in an overlay's lower
/// layer.
fn scene(place: &Place, name: &str, build: &Path, overlaid: bool) -> Result<(PathBuf, Option<Mount>)> {
    let dir = place.path(name);
    let merged = dir.join("merged");
    fs::create_dir_all(&merged)?;
    let mut mount = None;
    if overlaid {
        let [lower, upper, work] = ["lower", "upper", "work"].map(|layer| dir.join(layer));
        for layer in [&lower, &upper, &work] {
            fs::create_dir_all(layer)?;
        }
        shell("cp \"$1\" \"$2\"", &[build, &lower.join("program")])?;
        let options =
            format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        mount = Some(Mount::new("overlay", &options, &merged)?);
    } else {
        shell("cp \"$1\" \"$2\"", &[build, &merged.join("program")])?;
    }
    Ok((merged.join("program"), mount))
}

/// Runs the program, changes its file, runs what is there then; all live, and the one of them that is not to
/// be traced is left alone.
fn changed_while_it_runs(
    place: &Place,
    builds: [&Path; 2],
    scene: &Path,
    change: (&str, &str),
    watched: impl FnOnce(u32) -> Result<Option<Watcher>>,
) -> Result<()> {
    let second = scene.with_extension("2");
    let first = worker(scene, place.mark())?;
    let mut gotrace = watched(first.pid())?;
    if gotrace.is_none() {
        until("probes", || first.is_probed(builds[0]))?;
    }
    shell(change.1, &[scene, builds[1]])?;
    let _bound = match change.0 {
        "bound over" => Some(Mount::found(scene)),
        "bound elsewhere" => Some(Mount::found(&second)),
        _ => None,
    };
    let path = if second.exists() { &second } else { scene };
    let next = worker(path, if gotrace.is_none() { place.mark() } else { "" })?;
    let bystander = worker(path, "")?;
    let now = fs::read(path)?;
    let own = if now == fs::read(builds[0])? { builds[0] } else { builds[1] };
    for _ in 0..8 {
        let bytes = changed(bystander.pid(), own)?;
        ensure!(bytes.is_empty(), "{} bytes of a bystander's code are changed", bytes.len());
        thread::sleep(Duration::from_millis(25));
    }
    next.end()?;
    first.end()?;
    if let Some(gotrace) = &mut gotrace {
        gotrace.ends()?;
    }
    bystander.end()
}

#[test]
fn whose_file_is_changed() {
    if !privileged("harm_places") {
        return;
    }
    let harm = Harm::default();
    for way in Way::all().expect("doctor tells") {
        let place = Place::new().expect("a directory");
        let one = place.program("one", NEWEST, Mode::Plain).expect("it builds");
        let other = place.program("other", "1.26.6", Mode::Plain).expect("it builds");
        let builds = [&*one, &*other];
        let daemon = place.full_daemon(way).expect("the daemon starts");
        for overlaid in [false, true] {
            let on = if overlaid { "overlayfs" } else { "the machine's file system" };
            let name = format!("changed while it runs: {on}, daemon, {}", way.name());
            harm.trials(&name, CHANGES.len() * trials(1, 10), 2, |i| {
                let change = CHANGES[i % CHANGES.len()];
                let (program, _mount) = scene(&place, &format!("{overlaid}{i}"), &one, overlaid)?;
                changed_while_it_runs(&place, builds, &program, change, |_| Ok(None))
                    .map_err(|e| e.context(change.0))
            });
        }
        end(daemon).expect("somebody was traced");
        let name = format!("changed while it runs: attach, {}", way.name());
        harm.trials(&name, trials(4, CHANGES.len() * 5), 2, |i| {
            let change = CHANGES[(i * 3 + 1) % CHANGES.len()];
            let (program, _mount) = scene(&place, &format!("attach{i}"), &one, i % 2 == 0)?;
            changed_while_it_runs(&place, builds, &program, change, |pid| {
                let mut gotrace = Watcher::attach(way, pid, &["--level", "full"])?;
                gotrace.begins()?;
                Ok(Some(gotrace))
            })
            .map_err(|e| e.context(change.0))
        });
    }
    harm.none();
}

/// The words that run the program `$2` in a circumstance of its own; `$1` starts it, in directory `$3`.
const CIRCUMSTANCES: [(&str, &str); 6] = [
    ("without a name", r#"exec "$1" memfd "$2" work 500ms"#),
    ("without a name, itself", r#"exec "$1" memfd "$1" work 500ms"#),
    (
        "in a chroot",
        r#"mkdir -p "$3/root" && cp "$2" "$3/root/program" && exec chroot "$3/root" /program work 500ms"#,
    ),
    ("under a filter of system calls", r#"exec "$1" seccomp "$2" work 500ms"#),
    ("held by a debugger, then let run", r#"exec "$1" ptrace 300ms "$2" work 500ms"#),
    ("under strace", r#"exec strace -f -qq -o "$3/strace" "$2" work 500ms"#),
];

#[test]
fn in_circumstances_of_their_own() {
    if !privileged("harm_places") {
        return;
    }
    let harm = Harm::default();
    for way in Way::all().expect("doctor tells") {
        let place = Place::new().expect("a directory");
        let starter = place.program("starter", "1.24.11", Mode::Plain).expect("it builds");
        let program = place.program("program", NEWEST, Mode::Plain).expect("it builds");
        let daemon = place.full_daemon(way).expect("the daemon starts");
        let start = |by: &mut Command, name: &str, script: &str| -> Result<()> {
            let dir = place.path(name);
            fs::create_dir_all(&dir)?;
            // The word is what the script's last command ends with.
            let script = format!("{script} {}", place.mark());
            by.args(["-c", &script, "sh"]).args([&starter, &program, &dir]);
            Ok(())
        };
        for (what, script) in CIRCUMSTANCES {
            let name = format!("{what}: daemon, {}", way.name());
            harm.trials(&name, trials(2, 20), 2, |i| {
                let mut sh = Command::new("sh");
                start(&mut sh, &format!("daemon{i}"), script)?;
                lives(&mut sh, 1, &Code::default())
            });
        }
        end(daemon).expect("somebody was traced");
        for (what, script) in CIRCUMSTANCES {
            let name = format!("{what}: exec, {}", way.name());
            harm.trials(&name, trials(1, 20), 2, |i| {
                let mut gotrace = way.gotrace()?;
                gotrace.args(["exec", "--follow-children", "--quiet", "--level", "full", "--", "sh"]);
                start(&mut gotrace, &format!("exec{i}"), script)?;
                lives(&mut gotrace, 1, &Code::default())
            });
            if what.contains("debugger") || what.contains("strace") {
                // Its pid is another's than of who is started.
                continue;
            }
            let name = format!("{what}: attach, {}", way.name());
            harm.trials(&name, trials(1, 20), 2, |i| {
                let mut sh = Command::new("sh");
                start(&mut sh, &format!("attach{i}"), script)?;
                let out = tempfile::NamedTempFile::new()?;
                let mut child = sh.stdout(out.reopen()?).spawn()?;
                thread::sleep(Duration::from_millis(i as u64 * 61 % 200));
                let mut gotrace = Watcher::attach(way, child.id(), &["--level", "full"])?;
                let status = ends(&mut child)?;
                gotrace.ends()?;
                let said = fs::read_to_string(out.path())?;
                ensure!(status.success() && said == format!("ready\n{OK}\n"), "{status}: {said}");
                Ok(())
            });
        }
    }
    harm.none();
}

/// What a program was run from can be unmounted when the program has ended: gotrace does not keep it busy.
#[test]
fn on_what_is_unmounted_after_them() {
    const SOON: Duration = Duration::from_secs(5);
    if !privileged("harm_places") {
        return;
    }
    let harm = Harm::default();
    for way in Way::all().expect("doctor tells") {
        let place = Place::new().expect("a directory");
        let build = place.program("build", NEWEST, Mode::Plain).expect("it builds");
        let daemon = place.full_daemon(way).expect("the daemon starts");
        for (on, watched) in [("tmpfs", "daemon"), ("overlayfs", "daemon"), ("tmpfs", "attach")] {
            let name = format!("unmounted after its end: {on}, {watched}, {}", way.name());
            harm.trials(&name, trials(2, 20), 1, |i| {
                let (program, mount) = if on == "tmpfs" {
                    let dir = place.path(&format!("{watched}{i}"));
                    fs::create_dir_all(&dir)?;
                    let mount = Mount::new("tmpfs", "mode=755", &dir)?;
                    shell("cp \"$1\" \"$2\"", &[&build, &dir.join("program")])?;
                    (dir.join("program"), mount)
                } else {
                    let (program, mount) = scene(&place, &format!("overlay{i}"), &build, true)?;
                    (program, mount.ok_or_else(|| anyhow::anyhow!("mounted"))?)
                };
                if watched == "attach" {
                    let worker = worker(&program, "")?;
                    let mut gotrace = Watcher::attach(way, worker.pid(), &["--level", "full"])?;
                    gotrace.begins()?;
                    worker.end()?;
                    return mount.unmount(SOON);
                }
                let worker = worker(&program, place.mark())?;
                until("probes", || worker.is_probed(&build))?;
                // All of them: perf events take their time.
                let pid = worker.pid();
                until("it is traced", || Ok(daemon.metrics()?.has(pid)))?;
                worker.end()?;
                mount.unmount(SOON)
            });
        }
        end(daemon).expect("somebody was traced");
    }
    harm.none();
}

/// A file that another program serves may change under whoever runs it: nothing is put into its code, and
/// gotrace says so and takes snapshots.
#[test]
fn on_what_another_program_serves() {
    if !privileged("harm_places") {
        return;
    }
    let harm = Harm::default();
    for way in Way::all().expect("doctor tells") {
        let place = Place::new().expect("a directory");
        fs::create_dir(place.path("behind")).expect("a directory");
        fs::create_dir(place.path("served")).expect("a directory");
        let build = place.program("behind/program", NEWEST, Mode::Plain).expect("it builds");
        shell("bindfs \"$1\" \"$2\"", &[&place.path("behind"), &place.path("served")])
            .expect("bindfs serves: `cargo xtask setup` installs it");
        let mount = Mount::found(&place.path("served"));
        let program = place.path("served/program");
        let daemon = place.full_daemon(way).expect("the daemon starts");
        let name = format!("served by another program (FUSE): daemon, {}", way.name());
        harm.trials(&name, trials(1, 10), 1, |_| {
            let worker = worker(&program, place.mark())?;
            let pid = worker.pid();
            until("it is traced", || {
                ensure!(!worker.is_probed(&build)?, "probes are in its code");
                Ok(daemon.metrics()?.is_at(pid, "sampled"))
            })?;
            for _ in 0..20 {
                ensure!(!worker.is_probed(&build)?, "probes are in its code");
                thread::sleep(Duration::from_millis(20));
            }
            let said = daemon.said();
            ensure!(said.to_lowercase().contains("fuse"), "gotrace does not say why: {said}");
            worker.end()
        });
        end(daemon).expect("somebody was traced");
        let name = format!("served by another program (FUSE): attach, {}", way.name());
        harm.trials(&name, trials(1, 10), 1, |_| {
            let worker = worker(&program, "")?;
            let mut gotrace = Watcher::attach(way, worker.pid(), &[])?;
            gotrace.begins()?;
            ensure!(!worker.is_probed(&build)?, "probes are in its code");
            gotrace.interrupt()?;
            worker.end()
        });
        mount.unmount(Duration::from_secs(5)).expect("nobody keeps it busy");
    }
    harm.none();
}
