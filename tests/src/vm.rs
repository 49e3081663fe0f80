//! Boots a Debian kernel under qemu, without acceleration, with an initramfs that holds busybox, the
//! static `gotrace`, the Go program and a script; gives what the script leaves, which comes over the
//! serial console. A machine is up and gone within seconds.
//!
//! Kernels and busybox are where `cargo xtask setup` puts them; the arm64 `gotrace` is where
//! `cargo xtask test` builds it. What is missing is an error that says so.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use flate2::{Compression, write::GzEncoder};

use crate::{
    gobuild::{Arch, cache_dir, target_dir},
    gotrace::binary,
};

/// Kernel series, as the directories in the cache are called.
pub const SERIES: [&str; 4] = ["5.10", "6.1", "6.12", "7"];

/// How long a machine may take; it needs a tenth of that on two idle cores.
const PATIENCE: Duration = Duration::from_secs(1200);

/// The script that the machine runs. It speaks in lines that begin with `GOTRACE-VM`, so that what the
/// kernel prints in between does no harm.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox --install -s /bin
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tracefs trace /sys/kernel/tracing
ifconfig lo 127.0.0.1 up
ulimit -c 0
echo "GOTRACE-VM kernel $(uname -r)"
said() { # what, file, pid of who says it
	i=0
	while ! grep -q "$1" "$2" 2>/dev/null; do
		i=$((i + 1))
		if ! kill -0 "$3" 2>/dev/null || [ $i -gt 3000 ]; then
			echo "GOTRACE-VM never said in $2: $1"
			return 1
		fi
		usleep 100000
	done
}
cd /tmp
/gotrace doctor --format json >doctor
# A pipe that is opened to be read and written is not waited for: a child that ends interrupts whoever waits.
mkfifo stdin
/fixture -scenario all -nap 60ms -account account <stdin >fixture 2>&1 &
F=$!
exec 3<>stdin
said READY fixture $F
/gotrace --log warn,gotrace_kernel::way=debug attach --pid $F --level full --budget none --min-wait 1ms --stack-depth 16 --format json --export export >stdout 2>stderr 3>&- &
G=$!
said gotrace.attach/1 stdout $G && echo "GOTRACE-VM attached"
echo go >&3
said DONE fixture $F
exec 3>&-
wait $F
echo "GOTRACE-VM fixture $?"
i=0
while kill -0 $G 2>/dev/null && [ $i -lt 1800 ]; do i=$((i + 1)); usleep 100000; done
kill -9 $G 2>/dev/null
wait $G
echo "GOTRACE-VM gotrace $?"
mkfifo stdin2
GOTRACEBACK=system /stacks <stdin2 >own 2>quit &
S=$!
exec 4<>stdin2
said READY own $S
echo stacks >&4
said '^END' own $S
/gotrace dump --pid $S --system --format json >dump 2>dump-stderr 4>&-
echo "GOTRACE-VM dump $?"
kill -QUIT $S
wait $S
echo "GOTRACE-VM stacks $?"
# Half a CPU for a program that wants two.
mount -t cgroup2 none /sys/fs/cgroup
echo +cpu >/sys/fs/cgroup/cgroup.subtree_control
mkdir /sys/fs/cgroup/half
echo 50000 100000 >/sys/fs/cgroup/half/cpu.max
mkfifo stdin5
/cpu <stdin5 >used 2>&1 &
U=$!
exec 7<>stdin5
said READY used $U
/gotrace attach --pid $U --level waits --budget none --format json >cpu 2>cpu-stderr 7>&- &
T=$!
said gotrace.attach/1 cpu $T
echo $U >/sys/fs/cgroup/half/cgroup.procs
echo go >&7
said elapsed used $U
cp /sys/fs/cgroup/half/cpu.stat quota
kill -INT $T
wait $T
echo "GOTRACE-VM cpu $?"
exec 7>&-
kill $U
if [ -x /patterns ]; then
	mkfifo stdin3
	/patterns "missing receiver" "select with dead cases" "abandoned pipeline" "groups that wait for each other" \
		"lost cancel" "nil send" "reflected select" "in a deferred call of a panic" "locks in another order" \
		"readers behind a writer that forgot" "forgotten done" "condition without signal" "large elements" \
		"pipe without a reader" <stdin3 >patterns 2>&1 &
	P=$!
	exec 5<>stdin3
	said READY patterns $P
	/gotrace leaks --pid $P --format json >leaks 2>leaks-stderr 5>&-
	echo "GOTRACE-VM leaks $?"
	for what in profile release; do echo $what >&5; done
	said RELEASED patterns $P
	exec 5>&-
	wait $P
	echo "GOTRACE-VM patterns $?"
