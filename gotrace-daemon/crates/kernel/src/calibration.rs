//! What one probe hit costs on this host: an estimate, measured on gotrace itself.
//!
//! A loop of two instructions is run with a probe on one of them and without, by turns, and the median
//! difference of the thread's CPU time is the cost: the trap, a program that looks the process up,
//! counts, reads a word and sends a record, and the way back. Two kinds of instructions are measured:
//! one that the kernel emulates, and one that it single-steps out of line. And what the probes of other processes
//! at the same place add, which the kernel calls too.
//!
//! Uses a kernel side of its own, so that no record or count of it is among the target's. Ends within
//! about 20 ms of CPU time. What it cannot know: the caches and the contention of the target.

use std::{
    num::NonZeroU32,
    path::Path,
    slice,
    sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel},
    thread,
    time::Duration,
};

use gotrace_common::{GLayout, Hit, LEVEL_WAITS, ProcessConfig};

use super::{Attachment, Error, Kernel, Options, Scope, Way, way};
use gotrace_go::{Event, Operand, Probe};
use gotrace_process::own_file_offset;

/// Most rounds of a kind. Their records fit into the ring.
const ROUNDS: usize = 48;
const HITS_PER_ROUND: u64 = 32;
const STEPPED_HITS_PER_ROUND: u64 = 8;
/// Probes of another process, to find what each makes a hit cost more.
const NEIGHBOURS: u32 = 12;
/// What each makes a hit cost more where that is not measured, as a share of the hit: seen of perf events on 6.18.
const NEIGHBOUR_SHARE: f64 = 0.06;
/// CPU time after which no further round of a kind begins.
const TIME_OF_A_KIND_NS: u64 = 8_000_000;
/// Less than half of it is ever filled, beyond which each record would wake a reader.
const RING_BYTES: u32 = 1 << 19;

/// What one hit of a probe adds to the CPU time of the thread that hits it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HitCost {
    /// On an instruction that the kernel emulates.
    pub emulated_ns: f64,
    /// On one that it single-steps out of line.
    pub stepped_ns: f64,
    /// On either, for each other process of the same file that has probes there: the kernel calls them all.
    pub neighbour_ns: f64,
}

impl HitCost {
    /// The same in a process of whose file so many others have probes.
    #[must_use]
    pub fn among(self, neighbours: u32) -> Self {
        let more = self.neighbour_ns * f64::from(neighbours);
        Self { emulated_ns: self.emulated_ns + more, stepped_ns: self.stepped_ns + more, ..self }
    }
}

/// A calibration that runs on a thread of its own, so that nothing waits for it.
#[derive(Debug)]
pub struct Calibration {
    result: Option<Receiver<HitCost>>,
    cost: Option<HitCost>,
}

impl Calibration {
    /// Begins. Whether it succeeds is told by [`Self::cost`].
    #[must_use]
    pub fn start() -> Self {
        let (sender, result) = channel();
        let thread = thread::Builder::new().name("gotrace-calibrate".into()).spawn(move || {
            match measure() {
                // The probes of the calibration are removed after the result is there.
                Ok((cost, attachments)) => {
                    let _nobody_waits = sender.send(cost);
                    attachments.into_iter().for_each(Attachment::detach);
                }
                Err(error) => tracing::debug!(%error, "cannot measure probe overhead: overhead unknown"),
            }
        });
        Self { result: thread.is_ok().then_some(result), cost: None }
    }

    /// The result, waiting for it at most `timeout`; `None` when it is not there or never will be.
    pub fn cost(&mut self, timeout: Duration) -> Option<HitCost> {
        if let Some(result) = &self.result {
            let received = if timeout.is_zero() {
                result.try_recv().map_err(|e| e == TryRecvError::Empty)
            } else {
                result.recv_timeout(timeout).map_err(|e| e == RecvTimeoutError::Timeout)
            };
            match received {
                Ok(cost) => (self.cost, self.result) = (Some(cost), None),
                Err(may_come) if !may_come => self.result = None,
                Err(_) => {}
            }
        }
        self.cost
    }
}

