//! The pages of the guide (`gotrace-daemon/docs/guide`) as what they promise: commands, and what these print.
//!
//! A block ```` ```console ```` has commands, each behind `$ `, and below each all that it prints to standard output. There
//!
//! - `…` stands for any words, or none; at the beginning of a word, for any letters;
//! - a number stands for any number, with its unit (`9.7s`, `≤34ms`, `16.2 KiB`), but in a place in source (`main.go:118`)
//!   and in a name (`func1`, `go1.27.3`) it is meant;
//! - how words are spaced and lines broken does not count.
//!
//! Before a block, `<!-- rehearsed on: cases holder -->` names the Go program, of which `1234` is the pid in this block and
//! those that follow, and whose executable is called `shop`; `, within a tenth of a CPU` gives it a quota. A number behind
//! `--goid` is one that the page shows before: it stands for the one that was printed there.

use std::collections::HashMap;

/// The pid of the program, on each page.
pub const PID: &str = "1234";
/// What stands for what is left out.
const GAP: char = '…';

/// Commands of a page that are given one after the other, beside one program.
#[derive(Debug)]
pub struct Rehearsal {
    /// `demo`, or `cases` with one of its cases.
    pub program: String,
    /// Whether it has a tenth of a CPU only.
    pub within_quota: bool,
    /// In their order.
    pub steps: Vec<Step>,
}

/// A command, and what it prints.
#[derive(Debug)]
pub struct Step {
    /// Of the page, from 1 on.
    pub line: usize,
    /// Without `gotrace`.
    pub arguments: Vec<String>,
    /// Words.
    pub prints: Vec<String>,
}

/// What a page's commands are.
///
/// # Panics
/// Where it does not keep to the rules above.
#[must_use]
pub fn rehearsals(page: &str) -> Vec<Rehearsal> {
    let mut all: Vec<Rehearsal> = Vec::new();
    let mut inside = false;
    for (number, line) in page.lines().enumerate().map(|(n, line)| (n + 1, line)) {
        if inside {
            let steps = &mut all.last_mut().expect("a program").steps;
            if line == "```" {
                inside = false;
            } else if let Some(command) = line.strip_prefix("$ ") {
                let words = command.strip_prefix("gotrace").unwrap_or_else(|| panic!("{number}: {command}"));
                assert!(!words.contains(['|', '>', '<', ';', '&', '\'', '"', '#']), "{number}: {command}");
                let arguments = words.split_whitespace().map(str::to_owned).collect();
                steps.push(Step { line: number, arguments, prints: Vec::new() });
            } else {
                let step = steps.last_mut().unwrap_or_else(|| panic!("{number}: no command before"));
                step.prints.extend(line.split_whitespace().map(str::to_owned));
            }
        } else if line == "```console" {
            assert!(!all.is_empty(), "{number}: no program is named before");
            inside = true;
        } else if let Some(on) = line.strip_prefix("<!-- rehearsed on: ") {
            let on = on.strip_suffix(" -->").unwrap_or_else(|| panic!("{number}: {line}"));
            let (program, within_quota) = match on.split_once(", ") {
                Some((program, "within a tenth of a CPU")) => (program, true),
                None => (on, false),
                Some(_) => panic!("{number}: {line}"),
            };
            all.push(Rehearsal { program: program.to_owned(), within_quota, steps: Vec::new() });
        }
    }
    all
}

impl Step {
    /// The command, with what its numbers stand for.
    ///
    /// # Panics
    /// Where a goroutine is meant that the page does not show before.
    #[must_use]
    pub fn command(&self, numbers: &HashMap<String, String>) -> Vec<String> {
        let mut before = "";
        let mut command = Vec::new();
        for word in &self.arguments {
            let number = word.strip_prefix("pid:").unwrap_or(word);
            let stands = if number == PID || before == "--goid" {
                let known = numbers.get(number);
                let known = known.unwrap_or_else(|| panic!("line {}: nothing shows {number}", self.line));
                word.replace(number, known)
            } else {
                word.clone()
            };
            command.push(stands);
            before = word;
        }
        command
    }

    /// Whether this is what it printed: the goroutines' numbers with what stands for them, or the words that are missing.
    ///
    /// # Errors
    /// Those words.
    pub fn compare(&self, printed: &str) -> Result<HashMap<String, String>, String> {
        let words: Vec<&str> = printed.split_whitespace().collect();
        let gap = GAP.to_string();
        let parts: Vec<&[String]> = self.prints.split(|word| *word == gap).collect();
        let (mut at, mut numbers) = (0, HashMap::new());
        for (n, part) in parts.iter().enumerate() {
            let is_last = n + 1 == parts.len();
            let fits = |start: usize| {
                let window = words.get(start..start + part.len());
                window.is_some_and(|w| part.iter().zip(w).all(|(expected, word)| alike(expected, word)))
            };
            let mut starts = at..=words.len();
            let found = match n {
                // What stands at an end does so.
                0 => Some(0).filter(|_| fits(0) && (!is_last || part.len() == words.len())),
                _ if is_last => {
                    words.len().checked_sub(part.len()).filter(|start| *start >= at && fits(*start))
                }
                _ => starts.find(|start| fits(*start)),
            };
            let Some(start) = found else { return Err(part.join(" ")) };
            at = start + part.len();
            let mut is_goid = false;
            for (expected, word) in part.iter().zip(&words[start..at]) {
                if let (true, Some(expected), Some(word)) =
                    (is_goid, whole_number(expected), whole_number(word))
                {
                    numbers.entry(expected.to_owned()).or_insert_with(|| word.to_owned());
                } else {
                    is_goid = ["goroutine", "goid", "goids"].contains(&expected.as_str());
                }
            }
        }
        Ok(numbers)
    }
}