fi
if [ -x /requests ]; then
	mkfifo stdin4
	/requests <stdin4 >served 2>&1 &
	R=$!
	exec 6<>stdin4
	said '"ready":true' served $R
	/gotrace requests --pid $R --slow 0ms --budget none --format json >requests 2>requests-stderr 6>&- &
	W=$!
	said gotrace.requests/1 requests $W
	echo 'run 2 sleep mutex_sleeping channel cpu io syscall fast panic post http2' >&6
	said '"done"' served $R
	kill -INT $W
	wait $W
	echo "GOTRACE-VM requests $?"
	exec 6>&-
	kill $R
fi
if [ -x /harm ]; then
	# Who executes another at once, and who is written in place and started again, under the daemon.
	printf 'trace: {level: full}\nrules:\n  include:\n  - command_line: ["*harmed*"]\nlimits: {budget: off}\n' >harm.yaml
	GOTRACE_LOG=info /gotrace daemon --config harm.yaml --listen off >harm-daemon 2>&1 &
	D=$!
	said 'discovering new processes by' harm-daemon $D
	died=0
	for i in 1 2 3 4; do
		for file in /harm-older /harm; do
			# Nobody can tell it from the one before by its size and time.
			cat $file >program
			truncate -s 4M program
			touch -d @0 program
			chmod 755 program
			./program exec 0s /harm work 1s harmed >run 2>&1
			echo "$file executes /harm: $?" >>harm
			cat run >>harm
			grep -q '^ok 6f8228b0a3900940$' run || died=$((died + 1))
			./program work 1s harmed >run 2>&1
			echo "$file: $?" >>harm
			cat run >>harm
			grep -q '^ok 6f8228b0a3900940$' run || died=$((died + 1))
		done
	done
	kill -0 $D || died="$died, gotrace too"
	kill $D
	wait $D
	echo "GOTRACE-VM harm $died"
fi
for f in doctor account export stdout stderr fixture own quit dump dump-stderr used cpu cpu-stderr quota patterns leaks leaks-stderr served requests requests-stderr harm harm-daemon; do
	[ -f $f ] || continue
	echo "GOTRACE-VM begin $f"
	gzip -c $f | base64
	echo "GOTRACE-VM end $f"
done
echo "GOTRACE-VM done"
poweroff -f
"#;

/// What a machine left.
#[derive(Debug, Default)]
pub struct Left {
    /// Release of its kernel.
    pub kernel: String,
    /// Exit statuses of `fixture`, `gotrace` (attach), `dump`, `stacks`, `cpu` (attach), `leaks`, `patterns` and `requests`; of `harm` how many
    /// programs died.
    pub statuses: BTreeMap<String, String>,
    /// Files by name: `doctor` (its report), `account`, `export`, `stdout`, `stderr`, `fixture`; of the program whose
    /// stacks were dumped `own` (`runtime.Stack`), `quit` (what it printed on SIGQUIT); `dump`, `dump-stderr`; of the
    /// one within a CPU quota `used` (its account), `cpu`, `cpu-stderr`, and its control group's `cpu.stat` as `quota`; of the
    /// one that leaks `patterns` (its account), `leaks`, `leaks-stderr`; of the server `served` (its account),
    /// `requests`, `requests-stderr`; `harm`, what those printed who were executed
    /// under the daemon, and `harm-daemon`, what it said.
    pub files: BTreeMap<String, String>,
    /// Everything that the console showed, but for the files.
    pub console: String,
    /// How long it ran.
    pub took: Duration,
}

