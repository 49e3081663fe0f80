//! A program and what it came to, as a CI server is told of it: what JUnit XML and annotations are made of, whichever
//! command has judged.
//!
//! Input: judged programs of `exec`, or what `check` found. Output: plain data; it is cloned, as there is little.

use super::{CliError, Found, Judgement, Program, github, junit};
use crate::cli::args::{Annotations, FailOn};

/// A program.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Suite {
    /// `shop.test`.
    pub name: String,
    /// By verdict.
    pub outcomes: Vec<Outcome>,
}

/// What a program came to under one verdict.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Outcome {
    /// Its name.
    pub what: &'static str,
    pub findings: Vec<Found>,
    /// What is wrong beside goroutines.
    pub conditions: Vec<Told>,
    /// Whether its findings fail the run; otherwise they are warnings.
    pub fails: bool,
    /// Goroutines of which it cannot be told.
    pub not_judged: u64,
    /// Why the verdict could not be given, or not in full.
    pub unjudged: Option<String>,
    /// Why there is nothing to say without findings.
    pub skipped: Option<&'static str>,
}

/// Something that is wrong beside goroutines.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Told {
    /// What it concerns, a route; may be empty.
    pub about: String,
    pub sentence: String,
    /// All of it, for people.
    pub text: String,
}

impl Suite {
    /// Of a program that was judged.
    pub(super) fn of(program: &Program) -> Self {
        let outcome = |judgement: &Judgement| {
            let Judgement { verdict, findings, not_judged, unjudged, proof_age, printed: _ } = judgement;
            let unproven = *verdict == FailOn::Unreachable && proof_age.is_none();
            Outcome {
                what: verdict.verdict().name(),
                findings: findings.clone(),
                conditions: Vec::new(),
                fails: true,
                not_judged: *not_judged,
                unjudged: unjudged.as_ref().map(|why| why.sentence(program, *verdict)),
                skipped: unproven.then_some("exited before the leak check finished"),
            }
        };
        Self { name: program.name().to_owned(), outcomes: program.judgements.iter().map(outcome).collect() }
    }
}

/// Writes annotations of GitHub Actions to stderr where they are wanted. `by_default`: whether they are within GitHub
/// Actions, where the user does not say.
pub(in crate::cli) fn annotate(wanted: Option<Annotations>, by_default: bool, suites: &[Suite]) {
    let within = || by_default && std::env::var_os("GITHUB_ACTIONS").is_some_and(|v| v == "true");
    if wanted.map_or_else(within, |a| a == Annotations::Github) {
        // A reader of stderr that went away has seen enough.
        let _ = github::write(&mut std::io::stderr().lock(), suites, &github::Root::of_environment());
    }
}

/// Writes JUnit XML.
///
/// # Errors
/// When the file cannot be written.
pub(in crate::cli) fn write_junit(path: &std::path::Path, suites: &[Suite]) -> Result<(), CliError> {
    junit::write(path, suites)
}