/// Measures; the probes come back with the result, as removing them takes longer than measuring.
fn measure() -> Result<(HitCost, Vec<Attachment>), Error> {
    let failed = |reason: &str| Error::Failed {
        what: "measure probe overhead on gotrace itself".into(),
        reason: reason.into(),
    };
    let mut kernel =
        Kernel::load(&Options { ring_bytes: RING_BYTES, goroutines: 1, processes: 1, ..Options::default() })?;
    let own_pid = std::process::id();
    let pid = NonZeroU32::new(own_pid).ok_or_else(|| failed("no pid"))?;
    let config = ProcessConfig {
        process: 1,
        slot: 0,
        level: LEVEL_WAITS,
        layout: GLayout::default(),
        ..ProcessConfig::default()
    };
    kernel.configure(own_pid, config)?;
    let loops = code::loops();
    let mut attachments = Vec::new();
    let mut costs = [0.0; 2];
    let mut neighbour_ns = None;
    let mut expected = 0;
    let kinds = [(loops.emulated, HITS_PER_ROUND), (loops.stepped, STEPPED_HITS_PER_ROUND)];
    for ((probed, hits), cost) in kinds.into_iter().zip(&mut costs) {
        let probe = Probe {
            event: Event::Exit,
            function: "gotrace itself".into(),
            address: 0,
            file_offset: own_file_offset(probed.probe_at)
                .ok_or_else(|| failed("/proc/self/maps does not list gotrace's code"))?,
            instruction: String::new(),
            emulated: false,
            operand: Operand::Argument(0),
        };
        let own = Path::new("/proc/self/exe");
        attachments.push(kernel.attach(own, Scope::Process(pid), slice::from_ref(&probe), || {})?);
        *cost = cost_of(&probed, &loops.bare, hits, &mut expected)
            .ok_or_else(|| failed("no measurement completed"))?;
        // Probes of a process that does not run this file are never hit, and called all the same. Perf events are
        // removed one by one, which takes longer than this is worth.
        if neighbour_ns.is_none()
            && let (Some(parent), Way::Links) = (parent(), way())
        {
            let many = vec![probe; NEIGHBOURS as usize];
            attachments.push(kernel.attach(own, Scope::Process(parent), &many, || {})?);
            let among = cost_of(&probed, &loops.bare, hits, &mut expected);
            neighbour_ns = among.map(|among| (among - *cost).max(0.0) / f64::from(NEIGHBOURS));
        }
    }
    kernel.forget(own_pid);
    let hits = kernel.counters(0)?.hits[Hit::Exit as usize];
    if hits != expected {
        return Err(failed(&format!("{expected} hits expected, {hits} counted")));
    }
    let [emulated_ns, stepped_ns] = costs;
    let neighbour_ns = neighbour_ns.unwrap_or(emulated_ns * NEIGHBOUR_SHARE);
    tracing::debug!(emulated_ns, stepped_ns, neighbour_ns, "measured probe overhead");
    Ok((HitCost { emulated_ns, stepped_ns, neighbour_ns }, attachments))
}

/// The median of what a hit adds to a loop; `None` when not one round ended. Adds the hits to `expected`.
fn cost_of(probed: &Loop, bare: &Loop, hits: u64, expected: &mut u64) -> Option<f64> {
    let mut differences = Vec::with_capacity(ROUNDS);
    // The first round finds cold caches and is not counted.
    time_of(probed, hits);
    *expected += hits;
    let begin_ns = thread_cpu_ns();
    while differences.len() < ROUNDS && thread_cpu_ns() - begin_ns < TIME_OF_A_KIND_NS {
        let without_ns = time_of(bare, hits);
        let with_ns = time_of(probed, hits);
        *expected += hits;
        differences.push(with_ns.saturating_sub(without_ns) as f64 / hits as f64);
    }
    differences.sort_by(f64::total_cmp);
    differences.get(differences.len() / 2).copied()
}

/// A process that is not this one.
fn parent() -> Option<NonZeroU32> {
    rustix::process::getppid().and_then(|pid| NonZeroU32::new(pid.as_raw_pid().cast_unsigned()))
}

/// A loop, and its instruction that may be probed.
#[derive(Clone, Copy)]
struct Loop {
    /// Runs the instruction `hits` times with `g` as its first argument in Go's convention.
    run: unsafe extern "C" fn(g: *const u64, hits: u64),
    probe_at: u64,
}

fn time_of(measured: &Loop, hits: u64) -> u64 {
    // What the program takes for a goroutine's `g`: its id, the first word in this layout.
    let g = [7u64; 2];
    let before_ns = thread_cpu_ns();
    // SAFETY: the loop touches registers and a word of its own stack; `g` is only passed on to the
    // probe's program, which reads it.
    unsafe { (measured.run)(g.as_ptr(), hits) };
    thread_cpu_ns() - before_ns
}

/// CPU time of this thread: others that run meanwhile do not matter.
fn thread_cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// The loops. `hits` must not be 0.
mod code {
    use super::Loop;

