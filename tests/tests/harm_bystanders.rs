//! Who runs the same file as a traced program, and is not to be traced, has no probe in its code: no byte of
//! it differs from the file, while probes come, are there and go. And whoever is killed with `kill -9`, gotrace
//! or a traced program, takes nobody along. Needs root and `go`.

use std::{path::Path, thread, time::Duration};

use anyhow::{Result, ensure};
use gotrace_tests::{
    gobuild::Mode,
    gotrace::privileged,
    harm::{Harm, NEWEST, Place, Watcher, Way, Worker, changed, command, end, trials, until},
};

fn worker(program: &Path, more: &[&str]) -> Result<Worker> {
    Worker::start(command(&[&program.display().to_string(), "work", "1h"]).args(more))
}

/// Its code is the file's.
fn untouched(who: &str, worker: &Worker, file: &Path) -> Result<()> {
    let changed = changed(worker.pid(), file)?;
    ensure!(changed.is_empty(), "{who}: {} bytes of its code are changed: {changed:x?}", changed.len());
    Ok(())
}

/// Looks again and again, for a while.
fn stays_untouched(who: &str, worker: &Worker, file: &Path) -> Result<()> {
    for _ in 0..20 {
        untouched(who, worker, file)?;
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn have_no_probes() {
    if !privileged("harm_bystanders") {
        return;
    }
    let harm = Harm::default();
    for way in Way::all().expect("doctor tells") {
        for (mode, level) in [(Mode::Plain, "full"), (Mode::Pie, "full"), (Mode::Plain, "waits")] {
            let place = Place::new().expect("a directory");
            let program = place.program("program", NEWEST, mode).expect("it builds");
            let trace = format!("level: {level}");
            let daemon = place.daemon(way, &trace, "limits: {budget: off}\n").expect("the daemon starts");
            let name = format!("bystanders: daemon, level {level}, {}, {}", mode.name(), way.name());
            harm.trials(&name, trials(2, 25), 1, |_| {
                let before = worker(&program, &[])?;
                let traced = worker(&program, &[place.mark()])?;
                until("probes are in the one that is traced", || traced.is_probed(&program))?;
                let after = worker(&program, &[])?;
                let all = [&before, &after];
                all.iter().try_for_each(|one| stays_untouched("a bystander", one, &program))?;
                traced.end()?;
                all.iter().try_for_each(|one| stays_untouched("a bystander, after", one, &program))?;
                before.end()?;
                after.end()
            });
            end(daemon).expect("somebody was traced");
            let name = format!("bystanders: attach, level {level}, {}, {}", mode.name(), way.name());
            harm.trials(&name, trials(1, 25), 1, |_| {
                let (before, traced) = (worker(&program, &[])?, worker(&program, &[])?);
                let mut gotrace = Watcher::attach(way, traced.pid(), &["--level", level])?;
                gotrace.begins()?;
                ensure!(traced.is_probed(&program)?, "no probes: {}", gotrace.said());
                let after = worker(&program, &[])?;
                let all = [&before, &after];
                all.iter().try_for_each(|one| stays_untouched("a bystander", one, &program))?;
                gotrace.interrupt()?;
                all.iter().try_for_each(|one| untouched("a bystander, after", one, &program))?;
                untouched("who was traced", &traced, &program)?;
                [before, traced, after].into_iter().try_for_each(Worker::end)
            });
        }
    }
    harm.none();
}

/// A number that differs from trial to trial: milliseconds below 200.
fn some_time(i: usize) -> Duration {
    Duration::from_millis((i as u64).wrapping_mul(7919) * 13 % 200)
}

/// `kill -9` of gotrace, at any time from its start on.
#[test]
fn and_the_traced_outlive_gotrace() {
    if !privileged("harm_bystanders") {
        return;
    }
    let harm = Harm::default();
    for way in Way::all().expect("doctor tells") {
        let place = Place::new().expect("a directory");
        let program = place.program("program", NEWEST, Mode::Plain).expect("it builds");
        let gone = |traced: &Worker, bystander: &Worker| {
            // What a killed gotrace had begun the kernel undoes, which with perf events takes its time.
            until("its code is the file's again", || Ok(!traced.is_probed(&program)?))?;
            untouched("a bystander", bystander, &program)
        };
        let name = format!("kill -9 of gotrace: attach, {}", way.name());
        harm.trials(&name, trials(3, 50), 1, |i| {
            let (traced, bystander) = (worker(&program, &[])?, worker(&program, &[])?);
            let mut gotrace = Watcher::attach(way, traced.pid(), &["--level", "full"])?;
            match i % 3 {
                0 => gotrace.begins()?,
                1 => until("the first probes", || Ok(gotrace.has_begun() || traced.is_probed(&program)?))
                    .map(drop)?,
                _ => {}
            }
            thread::sleep(some_time(i));
            gotrace.kill()?;
            gone(&traced, &bystander)?;
            traced.end()?;
            bystander.end()
        });
        let name = format!("kill -9 of gotrace: daemon, {}", way.name());
        harm.trials(&name, trials(2, 50), 1, |i| {
            let (traced, bystander) = (worker(&program, &[place.mark()])?, worker(&program, &[])?);
            let mut daemon = place.full_daemon(way)?;
            if i % 2 == 0 {
                until("probes", || traced.is_probed(&program))?;
            }
            thread::sleep(some_time(i));
            daemon.kill()?;
            gone(&traced, &bystander)?;
            traced.end()?;
            bystander.end()
        });
    }
    harm.none();
}

/// `kill -9` of one that is traced, at any time; another is traced on, and a third was never.
#[test]
fn and_outlive_each_other() {
    if !privileged("harm_bystanders") {
        return;
    }
    let harm = Harm::default();
    for way in Way::all().expect("doctor tells") {
        let place = Place::new().expect("a directory");
        let program = place.program("program", NEWEST, Mode::Plain).expect("it builds");
        let daemon = place.full_daemon(way).expect("the daemon starts");
        let (traced, bystander) = (
            worker(&program, &[place.mark()]).expect("it starts"),
            worker(&program, &[]).expect("it starts"),
        );
        let name = format!("kill -9 of the traced: daemon, {}", way.name());
        harm.trials(&name, trials(10, 200), 1, |i| {
            let one = worker(&program, &[place.mark()])?;
            thread::sleep(some_time(i) * 2);
            one.signal(libc::SIGKILL);
            drop(one);
            // Gone or not: this one lives, and is watched by nobody.
            untouched("a bystander", &bystander, &program)?;
            changed(traced.pid(), &program).map(drop)
        });
        let name = format!("kill -9 of the traced: who is left, {}", way.name());
        let left = std::sync::Mutex::new(vec![traced, bystander]);
        harm.trials(&name, 2, 1, |_| {
            let one = left.lock().ok().and_then(|mut left| left.pop());
            one.map_or(Ok(()), Worker::end)
        });
        end(daemon).expect("somebody was traced");
        let name = format!("kill -9 of the traced: attach, {}", way.name());
        harm.trials(&name, trials(3, 50), 2, |i| {
            let (traced, bystander) = (worker(&program, &[])?, worker(&program, &[])?);
            let mut gotrace = Watcher::attach(way, traced.pid(), &["--level", "full"])?;
            if i % 3 != 0 {
                gotrace.begins()?;
            }
            thread::sleep(some_time(i));
            traced.signal(libc::SIGKILL);
            drop(traced);
            gotrace.ends()?;
            untouched("a bystander", &bystander, &program)?;
            bystander.end()
        });
    }
    harm.none();
}
