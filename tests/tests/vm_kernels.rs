//! The same static binary with its embedded eBPF object attaches on every supported kernel and
//! architecture, and its account agrees with the Go program's there. Needs `go` and qemu, not root.

use gotrace_tests::{
    compare::{Rules, compare},
    export::Export,
    fixture::Account,
    gobuild::{Arch, Mode, build},
    vm::{Left, SERIES, boot, tail},
};

/// Holds the accounts of one machine against each other.
fn judge(left: &Left) -> Result<String, String> {
    let file = |name: &str| left.files.get(name).map_or("", String::as_str);
    let about = || {
        format!(
            "statuses {:?}\nstderr:\n{}\nconsole:\n{}",
            left.statuses,
            tail(file("stderr"), 30),
            tail(&left.console, 15)
        )
    };
    for who in ["fixture", "gotrace"] {
        if left.statuses.get(who).map(String::as_str) != Some("0") {
            return Err(format!("{who} did not end well; {}", about()));
        }
    }
    let account = Account::parse(file("account")).map_err(|e| format!("{e:#}; {}", about()))?;
    let export = Export::parse(file("export")).map_err(|e| format!("{e:#}; {}", about()))?;
    // An emulated machine keeps goroutines waiting for a core, and its clocks drift against each other.
    let rules = Rules { clock_ns: 10_000_000, threshold_ns: 5_000_000, stray_ns: 45_000_000 };
    match compare(&account, &export.spans, rules) {
        Ok(counted) if counted.goroutines > 0 => Ok(format!(
            "{} goroutines and {} waits agree ({:.0?})",
            counted.goroutines, counted.waits, left.took
        )),
        Ok(_) => Err(format!("nothing to compare; {}", about())),
        // An emulated page may not be readable at the moment of a hit: then gotrace says so.
        Err(wrong) if wrong.len() as u64 <= lost(file("stdout")) => {
            Ok(format!("what disagrees is counted as lost: {}", wrong.join(", ")))
        }
        Err(wrong) => Err(format!(
            "{} disagreements:\n  {}\ngotrace's last line:\n  {}",
            wrong.len(),
            wrong.join("\n  "),
            tail(file("stdout"), 1)
        )),
    }
}

/// How many events the summary says were lost.
fn lost(stdout: &str) -> u64 {
    let summary: Option<serde_json::Value> = stdout.lines().last().and_then(|l| serde_json::from_str(l).ok());
    let lost = summary.as_ref().and_then(|s| s["summary"]["lost"].as_object());
    lost.map_or(0, |kinds| kinds.values().filter_map(serde_json::Value::as_u64).sum())
}

fn every_kernel(arch: Arch, version: &str) {
    let fixture = build("account", version, Mode::Stripped, arch).expect("the fixture builds");
    let mut failed = Vec::new();
    for series in SERIES {
        let name = format!("kernel {series} {} go{version}", arch.name());
        let got = boot(series, arch, &fixture).map_err(|e| format!("{e:#}"));
        match got.and_then(|left| judge(&left).map(|ok| format!("{}: {ok}", left.kernel))) {
            Ok(line) => eprintln!("{name}: {line}"),
            Err(e) => {
                eprintln!("{name}: {e}");
                failed.push(name);
            }
        }
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
}

#[test]
fn amd64() {
    every_kernel(Arch::Amd64, "1.27.3");
}

#[test]
fn arm64() {
    every_kernel(Arch::Arm64, "1.27.3");
}
