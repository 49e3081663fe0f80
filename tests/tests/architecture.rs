//! The rooms keep to what they may know: each invariant of the README's map is held against the
//! sources. Input: the files of the repository. Runs without root, kernel and Go.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The longest that a source file may be; there are no exceptions.
const MAX_LINES: usize = 600;

/// A crate or item that only some rooms may name. Paths are relative to the workspace.
struct Rule {
    /// Where it holds: a directory or a file.
    within: &'static [&'static str],
    /// Who is free to name it: directories, files, or beginnings of their names.
    except: &'static [&'static str],
    /// What must not be named, as whole words; `::` may join several.
    words: &'static [&'static str],
}

/// The crates of the daemon, and which others each may name; the compiler keeps what its manifest says, and this
/// table what the manifest may say. As in the README's map.
const CRATES: [(&str, &[&str]); 10] = [
    ("gotrace-daemon/crates/model", &["gotrace-common"]),
    ("gotrace-daemon/crates/go", &["gotrace-common", "gotrace-model"]),
    ("gotrace-daemon/crates/process", &["gotrace-model"]),
    ("gotrace-daemon/crates/metadata", &["gotrace-model", "gotrace-process"]),
    ("gotrace-daemon/crates/kernel", &["gotrace-common", "gotrace-go", "gotrace-process"]),
    ("gotrace-daemon/crates/inspect", &["gotrace-model", "gotrace-go", "gotrace-process"]),
    (
        "gotrace-daemon/crates/export",
        &["gotrace-common", "gotrace-model", "gotrace-go", "gotrace-process", "gotrace-inspect"],
    ),
    ("gotrace-daemon/crates/ui", &["gotrace-common", "gotrace-model", "gotrace-process", "gotrace-export"]),
    (
        "gotrace-daemon/crates/agent",
        &[
            "gotrace-common",
            "gotrace-model",
            "gotrace-go",
            "gotrace-process",
            "gotrace-metadata",
            "gotrace-kernel",
            "gotrace-inspect",
            "gotrace-export",
        ],
    ),
    (
        "gotrace-daemon",
        &[
            "gotrace-common",
            "gotrace-model",
            "gotrace-go",
            "gotrace-process",
            "gotrace-metadata",
            "gotrace-kernel",
            "gotrace-inspect",
            "gotrace-export",
            "gotrace-ui",
            "gotrace-agent",
        ],
    ),
];

/// Packages that only these crates may depend on.
const ONLY_THERE: [(&[&str], &[&str]); 6] = [
    (&["aya", "aya-log", "aya-obj"], &["gotrace-daemon/crates/kernel"]),
    (
        &[
            "opentelemetry",
            "opentelemetry-otlp",
            "opentelemetry-proto",
            "opentelemetry_sdk",
            "tonic",
            "tonic-types",
            "prost",
        ],
        &["gotrace-daemon/crates/export"],
    ),
    // What exports speaks to a collector; what asks about surroundings is `metadata` alone.
    (&["reqwest"], &["gotrace-daemon/crates/export", "gotrace-daemon/crates/metadata"]),
    (&["kube", "k8s-openapi"], &["gotrace-daemon/crates/metadata"]),
    (&["ratatui", "crossterm"], &["gotrace-daemon/crates/ui"]),
    (&["gimli", "iced-x86", "object"], &["gotrace-daemon/crates/go", "gotrace-daemon/crates/kernel"]),
];

const EXPORT: &str = "gotrace-daemon/crates/export/src";

const RULES: [Rule; 5] = [
    Rule {
        within: &[EXPORT],
        except: &["gotrace-daemon/crates/export/src/otlp/"],
        words: &[
            "opentelemetry",
            "opentelemetry_otlp",
            "opentelemetry_proto",
            "opentelemetry_sdk",
            "tonic",
            "tonic_types",
            "reqwest",
        ],
    },
    Rule {
        within: &[EXPORT],
        // A profile is protobuf as well.
        except: &["gotrace-daemon/crates/export/src/otlp/", "gotrace-daemon/crates/export/src/profile.rs"],
        words: &["prost"],
    },
    Rule {
        within: &[
            "gotrace-daemon/crates/model/src",
            "gotrace-daemon/crates/go/src",
            "gotrace-daemon/crates/agent/src/decode.rs",
            "gotrace-daemon/crates/agent/src/table",
            "gotrace-daemon/crates/agent/src/tracee",
            "gotrace-daemon/crates/inspect/src/leak",
        ],
        except: &[],
        words: &[
            "tokio",
            "std::fs",
            "std::net",
            "std::env",
            "std::process",
            "std::thread",
            "SystemTime",
            "Instant",
            "rustix",
            "libc",
        ],
    },
    Rule { within: &["gotrace-common/src"], except: &[], words: &["std", "alloc"] },
    Rule {
        within: &["gotrace-ebpf/src"],
        except: &["gotrace-ebpf/src/emit.rs", "gotrace-ebpf/src/maps.rs"],
        words: &["RingBuf"],
    },
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_path_buf()
}