/// A number alone, with or without a sign behind it.
fn whole_number(word: &str) -> Option<&str> {
    let number = word.trim_end_matches([':', ',']);
    (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then_some(number)
}

fn alike(expected: &str, word: &str) -> bool {
    match expected.strip_prefix(GAP) {
        Some(end) => shape(word).ends_with(&shape(end)),
        None => shape(expected) == shape(word),
    }
}

/// A word with `#` for each number in it that may differ.
fn shape(word: &str) -> String {
    const UNITS: [&str; 10] = ["ns", "us", "µs", "ms", "min", "m", "h", "d", "s", "%"];
    if ["B", "KiB", "MiB", "GiB"].contains(&word) || UNITS.contains(&word.trim_end_matches(['.', ','])) {
        return "#".to_owned();
    }
    if word.chars().all(|c| "█▓▒░".contains(c)) {
        return "#".to_owned();
    }
    let mut shape = String::new();
    let mut rest = word.trim_start_matches(['≤', '≥']);
    while let Some(first) = rest.chars().next() {
        let before: Vec<char> = shape.chars().rev().take(2).collect();
        let in_name = |c: &char| c.is_alphabetic() || *c == '_';
        let is_meant =
            before.first().is_some_and(in_name) || before[..] == [':', 'o'] || before.first() == Some(&'.');
        let hex =
            rest.strip_prefix("0x").map_or(0, |d| 2 + d.chars().take_while(char::is_ascii_hexdigit).count());
        let is_part = |c: &char| c.is_ascii_digit() || matches!(c, '.' | ',');
        let end = |text: &str| text.chars().take_while(is_part).count();
        let mut length = if hex > 2 { hex } else { end(rest) };
        if !first.is_ascii_digit() {
            shape.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        if is_meant {
            shape.push_str(&rest[..length]);
            rest = &rest[length..];
            continue;
        }
        // `1.2s,` and `1.2s.` end with a sign, not with a number; `1m25s` is one.
        while rest[..length].ends_with(['.', ',']) {
            length -= 1;
        }
        while let Some(unit) = UNITS.iter().find(|unit| rest[length..].starts_with(**unit)) {
            length += unit.len();
            length += end(&rest[length..]);
            while rest[..length].ends_with(['.', ',']) {
                length -= 1;
            }
        }
        shape.push('#');
        rest = &rest[length..];
    }
    shape
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# It leaks
<!-- rehearsed on: cases holder, within a tenth of a CPU -->
```console
$ gotrace check 1234
pid 1234 (shop): 1 problem
…
  stuck  8 goroutines, oldest for 8.4s
         held by goroutine 8 (main.flusher) at main.flusher (locks.go:108): …
$ gotrace dump pid:1234 --goid 8
```
";

    fn step(prints: &str) -> Step {
        let prints = prints.split_whitespace().map(str::to_owned).collect();
        Step { line: 1, arguments: Vec::new(), prints }
    }

    #[test]
    fn a_page_is_programs_commands_and_what_they_print() {
        let all = rehearsals(PAGE);
        let [Rehearsal { program, within_quota: true, steps }] = &all[..] else { panic!("{all:?}") };
        assert_eq!(program, "cases holder");
        assert_eq!((steps[0].line, &steps[0].arguments[..]), (4, &["check".to_owned(), PID.to_owned()][..]));
        let printed = "pid 77 (shop): 1 problem\n  12 goroutines\n\n  stuck 9 goroutines, oldest for 1m25s held by \
                       goroutine 31 (main.flusher)\nat main.flusher (locks.go:108): sleep";
        let mut numbers = steps[0].compare(printed).expect("it is that");
        assert_eq!(numbers["8"], "31", "a goroutine's, not a count");
        numbers.insert(PID.to_owned(), "77".to_owned());
        assert_eq!(steps[1].command(&numbers), ["dump", "pid:77", "--goid", "31"]);
        let other = printed.replace("locks.go:108", "locks.go:109");
        assert!(steps[0].compare(&other).expect_err("another line").starts_with("stuck 8 goroutines,"));
    }

    #[test]
    fn only_what_is_left_out_may_be_more() {
        assert!(step("a b").compare("a b").is_ok());
        assert!(step("a b").compare("a b c").is_err());
        assert!(step("a b").compare("c a b").is_err());
        assert!(step("").compare("a").is_err());
        assert!(step("").compare("").is_ok());
        assert!(step("… b").compare("a b b").is_ok());
        assert!(step("… a … b").compare("b a").is_err());
        assert!(step("a … …/main.go:7 +0x1d").compare("a /src/x/main.go:7 +0x2").is_ok());
        assert!(step("a … a").compare("a").is_err(), "nothing is both");
    }

    #[test]
    fn numbers_may_differ_where_they_are_none_of_a_name() {
        for (one, other) in [
            ("≤34ms", "1.2s"),
            ("1m25s", "9.7s"),
            ("KiB", "MiB"),
            ("127.0.0.1:34123", "127.0.0.1:80"),
            ("+4.7/s", "+14/s"),
            ("0xc00018e930", "0x1f"),
            ("9.7s,", "12s,"),
            ("s.", "min"),
            ("░░▓", "█"),
            ("5.0s+", "12s+"),
        ] {
            assert!(alike(one, other), "{one} {other}: {} {}", shape(one), shape(other));
        }
        for (one, other) in [
            ("main.go:118", "main.go:119"),
            ("func1", "func2"),
            ("go1.27.3", "go1.27.4"),
            ("stuck", "growing"),
            ("9.7s", "-"),
            ("9.7s", "9.7s,"),
            ("(8", "8"),
        ] {
            assert!(!alike(one, other), "{one} {other}: {} {}", shape(one), shape(other));
        }
    }
}
