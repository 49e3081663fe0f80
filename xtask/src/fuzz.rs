//! `cargo xtask fuzz`: libFuzzer on everything that parses (`tests/fuzz`), with stable Rust. New inputs go to
//! `target/fuzz`; what is kept is read from `tests/fuzz/corpus`, and only grows by hand.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    setup,
    test::cargo,
    util::{root, run},
};

/// What to try, and for how long.
#[derive(Debug, Args)]
pub struct Options {
    /// Try these targets only (comma-separated)
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub only: Vec<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 900, value_name = "SECONDS")]
    pub seconds: u32,
    /// Where chance begins; another each time unless given
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u32>,
}

/// Runs `cargo xtask fuzz`.
pub fn main(options: &Options) -> Result<()> {
    setup::compilers()?;
    let corpus = root().join("tests/fuzz/corpus");
    let mut targets = Vec::new();
    for entry in fs::read_dir(&corpus).with_context(|| format!("reading {}", corpus.display()))? {
        targets.push(entry?.file_name().to_string_lossy().into_owned());
    }
    targets.sort();
    if let Some(name) = options.only.iter().find(|name| !targets.contains(name)) {
        bail!("no target {name}: there are {}", targets.join(", "));
    }
    targets.retain(|name| options.only.is_empty() || options.only.contains(name));
    let program = build()?;
    // One a processor, as each takes one whole.
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    for some in targets.chunks(processors) {
        let started = some.iter().map(|name| Trial::start(&program, name, options));
        let trials = started.collect::<Result<Vec<_>>>()?;
        for trial in trials {
            trial.finish(&program)?;
        }
    }
    Ok(())
}

/// Builds the crates of this workspace with counters, in a target directory of its own: cargo's lock of the other one
/// would hold up the tests that run beside. Dependencies are those of all other builds, as hard links.
fn build() -> Result<PathBuf> {
    let arguments = ["build", "--locked", "--workspace", "--bin", "gotrace-fuzz"];
    let mut cargo = cargo(&arguments);
    let triple = cargo
        .get_envs()
        .find(|(name, _)| *name == "CARGO_BUILD_TARGET")
        .and_then(|(_, value)| value)
        .map_or_else(PathBuf::new, PathBuf::from);
    let from = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let to = root().join("target/fuzz/build");
    for profile in [PathBuf::from("debug"), triple.join("debug")] {
        for kind in ["deps", "build", ".fingerprint"] {
            let (from, to) = (from.join(&profile).join(kind), to.join(&profile).join(kind));
            fs::create_dir_all(&to).with_context(|| format!("making {}", to.display()))?;
            let mut missing = Vec::new();
            for entry in fs::read_dir(&from).with_context(|| format!("reading {}", from.display()))? {
                let entry = entry?;
                // What cargo is to make anew must not be written through a link.
                let is_own = entry.file_name().to_string_lossy().contains("gotrace");
                if !is_own && !to.join(entry.file_name()).exists() {
                    missing.push(entry.path());
                }
            }
            if !missing.is_empty() {
                let mut links = Command::new("cp");
                links.args(["--archive", "--link", "--target-directory"]).arg(&to);
                run(links.args(missing))?;
            }
        }
    }
    cargo
        .arg("--target-dir")
        .arg(&to)
        .env("CARGO_INCREMENTAL", "0")
        .env("RUSTC_WORKSPACE_WRAPPER", root().join("tests/fuzz/rustc.sh"))
        // A cache of compilations (sccache) knows no compiler that is a script.
        .env_remove("RUSTC_WRAPPER");
    run(&mut cargo)?;
    Ok(to.join(triple).join("debug/gotrace-fuzz"))
}

/// A target that is being tried.
struct Trial {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Trial {
    fn start(program: &Path, name: &str, options: &Options) -> Result<Self> {
        let directory = root().join("target/fuzz").join(name);
        fs::create_dir_all(directory.join("corpus"))
            .with_context(|| format!("making {}", directory.display()))?;
        let log = directory.join("log");
        let file = fs::File::create(&log).with_context(|| format!("making {}", log.display()))?;
        let child = Command::new(program)
            .env("GOTRACE_FUZZ", name)
            .arg(directory.join("corpus"))
            .arg(root().join("tests/fuzz/corpus").join(name))
            .arg(format!("-artifact_prefix={}/", directory.display()))
            .arg(format!("-max_total_time={}", options.seconds))
            // 0 stands for the time.
            .arg(format!("-seed={}", options.seed.unwrap_or(0)))
            .args(["-timeout=60", "-rss_limit_mb=1024", "-max_len=65536", "-print_final_stats=1"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Self { name: name.to_owned(), log, child })
    }

    fn finish(mut self, program: &Path) -> Result<()> {
        let status = self.child.wait()?;
        let text = String::from_utf8_lossy(&fs::read(&self.log)?).into_owned();
        let last =
            |what: &str| text.lines().rev().find(|line| line.contains(what)).unwrap_or("").trim().to_owned();
        if status.success() {
            println!("{:>10}: {}; {}", self.name, last("cov: "), last("number_of_executed_units"));
            return Ok(());
        }
        let tail: Vec<&str> = text.lines().rev().take(60).collect();
        println!("{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        let again = format!("GOTRACE_FUZZ={} {} FILE", self.name, program.display());
        bail!(
            "target {} failed ({status}) on the file named above; repeat with `{again}`; when it is mended, keep the \
             file in tests/fuzz/corpus/{}",
            self.name,
            self.name
        )
    }
}