/// The files of a kind below the directories that hold what people wrote, with their paths relative to
/// the workspace.
fn files(extensions: &[&str]) -> Vec<(String, String)> {
    fn collect(directory: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).expect("a directory of the workspace") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() {
                if !["target", ".git", "node_modules"].contains(&&*name) {
                    collect(&path, extensions, found);
                }
            } else if extensions.contains(&path.extension().unwrap_or_default().to_string_lossy().as_ref()) {
                found.push(path);
            }
        }
    }
    let root = workspace();
    let mut found = Vec::new();
    collect(&root, extensions, &mut found);
    found.sort();
    found
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&root).expect("below the workspace").to_string_lossy().into_owned();
            let text = String::from_utf8_lossy(&fs::read(&path).expect("a file")).into_owned();
            (name, text)
        })
        .collect()
}

/// What a line says without its comment. A `//` within a string cuts too much, which no rule minds.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or(line)
}

/// Whether `word` is in `line` as a whole word.
fn names(line: &str, word: &str) -> bool {
    let part_of_a_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].chars().next_back().is_some_and(part_of_a_word)
            && !line[at + word.len()..].chars().next().is_some_and(part_of_a_word)
    })
}

/// The part of a file that is compiled into the program: unit tests stand at the end.
fn without_tests(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod ").next().unwrap_or(text)
}

/// The places in `text` that break `rule`.
fn broken(rule: &Rule, name: &str, text: &str) -> Vec<String> {
    let concerned = rule.within.iter().any(|w| name == *w || name.starts_with(&format!("{w}/")));
    // A room's tests may read a file or take the time.
    let is_test = name.ends_with("/tests.rs") || name.ends_with("_tests.rs") || name.contains("/tests/");
    if !concerned || is_test || rule.except.iter().any(|e| name.starts_with(e)) {
        return Vec::new();
    }
    let mut places = Vec::new();
    for (number, line) in without_tests(text).lines().enumerate() {
        for word in rule.words.iter().filter(|w| names(code(line), w)) {
            places.push(format!("{name}:{}: names {word}", number + 1));
        }
    }
    // `use std::{fs, …}` says the same as `use std::fs`.
    for group in without_tests(text).split("use std::{").skip(1) {
        let group = group.split(';').next().unwrap_or(group);
        for word in rule.words.iter().filter_map(|w| w.strip_prefix("std::")).filter(|w| names(group, w)) {
            places.push(format!("{name}: names std::{word}"));
        }
    }
    places
}

#[test]
fn rooms_name_only_what_they_may() {
    let files = files(&["rs"]);
    let mut places = Vec::new();
    for rule in &RULES {
        for within in rule.within {
            assert!(
                files.iter().any(|(name, _)| name.starts_with(within)),
                "{within} is gone: the rule about {:?} guards nothing",
                rule.words
            );
        }
        places.extend(files.iter().flat_map(|(name, text)| broken(rule, name, text)));
    }
    assert!(places.is_empty(), "\n{}", places.join("\n"));
}

#[test]
fn the_rules_find_what_they_forbid() {
    let [otlp, _, pure, ..] = &RULES;
    let found = |rule, name: &str, text: &str| !broken(rule, name, text).is_empty();
    let text = "gotrace-daemon/crates/export/src/text.rs";
    assert!(found(otlp, text, "//! A line.\nuse tonic::Status;\n"));
    assert!(found(otlp, text, "    tonic::Status::ok(\"\")\n"));
    assert!(!found(otlp, text, "// as tonic has it\nfn atonic() {}\n"));
    assert!(!found(otlp, "gotrace-daemon/crates/export/src/otlp/retry.rs", "use tonic::Status;\n"));
    let table = "gotrace-daemon/crates/agent/src/table/mod.rs";
    assert!(found(pure, "gotrace-daemon/crates/agent/src/decode.rs", "use std::time::Instant;\n"));
    assert!(found(pure, table, "use std::{\n    collections::HashMap,\n    fs,\n};\n"));
    assert!(!found(pure, table, "\n#[cfg(test)]\nmod tests {\n use std::fs;\n}\n"));
}