/// The Go programs that a machine runs.
#[derive(Clone, Copy, Debug)]
pub struct Programs<'a> {
    /// Runs under gotrace, and keeps an account.
    pub fixture: &'a Path,
    /// Is dumped.
    pub stacks: &'a Path,
    /// Uses the CPUs, within a quota.
    pub cpu: &'a Path,
    /// Leaks goroutines in many patterns, which are to be proven.
    pub patterns: Option<&'a Path>,
    /// Serves requests, which are to be told.
    pub requests: Option<&'a Path>,
    /// Executes itself and the other, and is written over by the other.
    pub harm: [&'a Path; 2],
}

/// Boots a kernel, and runs Go programs and gotrace in it.
///
/// # Errors
/// Where something that the machine is made of is missing, or it does not come to its end; with the
/// last lines of its console.
pub fn boot(series: &str, arch: Arch, of: Programs<'_>) -> Result<Left> {
    let cache = cache_dir().join("vm");
    let kernel = cache.join(format!("{series}-{}", arch.name())).join("vmlinuz");
    let busybox = cache.join(format!("busybox-{}", arch.name()));
    for path in [&kernel, &busybox] {
        ensure!(path.exists(), "{} is missing: `cargo xtask setup` fetches it", path.display());
    }
    let dir = tempfile::tempdir().context("making a temporary directory")?;
    let initrd = dir.path().join("initrd.gz");
    let gotrace = stripped_gotrace(arch, dir.path())?;
    let mut archive = Archive::create(&initrd)?;
    archive.directory("bin")?;
    let own = [("bin/busybox", &*busybox), ("gotrace", &*gotrace)];
    let programs = [
        ("fixture", Some(of.fixture)),
        ("stacks", Some(of.stacks)),
        ("cpu", Some(of.cpu)),
        ("patterns", of.patterns),
        ("requests", of.requests),
        ("harm", Some(of.harm[0])),
        ("harm-older", Some(of.harm[1])),
    ];
    let there = programs.into_iter().filter_map(|(name, path)| Some((name, path?)));
    for (name, path) in own.into_iter().chain(there) {
        let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        archive.program(name, &bytes)?;
    }
    archive.program("init", INIT.as_bytes())?;
    archive.finish()?;

    let (program, machine, console): (_, &[&str], _) = match arch {
        Arch::Amd64 => ("qemu-system-x86_64", &["-M", "q35", "-cpu", "max"], "ttyS0"),
        Arch::Arm64 => ("qemu-system-aarch64", &["-M", "virt", "-cpu", "cortex-a72"], "ttyAMA0"),
    };
    let begin = Instant::now();
    let mut qemu = Command::new(program)
        .args(machine)
        .args(["-accel", "tcg,thread=multi", "-smp", "2", "-m", "768", "-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-serial", "stdio", "-nic", "none", "-no-reboot", "-kernel"])
        .arg(&kernel)
        .arg("-initrd")
        .arg(&initrd)
        .args(["-append", &format!("console={console} panic=-1 quiet no_timer_check")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .with_context(|| format!("starting {program}: `cargo xtask setup` installs it"))?;
    let mut stdout = qemu.stdout.take().context("its standard output is a pipe")?;
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stdout.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let ended = loop {
        if qemu.try_wait().context("waiting for the machine")?.is_some() {
            break true;
        }
        if begin.elapsed() > PATIENCE {
            qemu.kill().context("ending the machine")?;
            qemu.wait().context("ending the machine")?;
            break false;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let text = reader.join().map_err(|_| anyhow!("reading the console"))?;
    let mut left = parse(&text)?;
    left.took = begin.elapsed();
    ensure!(
        ended && text.contains("GOTRACE-VM done"),
        "kernel {series} {}: the machine did not come to its end in {:.0?}; its console:\n{}",
        arch.name(),
        left.took,
        tail(&left.console, 40)
    );
    ensure!(
        !text.contains("GOTRACE-VM never said"),
        "kernel {series} {}: what is waited for was never said:\n{}",
        arch.name(),
        tail(&left.console, 40)
    );
    Ok(left)
}

/// The last lines of a text.
#[must_use]
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn stripped_gotrace(arch: Arch, dir: &Path) -> Result<PathBuf> {
    if arch != Arch::HOST {
        let path = std::env::var_os("GOTRACE_ARM64_BIN")
            .map_or_else(|| target_dir().join("arm64/gotrace"), PathBuf::from);
        ensure!(path.exists(), "{} is missing: `cargo xtask test` builds it", path.display());
        return Ok(path);
    }
    let built = binary()?;
    let stripped = dir.join("gotrace");
    let done = Command::new("strip").arg("-o").arg(&stripped).arg(&built).status();
    ensure!(done.context("starting strip")?.success(), "strip of {} failed", built.display());
    // PT_INTERP: a dynamically linked program has no loader in the machine.
    let bytes = fs::read(&stripped)?;
    ensure!(
        !bytes.windows(b"/lib64/ld-linux".len()).take(4096).any(|w| w == b"/lib64/ld-linux"),
        "{} is linked dynamically; `cargo xtask test` builds it statically",
        built.display()
    );
    Ok(stripped)
}

fn parse(console: &str) -> Result<Left> {
    let mut left = Left::default();
    let mut file: Option<(String, String)> = None;
    for line in console.lines() {
        let line = line.trim();
        let words: Vec<&str> = match line.find("GOTRACE-VM ") {
            Some(at) => line[at..].split_whitespace().skip(1).collect(),
            None => vec![],
        };
        match words[..] {
            ["begin", name] => file = Some((name.to_owned(), String::new())),
            ["end", _] => {
                if let Some((name, text)) = file.take() {
                    let text = unpack(&text).with_context(|| format!("the machine's file {name}"))?;
                    left.files.insert(name, text);
                }
            }
            ["kernel", release] => left.kernel = release.to_owned(),
            [
                who @ ("fixture" | "gotrace" | "dump" | "stacks" | "cpu" | "leaks" | "patterns" | "requests"
                | "harm"),
                status,
            ] => {
                left.statuses.insert(who.to_owned(), status.to_owned());
            }
            _ => match &mut file {
                Some((_, text)) => text.push_str(line),
                None => {
                    left.console.push_str(line);
                    left.console.push('\n');
                }
            },
        }
    }
    Ok(left)
}

/// Base64 of gzip to text.
fn unpack(base64: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(base64.len() * 3 / 4);
    let (mut bits, mut count) = (0u32, 0u32);
    for c in base64.bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => break,
            // The kernel may print into the middle; what it breaks, gzip's checksum finds.
            _ => continue,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    let mut text = String::new();
    flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text)?;
    Ok(text)
}

/// An initramfs: a gzipped cpio archive in the "newc" form.
struct Archive {
    out: GzEncoder<fs::File>,
    inode: u32,
}

impl Archive {
    fn create(path: &Path) -> Result<Self> {
        let file = fs::File::create(path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self { out: GzEncoder::new(file, Compression::fast()), inode: 0 })
    }

    fn directory(&mut self, name: &str) -> Result<()> {
        self.entry(name, 0o040_755, &[])
    }

    fn program(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.entry(name, 0o100_755, bytes)
    }

    fn entry(&mut self, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        self.inode += 1;
        let size = u32::try_from(bytes.len()).context("a file beyond 4 GiB")?;
        let name_size = u32::try_from(name.len() + 1).context("a long name")?;
        // inode, mode, uid, gid, links, mtime, size, device twice two, name's size, checksum.
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut head = "070701".to_owned();
        for field in fields {
            head += &format!("{field:08x}");
        }
        head += name;
        head.push('\0');
        self.padded(head.as_bytes())?;
        self.padded(bytes)
    }

    fn padded(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes)?;
        self.out.write_all(&[0; 3][..bytes.len().wrapping_neg() & 3])?;
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.out.finish().context("writing the initramfs")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_out_of_the_console() {
        // printf 'hello\n' | gzip -n | base64
        let console = "noise\r\nGOTRACE-VM kernel 6.1.0\r\nGOTRACE-VM begin stdout\r\n\
                       H4sIAAAAAAAAA8tIzcnJ5\r\nwIAIDA6NgYAAAA=\r\nGOTRACE-VM end stdout\r\nGOTRACE-VM fixture 0\r\n";
        let left = parse(console).expect("readable");
        assert_eq!(left.kernel, "6.1.0");
        assert_eq!(left.files["stdout"], "hello\n");
        assert_eq!(left.statuses["fixture"], "0");
        assert_eq!(left.console, "noise\n");
    }
}
