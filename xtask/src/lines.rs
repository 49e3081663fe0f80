//! How much code gotrace is: lines of its packages, without what only tests need.
//!
//! Left out: files of tests (`tests.rs`, `…_tests.rs`, `testing.rs`), modules and other items behind `#[cfg(test)]`, blank
//! lines and lines that are comments alone. What a package depends on is not counted.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result};

use crate::util::root;

/// Prints a line a package, and the sum.
pub fn main() -> Result<()> {
    let mut packages: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for name in ["gotrace-common", "gotrace-ebpf", "gotrace-daemon"] {
        walk(&root().join(name), &mut |path, text| {
            let inside = path.strip_prefix(root()).unwrap_or(path).to_string_lossy().into_owned();
            let package = inside.split("/src/").next().unwrap_or(&inside).to_owned();
            let counted = packages.entry(package).or_default();
            counted.0 += 1;
            counted.1 += lines(text);
        })?;
    }
    println!("{:<40} {:>6} {:>8}", "package", "files", "lines");
    for (package, (files, lines)) in &packages {
        println!("{package:<40} {files:>6} {lines:>8}");
    }
    let (files, lines) = packages.values().fold((0, 0), |sum, of| (sum.0 + of.0, sum.1 + of.1));
    println!("{:<40} {files:>6} {lines:>8}", "all");
    Ok(())
}

/// Calls `f` with each source file that is no test's.
fn walk(directory: &Path, f: &mut impl FnMut(&Path, &str)) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !matches!(&*name, "target" | "web" | "tests") {
                walk(&path, f)?;
            }
        } else if name.ends_with(".rs") && !is_of_tests(&name) {
            let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            f(&path, &text);
        }
    }
    Ok(())
}

fn is_of_tests(name: &str) -> bool {
    matches!(name, "tests.rs" | "testing.rs") || name.ends_with("_tests.rs")
}

/// Lines of a file that count. The sources are formatted: what begins at a column ends with a line that is indented as much.
fn lines(text: &str) -> usize {
    let mut count = 0;
    let mut all = text.lines();
    while let Some(line) = all.next() {
        let code = line.trim_start();
        if code == "#[cfg(test)]" {
            let indent = &line[..line.len() - code.len()];
            // Other attributes, then the item: up to its `;`, or to the brace that closes it.
            let mut item = all.by_ref().skip_while(|line| line.trim_start().starts_with("#["));
            if item.next().is_some_and(|first| !first.ends_with(';') && !first.ends_with('}')) {
                let close = format!("{indent}}}");
                let _ = item.find(|line| *line == close || line.starts_with(&format!("{close};")));
            }
        } else if !code.is_empty() && !code.starts_with("//") {
            count += 1;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_tests_need_does_not_count() {
        let text = "//! A file.\n\nuse a::b;\n#[cfg(test)]\nuse c::d;\n\n/// Says.\nfn f() {\n    // Why.\n    g();\n}\n\n\
                    #[cfg(test)]\n#[path = \"x.rs\"]\nmod x;\n\n#[cfg(test)]\nmod tests {\n    fn t() {\n    }\n}\nfn h() {}\n";
        assert_eq!(lines(text), 5);
        assert_eq!(lines(""), 0);
        assert!(is_of_tests("page_tests.rs") && !is_of_tests("go_test.rs"));
    }
}