/// What a manifest's `[dependencies]` names.
fn dependencies(manifest: &str) -> Vec<String> {
    let text = fs::read_to_string(workspace().join(manifest).join("Cargo.toml")).expect("a manifest");
    let (_, section) = text.split_once("[dependencies]\n").expect("dependencies");
    let section = section.split("\n[").next().unwrap_or_default();
    section
        .lines()
        .filter_map(|line| line.split([' ', '.']).next())
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

#[test]
fn crates_depend_only_on_what_the_map_says() {
    let mut wrong = Vec::new();
    for (name, allowed) in CRATES {
        for dependency in dependencies(name) {
            if dependency.starts_with("gotrace-") && !allowed.contains(&dependency.as_str()) {
                wrong.push(format!("{name} depends on {dependency}"));
            }
            for (packages, crates) in ONLY_THERE {
                if packages.contains(&dependency.as_str()) && !crates.contains(&name) {
                    wrong.push(format!("{name} depends on {dependency}, which is for {crates:?}"));
                }
            }
        }
    }
    let there = fs::read_dir(workspace().join("gotrace-daemon/crates")).expect("crates").count();
    assert_eq!(there + 1, CRATES.len(), "a crate is not in the table");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_source_file_says_what_it_is_and_stays_short() {
    let mut wrong = Vec::new();
    let files = files(&["rs"]);
    assert!(files.len() > 50, "only {} source files were found", files.len());
    for (name, text) in files {
        if !text.starts_with("//! ") {
            wrong.push(format!("{name}: does not open with //!"));
        }
        let lines = text.lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{name}: {lines} lines, and {MAX_LINES} are the limit"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn nothing_names_a_directory_of_one_machine() {
    // Put together here, so that this file does not name them.
    let directories = ["work", "root", "tmp/wt"].map(|d| format!("/{d}/"));
    let mut wrong = Vec::new();
    for (name, text) in files(&[
        "rs", "toml", "md", "go", "sh", "json", "yaml", "yml", "trycmd", "lock", "mod", "txt", "ts", "tsx",
        "mjs",
    ]) {
        for (number, line) in text.lines().enumerate() {
            for directory in &directories {
                // A path of its own, not the end of a longer one (`/proc/<pid>/root/…`, `a/work/b`).
                let begins = |at: usize| {
                    !line[..at]
                        .chars()
                        .next_back()
                        .is_some_and(|c| c.is_alphanumeric() || "/}>._-".contains(c))
                };
                if line.match_indices(directory.as_str()).any(|(at, _)| begins(at)) {
                    wrong.push(format!("{name}:{}: names {directory}", number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The files that a source file builds in, relative to the workspace.
fn built_in(name: &str, text: &str) -> Vec<String> {
    let macros = ["include_bytes!(\"", "include_bytes_aligned!(\"", "include_str!(\""];
    let paths = macros.iter().flat_map(|begin| text.split(begin).skip(1));
    paths
        .filter_map(|rest| Some(Path::new(name).parent()?.join(rest.split_once('"')?.0)))
        .map(|path| {
            let mut parts: Vec<&str> = Vec::new();
            for part in path.iter().filter_map(|part| part.to_str()) {
                match part {
                    ".." => parts.truncate(parts.len().saturating_sub(1)),
                    part => parts.push(part),
                }
            }
            parts.join("/")
        })
        .collect()
}

/// A fresh clone has everything that `cargo install --locked --path gotrace-daemon` builds in, and nothing of it comes from
/// outside of what is installed.
#[test]
fn what_is_built_in_is_committed() {
    let listed = Command::new("git").current_dir(workspace()).arg("ls-files").output().expect("git runs");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let committed = |file: &str| listed.lines().any(|line| line == file);
    let mut found: Vec<String> = vec!["Cargo.lock".to_owned()];
    for (name, text) in files(&["rs"]).iter().filter(|(name, _)| name.starts_with("gotrace-daemon/")) {
        found.extend(built_in(name, text));
    }
    for file in ["gotrace-daemon/demo/demo.amd64.gz", "gotrace-daemon/ebpf/gotrace.aarch64.bpf.o"] {
        assert!(found.iter().any(|found| found == file), "{file} is not found in {found:?}");
    }
    let there = |file: &str| committed(file) && (file == "Cargo.lock" || file.starts_with("gotrace-daemon/"));
    let wrong: Vec<_> = found.iter().filter(|file| !there(file)).collect();
    assert!(wrong.is_empty(), "built in, and not committed below gotrace-daemon: {wrong:?}");
}
