//! The rooms keep to what they may know: each invariant of the README's map is held against the
//! sources. Input: the files of the repository. Runs without root, kernel and Go.

use std::{
    fs,
    path::{Path, PathBuf},
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

const DAEMON: &str = "gotrace-daemon/src";

const RULES: [Rule; 9] = [
    Rule {
        within: &[DAEMON],
        except: &["gotrace-daemon/src/kernel/", "gotrace-daemon/src/kernel.rs"],
        words: &["aya", "aya_log", "aya_obj"],
    },
    Rule {
        within: &[DAEMON],
        // An annotation of pods has the name in it.
        except: &["gotrace-daemon/src/sink/otlp/", "gotrace-daemon/src/enrich/kubernetes/pod.rs"],
        words: &[
            "opentelemetry",
            "opentelemetry_otlp",
            "opentelemetry_proto",
            "opentelemetry_sdk",
            "tonic",
            "tonic_types",
        ],
    },
    Rule {
        within: &[DAEMON],
        // Whoever exports speaks to a collector; whoever asks about surroundings is `enrich` alone.
        except: &["gotrace-daemon/src/sink/otlp/", "gotrace-daemon/src/enrich/"],
        words: &["reqwest", "hyper"],
    },
    Rule { within: &[DAEMON], except: &["gotrace-daemon/src/enrich/"], words: &["kube", "k8s_openapi"] },
    Rule {
        within: &[DAEMON],
        // A profile is protobuf as well.
        except: &["gotrace-daemon/src/sink/otlp/", "gotrace-daemon/src/sink/dump/pprof.rs"],
        words: &["prost"],
    },
    Rule { within: &[DAEMON], except: &["gotrace-daemon/src/ui/"], words: &["ratatui", "crossterm"] },
    Rule {
        within: &[
            "gotrace-daemon/src/gobin",
            "gotrace-daemon/src/decode.rs",
            "gotrace-daemon/src/table",
            "gotrace-daemon/src/leak",
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
            "procfs",
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
                if name != "target" && name != ".git" {
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
    let [kernel, otlp, _, kube, _, _, pure, ..] = &RULES;
    let found = |rule, name: &str, text: &str| !broken(rule, name, text).is_empty();
    assert!(found(kernel, "gotrace-daemon/src/pipeline.rs", "//! A line.\nuse aya::Ebpf;\n"));
    assert!(!found(kernel, "gotrace-daemon/src/kernel/ring.rs", "use aya::Ebpf;\n"));
    assert!(!found(kernel, "gotrace-daemon/src/pipeline.rs", "// as aya has it\nfn ayah() {}\n"));
    assert!(found(otlp, "gotrace-daemon/src/sink/json.rs", "    tonic::Status::ok(\"\")\n"));
    assert!(found(kube, "gotrace-daemon/src/pipeline.rs", "use kube::Client;\n"));
    assert!(!found(kube, "gotrace-daemon/src/enrich/kubernetes/watch.rs", "use kube::Client;\n"));
    assert!(found(pure, "gotrace-daemon/src/decode.rs", "use std::time::Instant;\n"));
    assert!(found(
        pure,
        "gotrace-daemon/src/table/mod.rs",
        "use std::{\n    collections::HashMap,\n    fs,\n};\n"
    ));
    assert!(!found(
        pure,
        "gotrace-daemon/src/table/mod.rs",
        "\n#[cfg(test)]\nmod tests {\n use std::fs;\n}\n"
    ));
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
    for (name, text) in
        files(&["rs", "toml", "md", "go", "sh", "json", "yaml", "yml", "trycmd", "lock", "mod", "txt"])
    {
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
