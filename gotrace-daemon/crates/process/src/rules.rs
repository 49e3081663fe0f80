//! Which processes are traced: rules on what is known of a process.
//!
//! Pure: what is known comes as [`Facts`]. A process is taken when an `include` rule matches it, or there is
//! none, and no `exclude` rule does. All conditions of one rule must hold. Metadata that is not known (yet)
//! matches no condition; when it becomes known the process is judged again.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use regex::Regex;

/// A condition on text: a glob (`*` within a path's part, `**` across, `?`), or behind `~` a regular
/// expression.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    regex: Regex,
    /// A glob without `/` is for the file's name alone.
    name_only: bool,
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an empty pattern matches nothing".into());
        }
        let expression = match text.strip_prefix('~') {
            Some(expression) => expression.to_owned(),
            None => glob(text),
        };
        let regex = Regex::new(&expression).map_err(|e| format!("`{text}` is not a valid pattern: {e}"))?;
        let name_only = !text.starts_with('~') && !text.contains('/');
        Ok(Self { text: text.into(), regex, name_only })
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Pattern {
    /// As it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it matches this text.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    fn matches_path(&self, path: &Path) -> bool {
        let text = if self.name_only {
            path.file_name().unwrap_or_default().to_string_lossy()
        } else {
            path.to_string_lossy()
        };
        self.matches(&text)
    }
}

fn glob(text: &str) -> String {
    let mut expression = String::from("^(?s:");
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '*' if rest.starts_with('*') => {
                rest = &rest[1..];
                expression.push_str(".*");
            }
            '*' if text.contains('/') => expression.push_str("[^/]*"),
            '*' => expression.push_str(".*"),
            '?' => expression.push('.'),
            c => expression.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    expression + ")$"
}

/// What is known of a process.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Path of its executable in its own mount namespace.
    pub executable: PathBuf,
    /// Its arguments, joined by spaces.
    pub command_line: String,
    /// Effective user id.
    pub uid: u32,
    /// What others know of it, by attribute: `container.id`, `k8s.pod.name`, `k8s.namespace.name`,
    /// `k8s.pod.label.<name>`.
    pub metadata: BTreeMap<Arc<str>, String>,
}

/// Conditions that must all hold. Of several patterns for one thing, one must.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// Path of the executable; a pattern without `/` is for its file name.
    pub executable: Vec<Pattern>,
    /// Arguments, joined by spaces.
    pub command_line: Vec<Pattern>,
    /// Effective user ids.
    pub uid: Vec<u32>,
    /// By attribute.
    pub metadata: BTreeMap<String, Vec<Pattern>>,
}

impl Rule {
    /// Whether every condition holds.
    #[must_use]
    pub fn matches(&self, facts: &Facts) -> bool {
        let Self { executable, command_line, uid, metadata } = self;
        (executable.is_empty() || executable.iter().any(|p| p.matches_path(&facts.executable)))
            && (command_line.is_empty() || command_line.iter().any(|p| p.matches(&facts.command_line)))
            && (uid.is_empty() || uid.contains(&facts.uid))
            && metadata.iter().all(|(name, patterns)| {
                facts.metadata.get(name.as_str()).is_some_and(|text| patterns.iter().any(|p| p.matches(text)))
            })
    }
}

/// All rules.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// Who is taken; everybody when there are none.
    pub include: Vec<Rule>,
    /// Who is not, whatever `include` says.
    pub exclude: Vec<Rule>,
    /// Younger processes are left alone until they are so old.
    pub min_age: Duration,
}

impl Rules {
    /// Whether the process is traced, its age aside.
    #[must_use]
    pub fn take(&self, facts: &Facts) -> bool {
        (self.include.is_empty() || self.include.iter().any(|rule| rule.matches(facts)))
            && !self.exclude.iter().any(|rule| rule.matches(facts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().expect("a pattern")
    }

    fn facts(executable: &str, command_line: &str) -> Facts {
        Facts {
            executable: executable.into(),
            command_line: command_line.into(),
            uid: 1000,
            ..Facts::default()
        }
    }

    #[test]
    fn globs_and_regular_expressions() {
        for (text, path, expected) in [
            ("shop", "/srv/shop", true),
            ("shop", "/srv/shop/x", false),
            ("shop*", "/srv/shop-2", true),
            ("/srv/*", "/srv/shop", true),
            ("/srv/*", "/srv/a/shop", false),
            ("/srv/**", "/srv/a/shop", true),
            ("/srv/sh?p", "/srv/shop", true),
            ("/srv/a.b", "/srv/axb", false),
            ("~^/srv/(shop|till)$", "/srv/till", true),
            ("~till", "/srv/tiller/x", true),
        ] {
            assert_eq!(pattern(text).matches_path(Path::new(path)), expected, "{text} {path}");
        }
        assert!("~(".parse::<Pattern>().expect_err("no expression").contains("`~(`"));
        assert!("".parse::<Pattern>().is_err());
    }

    #[test]
    fn all_conditions_of_a_rule_must_hold_and_exclusion_wins() {
        let rule = Rule {
            executable: vec![pattern("shop"), pattern("till")],
            command_line: vec![pattern("*--serve*")],
            uid: vec![0, 1000],
            ..Rule::default()
        };
        let mut rules = Rules::default();
        assert!(rules.take(&facts("/x", "")), "no rules take everybody");
        rules.include.push(rule);
        assert!(rules.take(&facts("/srv/till", "till --serve now")));
        assert!(!rules.take(&facts("/srv/till", "till")));
        assert!(!rules.take(&facts("/srv/other", "other --serve")));
        assert!(!rules.take(&Facts { uid: 7, ..facts("/srv/till", "till --serve") }));
        rules.exclude.push(Rule { command_line: vec![pattern("**debug**")], ..Rule::default() });
        assert!(!rules.take(&facts("/srv/till", "till --serve --debug")));
    }

    #[test]
    fn metadata_matches_once_it_is_known() {
        let condition = |name: &str, text| (name.to_owned(), vec![pattern(text)]);
        let rules = Rules {
            include: vec![Rule {
                metadata: [
                    condition("k8s.namespace.name", "shop-*"),
                    condition("k8s.pod.label.app", "~^till$"),
                ]
                .into(),
                ..Rule::default()
            }],
            exclude: vec![Rule { metadata: [condition("container.id", "abc*")].into(), ..Rule::default() }],
            min_age: Duration::ZERO,
        };
        let mut facts = facts("/x", "");
        assert!(!rules.take(&facts));
        facts.metadata.insert("k8s.namespace.name".into(), "shop-eu".into());
        assert!(!rules.take(&facts));
        facts.metadata.insert("k8s.pod.label.app".into(), "till".into());
        assert!(rules.take(&facts));
        facts.metadata.insert("container.id".into(), "abcdef".into());
        assert!(!rules.take(&facts));
    }
}
