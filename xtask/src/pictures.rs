//! `cargo xtask pictures`: the README's two pictures, made of what gotrace really shows of the demo's program: the
//! terminal view in a `tmux` of fixed size, as an SVG, and the daemon's page in Chromium, as a PNG.
//!
//! Needs root, and installs tmux, Chromium and Node. They are committed below `gotrace-daemon/docs/pictures`; look at them
//! before you commit new ones.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use flate2::read::GzDecoder;

use crate::{
    packages::architecture,
    page, svg,
    test::cargo,
    util::{apt_install, capture, root, run},
};

/// The terminal's size.
const SIZE: (u16, u16) = (120, 30);
/// How long something that is waited for may take: on a busy machine a proof, which takes 5 % of a core, minutes.
const PATIENCE: Duration = Duration::from_secs(280);
/// What a picture may have at most.
const MOST: u64 = 200_000;
/// So that a leak is proven soon.
const SOON: [&str; 6] = ["--suspect-every", "1s", "--prove-after", "3s", "--prove-every", "3s"];

/// Runs `cargo xtask pictures`.
pub fn main() -> Result<()> {
    apt_install(&["tmux"])?;
    page::setup()?;
    page::build()?;
    println!("building gotrace");
    run(&mut cargo(&["build", "--locked", "--workspace", "--bin", "gotrace"]))?;
    let target = root().join("target");
    let gotrace = target.join(format!("{}-unknown-linux-gnu/debug/gotrace", std::env::consts::ARCH));
    let pictures = root().join("gotrace-daemon/docs/pictures");
    fs::create_dir_all(&pictures).with_context(|| format!("making {}", pictures.display()))?;
    // Its path is in the picture: not one of this machine's.
    let directory = PathBuf::from(capture(Command::new("mktemp").args(["-d", "/tmp/shop.XXXXXX"]))?.trim());
    let made = unpack(&directory).and_then(|program| make(&gotrace, &program, &pictures));
    fs::remove_dir_all(&directory).with_context(|| format!("removing {}", directory.display()))?;
    made
}

/// Makes both of this program, which runs anew for each.
fn make(gotrace: &Path, program: &Path, pictures: &Path) -> Result<()> {
    let (view, page) = (pictures.join("attach.svg"), pictures.join("page.png"));
    let shop = start(program)?;
    browser(gotrace, program, &shop.0.id().to_string(), &page)?;
    drop(shop);
    let shop = start(program)?;
    let screen = terminal(gotrace, &shop.0.id().to_string())?;
    let title = "gotrace attach: a leak on top, then goroutines by creation site; below, more about one row";
    fs::write(&view, svg::draw(screen.screen(), title))?;
    for path in [view, page] {
        let bytes = fs::metadata(&path)?.len();
        println!("{}: {bytes} bytes", path.display());
        ensure!(bytes < MOST, "{} is too large to commit", path.display());
    }
    Ok(())
}

/// The program of `gotrace demo`, for this architecture.
fn unpack(directory: &Path) -> Result<PathBuf> {
    let packed = root().join(format!("gotrace-daemon/demo/demo.{}.gz", architecture()?));
    let bytes = fs::read(&packed).with_context(|| format!("reading {}", packed.display()))?;
    let path = directory.join("demo-shop");
    let mut file = File::create(&path).with_context(|| format!("writing {}", path.display()))?;
    io::copy(&mut GzDecoder::new(&bytes[..]), &mut file)
        .with_context(|| format!("unpacking {}", packed.display()))?;
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// Starts it.
fn start(program: &Path) -> Result<Ended> {
    let child = Command::new(program).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    Ok(Ended(child.with_context(|| format!("starting {}", program.display()))?))
}

/// A tmux server of its own, ended when dropped.
struct Tmux(String);

impl Tmux {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut tmux = Command::new("tmux");
        // `-f`: not the user's own configuration.
        tmux.args(["-L", &self.0, "-f", "/dev/null"]).args(arguments);
        tmux
    }

    fn screen(&self) -> Result<String> {
        capture(&mut self.command(&["capture-pane", "-p", "-e"]))
    }

    /// Until the screen has it.
    fn wait_to_see(&self, wanted: &str) -> Result<String> {
        let begin = Instant::now();
        loop {
            let screen = self.screen()?;
            if screen.contains(wanted) {
                return Ok(screen);
            }
            ensure!(begin.elapsed() < PATIENCE, "{wanted} never came:\n{screen}");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        // gotrace ends at its key, and the server with it; both fail where that has happened.
        let said = |arguments: &[&str]| {
            let status = self.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        };
        said(&["send-keys", "q"]);
        let begin = Instant::now();
        while said(&["has-session"]) && begin.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(100));
        }
        said(&["kill-server"]);
    }
}

/// What `gotrace attach` shows, with a proven leak on top and its row opened.
fn terminal(gotrace: &Path, pid: &str) -> Result<vt100::Parser> {
    let (columns, rows) = SIZE;
    let tmux = Tmux(format!("gotrace-pictures-{}", std::process::id()));
    let attach = [&["attach", pid, "--budget", "none"][..], &SOON].concat().join(" ");
    let command = format!("{} {attach}", gotrace.display());
    let (x, y) = (columns.to_string(), rows.to_string());
    run(&mut tmux.command(&["new-session", "-d", "-x", &x, "-y", &y, &command]))?;
    tmux.wait_to_see("LEAK ")?;
    run(&mut tmux.command(&["send-keys", "Enter"]))?;
    let screen = tmux.wait_to_see("created by")?;
    let mut terminal = vt100::Parser::new(rows, columns, 0);
    terminal.process(screen.trim_end_matches('\n').replace('\n', "\r\n").as_bytes());
    Ok(terminal)
}

/// A child that is ended with this.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Both fail only where it has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The page of a daemon that traces the program alone.
fn browser(gotrace: &Path, program: &Path, pid: &str, picture: &Path) -> Result<()> {
    let config = root().join("target/pictures.yaml");
    let text = format!(
        "trace: {{interval: 500ms, level: full}}\nrules:\n  include:\n  - executable: [\"{}\"]\nlimits: \
         {{suspect_every: 1s, prove_after: 3s, prove_every: 3s, proof_rest: 1, budget: off}}\n",
        program.display()
    );
    fs::write(&config, text).with_context(|| format!("writing {}", config.display()))?;
    let mut daemon = Command::new(gotrace)
        .args(["daemon", "--listen", "127.0.0.1:0", "--config"])
        .arg(&config)
        .env("GOTRACE_LOG", "info")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting the daemon")?;
    let stderr = daemon.stderr.take().context("a pipe")?;
    let _daemon = Ended(daemon);
    let address = address(stderr)?;
    let script: PathBuf = page::place().join("test/picture.mjs");
    run(Command::new("node").arg(script).args([&format!("http://{address}/"), pid]).arg(picture))
}

/// Where the daemon says that its pages are.
fn address(stderr: ChildStderr) -> Result<String> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let page = line.split_once("http://").and_then(|(_, rest)| rest.strip_suffix("/metrics"));
            if let Some(address) = page {
                let _ = tell.send(address.to_owned());
            }
        }
    });
    match told.recv_timeout(PATIENCE) {
        Ok(address) => Ok(address),
        Err(_) => bail!("the daemon serves no page: see `gotrace doctor`"),
    }
}
