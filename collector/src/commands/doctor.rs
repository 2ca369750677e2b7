//! `doctor`: looks at a running installation as an operator would, and says what is wrong and how to mend it.
//!
//! Reads only. Each part that cannot be reached is a finding, not an error: whoever asks has a broken installation. Nothing it
//! prints holds a key, a token or a password.

#![allow(clippy::indexing_slicing, reason = "only JSON values are indexed here, by name, which gives null where there is none")]

mod certificates;
mod database;
mod kong;
mod kong_log;
mod mend;
mod models;
mod network;
mod numbers;
mod plugins;
mod quotas;
mod services;

use anyhow::Result;
use serde_json::{Value, json};

use crate::config::DoctorSettings;
use crate::counted::counted;
use crate::panics;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something does not work, is lost, or is open to others.
    Problem,
    /// It works, but not as it should, or not for long.
    Warning,
    /// As it should be.
    Good,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Problem => "problem",
            Level::Warning => "warning",
            Level::Good => "ok",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone)]
pub struct Finding {
    /// What was looked at: `kong.key-auth`.
    pub check: &'static str,
    /// How it stands.
    pub level: Level,
    /// What was found.
    pub what: String,
    /// What it leads to; empty when all is well.
    pub why: &'static str,
    /// The command or setting that mends it; empty when all is well.
    pub mend: String,
}

/// All findings.
#[derive(Debug, Default)]
pub struct Report {
    findings: Vec<Finding>,
}

impl Report {
    fn good(&mut self, check: &'static str, what: impl Into<String>) {
        self.findings.push(Finding { check, level: Level::Good, what: what.into(), why: "", mend: String::new() });
    }

    fn add(&mut self, level: Level, check: &'static str, what: impl Into<String>, why: &'static str, mend: impl Into<String>) {
        self.findings.push(Finding { check, level, what: what.into(), why, mend: mend.into() });
    }

    fn problem(&mut self, check: &'static str, what: impl Into<String>, why: &'static str, mend: impl Into<String>) {
        self.add(Level::Problem, check, what, why, mend);
    }

    fn warning(&mut self, check: &'static str, what: impl Into<String>, why: &'static str, mend: impl Into<String>) {
        self.add(Level::Warning, check, what, why, mend);
    }

    /// How many problems there are; warnings do not count.
    pub fn problems(&self) -> usize {
        self.count(Level::Problem)
    }

    /// How many warnings there are.
    pub fn warnings(&self) -> usize {
        self.count(Level::Warning)
    }

    fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    /// For a person: the worst first.
    pub fn text(&self) -> String {
        let mut findings: Vec<&Finding> = self.findings.iter().collect();
        findings.sort_by_key(|finding| finding.level);
        let mut text = String::new();
        for finding in findings {
            text.push_str(&format!("{:<8} {:<24} {}\n", finding.level.name(), finding.check, finding.what));
            for (label, line) in [("why", finding.why), ("mend", finding.mend.as_str())] {
                if !line.is_empty() {
                    text.push_str(&format!("{:<8} {label:<24} {line}\n", ""));
                }
            }
        }
        let (checks, problems, warnings) = (self.findings.len(), self.problems(), self.warnings());
        let (problems, warnings) = (counted(problems, "problem", "problems"), counted(warnings, "warning", "warnings"));
        text.push_str(&format!("\n{}, {problems}, {warnings}\n", counted(checks, "check", "checks")));
        text
    }

    /// For scripts.
    pub fn json(&self) -> Result<String> {
        let findings: Vec<Value> = self
            .findings
            .iter()
            .map(|finding| {
                json!({
                    "check": finding.check, "level": finding.level.name(), "what": finding.what,
                    "why": finding.why, "mend": finding.mend,
                })
            })
            .collect();
        Ok(serde_json::to_string_pretty(
            &json!({ "problems": self.problems(), "warnings": self.warnings(), "findings": findings }),
        )? + "\n")
    }
}

/// Looks at everything.
pub async fn run(settings: &DoctorSettings) -> Result<Report> {
    let token = settings.checked_token()?;
    let mut report = Report::default();
    let facts = database::examine(settings, &mut report).await;
    let settings = settings.clone();
    let over_http = tokio::task::spawn_blocking(move || {
        kong::examine(&settings, token.as_deref(), &facts, &mut report);
        kong_log::examine(settings.kong_log.as_deref(), &mut report);
        services::examine(&settings, &mut report);
        certificates::examine(&settings, &mut report);
        network::examine(&settings, &mut report);
        report
    });
    over_http.await.map_err(|error| anyhow::anyhow!(panics::reason(&error)))
}