    pub(super) struct Loops {
        pub emulated: Loop,
        pub stepped: Loop,
        /// The same as `emulated`, never probed.
        pub bare: Loop,
    }

    // `push` is emulated since Linux 4.16; a `mov` between registers never is.
    #[cfg(target_arch = "x86_64")]
    core::arch::global_asm!(
        ".macro gotrace_calibration name, body:vararg",
        ".globl gotrace_calibration_\\name",
        ".globl gotrace_calibration_\\name\\()_at",
        ".p2align 6",
        "gotrace_calibration_\\name:",
        "mov rax, rdi",
        "gotrace_calibration_\\name\\()_at:",
        "\\body",
        "pop rcx",
        "dec rsi",
        "jnz gotrace_calibration_\\name\\()_at",
        "ret",
        ".endm",
        ".pushsection .text.gotrace_calibration, \"ax\", @progbits",
        "gotrace_calibration emulated, push rax",
        "gotrace_calibration bare, push rax",
        ".globl gotrace_calibration_stepped",
        ".globl gotrace_calibration_stepped_at",
        ".p2align 6",
        "gotrace_calibration_stepped:",
        "mov rax, rdi",
        "gotrace_calibration_stepped_at:",
        "mov rcx, rax",
        "dec rsi",
        "jnz gotrace_calibration_stepped_at",
        "ret",
        ".popsection",
    );

    // A branch is simulated on every kernel; a `mov` between registers never is.
    #[cfg(target_arch = "aarch64")]
    core::arch::global_asm!(
        ".pushsection .text.gotrace_calibration, \"ax\", %progbits",
        ".globl gotrace_calibration_emulated",
        ".globl gotrace_calibration_emulated_at",
        ".p2align 6",
        "gotrace_calibration_emulated:",
        "gotrace_calibration_emulated_at:",
        "b 2f",
        "2: subs x1, x1, #1",
        "b.ne gotrace_calibration_emulated_at",
        "ret",
        ".globl gotrace_calibration_bare",
        ".globl gotrace_calibration_bare_at",
        ".p2align 6",
        "gotrace_calibration_bare:",
        "gotrace_calibration_bare_at:",
        "b 2f",
        "2: subs x1, x1, #1",
        "b.ne gotrace_calibration_bare_at",
        "ret",
        ".globl gotrace_calibration_stepped",
        ".globl gotrace_calibration_stepped_at",
        ".p2align 6",
        "gotrace_calibration_stepped:",
        "gotrace_calibration_stepped_at:",
        "mov x2, x0",
        "subs x1, x1, #1",
        "b.ne gotrace_calibration_stepped_at",
        "ret",
        ".popsection",
    );

    unsafe extern "C" {
        fn gotrace_calibration_emulated(g: *const u64, hits: u64);
        fn gotrace_calibration_stepped(g: *const u64, hits: u64);
        fn gotrace_calibration_bare(g: *const u64, hits: u64);
        static gotrace_calibration_emulated_at: u8;
        static gotrace_calibration_stepped_at: u8;
        static gotrace_calibration_bare_at: u8;
    }

    pub(super) fn loops() -> Loops {
        Loops {
            emulated: Loop {
                run: gotrace_calibration_emulated,
                probe_at: (&raw const gotrace_calibration_emulated_at) as u64,
            },
            stepped: Loop {
                run: gotrace_calibration_stepped,
                probe_at: (&raw const gotrace_calibration_stepped_at) as u64,
            },
            bare: Loop {
                run: gotrace_calibration_bare,
                probe_at: (&raw const gotrace_calibration_bare_at) as u64,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loops_end_and_are_where_they_say() {
        let code::Loops { emulated, stepped, bare } = code::loops();
        for measured in [emulated, stepped, bare] {
            time_of(&measured, 1000);
            assert!(own_file_offset(measured.probe_at).is_some_and(|offset| offset > 0));
        }
    }

    #[test]
    fn live_a_stepped_hit_costs_more_than_an_emulated_one() {
        let (HitCost { emulated_ns, stepped_ns, neighbour_ns }, _) = match measure() {
            Err(Error::Permission { what }) if !rustix::process::geteuid().is_root() => {
                crate::not_tested(what);
                return;
            }
            result => result.expect("a kernel with uprobes"),
        };
        assert!(emulated_ns > 50.0 && emulated_ns < 100_000.0, "{emulated_ns}");
        assert!((0.0..emulated_ns).contains(&neighbour_ns), "{neighbour_ns} and {emulated_ns}");
        assert!(stepped_ns > emulated_ns, "{stepped_ns} and {emulated_ns}");
    }
}
