//! Runs the Go program with the account: starts it, speaks its handshake, reads its account, and ends
//! it by its pid when dropped, whatever became of the test.

use std::{
    collections::HashSet,
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

/// How long a test waits for anything: for so long that only what hangs takes longer, on a busy machine too.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A wait as the program saw it: parked at some time within the bounds.
#[derive(Clone, Debug, Deserialize)]
pub struct Wait {
    /// Neutral name; what Go says differs by version ([`crate::compare::reason`]).
    pub kind: String,
    /// Just before the operation, `CLOCK_MONOTONIC`.
    pub from_ns: u64,
    /// Just after it; `None` where it never ends.
    pub to_ns: Option<u64>,
    /// Goid of the waker, `timer`, `netpoll`, or nothing where it is open.
    pub by: String,
    /// Whether it may be too short to be reported, or not happen at all.
    pub may: bool,
    /// The function of the program that waits.
    pub at: String,
}

/// A goroutine's own record. Times are `CLOCK_MONOTONIC` in nanoseconds.
#[derive(Clone, Debug, Deserialize)]
pub struct Goroutine {
    /// `go`, `main`, `afterfunc`, `coroutine` or `cthread`.
    pub kind: String,
    /// Its id.
    pub goid: u64,
    /// Id of the goroutine that executed the `go` statement; 0 for none.
    pub parent: u64,
    /// Just before the `go` statement.
    pub spawn_ns: u64,
    /// Its first statement.
    pub first_ns: u64,
    /// Its last statement; `None` where it never ends.
    pub last_ns: Option<u64>,
    /// Entry function.
    pub entry: String,
    /// Function with the `go` statement.
    pub created_by: String,
    /// File of the `go` statement.
    pub created_file: String,
    /// Line of the `go` statement; 0 where not known.
    pub created_line: u32,
    /// Whether waits may be seen that the account does not list.
    pub free_waits: bool,
    /// Its waits.
    #[serde(default, deserialize_with = "null_is_none_yet")]
    pub waits: Vec<Wait>,
}

/// Go writes an empty slice as `null`.
fn null_is_none_yet<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<Wait>, D::Error> {
    Ok(Option::<Vec<Wait>>::deserialize(d)?.unwrap_or_default())
}

/// What the program says of itself.
#[derive(Clone, Debug)]
pub struct Account {
    /// As `runtime.Version()` gives it.
    pub go_version: String,
    /// The result of the run.
    pub checksum: String,
    /// Both clocks read one after the other: monotonic, Unix epoch.
    pub clocks_ns: (u64, u64),
    /// Everyone who was there.
    pub goroutines: Vec<Goroutine>,
}

impl Account {
    /// Reads the lines of an account.
    ///
    /// # Errors
    /// Where a line is not what the program writes, or records are missing or doubled.
    pub fn parse(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Header {
            go_version: String,
            checksum: String,
            mono_ns: u64,
            unix_ns: u64,
            goroutines: usize,
        }
        let mut lines = text.lines();
        let header: Header = serde_json::from_str(lines.next().context("the account is empty")?)
            .context("the account's header")?;
        let goroutines = lines
            .map(|l| serde_json::from_str::<Goroutine>(l).with_context(|| format!("account line {l}")))
            .collect::<Result<Vec<_>>>()?;
        ensure!(
            goroutines.len() == header.goroutines,
            "the account announces {} goroutines and lists {}",
            header.goroutines,
            goroutines.len()
        );
        let mut seen = HashSet::new();
        for g in goroutines.iter().filter(|g| g.kind != "cthread") {
            ensure!(seen.insert(g.goid), "the account lists goroutine {} twice", g.goid);
        }
        Ok(Self {
            go_version: header.go_version,
            checksum: header.checksum,
            clocks_ns: (header.mono_ns, header.unix_ns),
            goroutines,
        })
    }

    /// A monotonic time as Unix epoch.
    #[must_use]
    pub fn unix(&self, mono_ns: u64) -> u64 {
        self.clocks_ns.1.wrapping_add(mono_ns).wrapping_sub(self.clocks_ns.0)
    }
}

/// A running Go program of ours.
#[derive(Debug)]
pub struct Fixture {
    child: Child,
    /// Its process id, which is the child's unless another program started it.
    pid: u32,
    stdin: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    account: PathBuf,
    _dir: tempfile::TempDir,
}

impl Fixture {
    /// Starts the program and waits until it is ready to run its scenarios.
    ///
    /// # Errors
    /// Where it does not start or does not say READY.
    pub fn start(program: &Path, args: &[&str]) -> Result<Self> {
        Self::start_by(Command::new(program), args)
    }

    /// The same in PID and mount namespaces of its own, where its executable lies where nobody outside
    /// sees it. Process 1 there is a shell, which stays until everyone else has ended. Needs root and
    /// util-linux.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_in_namespaces(program: &Path, args: &[&str]) -> Result<Self> {
        const FIRST: &str = r#"
            mount -t tmpfs none /mnt && cp "$0" /mnt/program || exit 1
            exec 3<&0
            /mnt/program "$@" <&3 3<&- &
            wait $!
            status=$?
            for i in 0 1 2 3 4 5 6 7 8 9; do
                set -- /proc/[0-9]*
                [ $# = 1 ] && break
                sleep 0.5
            done
            exit $status"#;
        let mut unshare = Command::new("unshare");
        unshare
            .args(["--pid", "--mount", "--fork", "--kill-child", "--mount-proc", "sh", "-c", FIRST])
            .arg(program);
        let mut this = Self::start_by(unshare, args)?;
        for _ in 0..2 {
            this.pid = only_child(this.pid)?;
        }
        Ok(this)
    }

    fn start_by(mut command: Command, args: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir().context("making a temporary directory")?;
        let account = dir.path().join("account.jsonl");
        let mut child = command
            .args(args)
            .arg("-account")
            .arg(&account)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("its standard output is a pipe")?;
        let pid = child.id();
        let this = Self { child, pid, stdin, lines: read_lines(stdout), account, _dir: dir };
        this.expect("READY", PATIENCE)?;
        Ok(this)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets it begin its scenarios.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn go(&mut self) -> Result<()> {
        let stdin = self.stdin.as_mut().context("the program was told to end before")?;
        stdin.write_all(b"go\n").context("telling the program to go")
    }

    /// Waits for the end of its scenarios; gives what it says of them.
    ///
    /// # Errors
    /// Where it ends, or takes longer than `patience`.
    pub fn done(&self, patience: Duration) -> Result<Value> {
        let line = self.expect("DONE", patience)?;
        serde_json::from_str(&line).with_context(|| format!("what the program says at its end: {line}"))
    }

    /// Lets it run its scenarios, and waits for their end.
    ///
    /// # Errors
    /// As [`Self::go`] and [`Self::done`].
    pub fn run(&mut self) -> Result<Value> {
        self.go()?;
        self.done(PATIENCE)
    }

    /// The account that it wrote.
    ///
    /// # Errors
    /// Where it has written none or a broken one.
    pub fn account(&self) -> Result<Account> {
        let text = fs::read_to_string(&self.account)
            .with_context(|| format!("reading {}", self.account.display()))?;
        Account::parse(&text)
    }

    /// Lets it end, and waits for that.
    ///
    /// # Errors
    /// Where it ends with another status than 0.
    pub fn finish(&mut self) -> Result<()> {
        drop(self.stdin.take());
        let status = self.child.wait().context("waiting for the program's end")?;
        ensure!(status.success(), "the program ended with {status}");
        Ok(())
    }

    fn expect(&self, word: &str, patience: Duration) -> Result<String> {
        let line = self.lines.recv_timeout(patience).map_err(|e| match e {
            mpsc::RecvTimeoutError::Timeout => {
                anyhow!("the program did not say {word} within {patience:?}")
            }
            mpsc::RecvTimeoutError::Disconnected => anyhow!("the program ended before it said {word}"),
        })?;
        match line.strip_prefix(word) {
            Some(rest) => Ok(rest.trim().to_owned()),
            None => bail!("the program said {line:?} where {word} was due"),
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // Both fail only where it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The one process that a process has started.
fn only_child(pid: u32) -> Result<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    children.trim().parse().with_context(|| format!("{path} says {children:?}"))
}

/// Reads lines in a thread of their own, so that waiting for one can be given up.
#[must_use]
pub fn read_lines(from: impl std::io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                break;
            }
        }
    });
    receive
}
