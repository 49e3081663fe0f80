//! What the program `cpu` says of the CPU time that its goroutines have used, held against gotrace's summary.

use serde_json::Value;

/// Functions that goroutines of the program run, and know the CPU time of.
const KINDS: [&str; 5] = ["main.spinner", "main.napper", "main.reader", "main.passer", "main.short"];

/// A figure of the goroutines of a summary that run such a function, in all.
///
/// # Panics
/// Where it is no summary.
pub fn sum(summary: &Value, field: &str, function: impl Fn(&str) -> bool) -> u64 {
    let sites = summary["sites"].as_array().expect("sites");
    let of = |site: &&Value| site["entry"]["function"].as_str().is_some_and(&function);
    sites.iter().filter(of).filter_map(|site| site[field].as_u64()).sum()
}

/// What does not agree; each kind of goroutine may be off by one in so many parts of what it has used.
///
/// # Panics
/// Where these are no account and no summary.
#[must_use]
pub fn disagreements(own: &Value, seen: &Value, part: u64) -> Vec<String> {
    let shorts = own["short_ones"].as_u64().expect("a number");
    let mut wrong = Vec::new();
    let mut check = |what: &str, own: u64, seen: u64, below: u64, above: u64| {
        println!("  {what:<14} own {:>8.2} ms, seen {:>8.2} ms", own as f64 / 1e6, seen as f64 / 1e6);
        if seen + below < own || seen > own + above {
            wrong.push(format!("{what}: {own} ns by its own clock, {seen} ns seen"));
        }
    };
    for kind in KINDS {
        let own = own[kind].as_u64().expect("a time");
        let seen = sum(seen, "cpu_ns", |function| function == kind);
        // Beginning and ending are not in their own account.
        let around = if kind == "main.short" { 40_000 * shorts } else { 0 };
        check(kind, own, seen, own / part + 2_000_000, own / part + 8_000_000 + around);
    }
    // All goroutines, the runtime's too, and what is outside of them: the scheduler.
    let (process, all) = (own["process"].as_u64().expect("a time"), sum(seen, "cpu_ns", |_| true));
    check("all", process, all, process / 12, process / 50);
    check("the process", process, seen["process_cpu_ns"].as_u64().expect("known"), process / 50, process / 4);
    wrong
}
