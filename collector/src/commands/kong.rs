//! `kong`: Kong's configuration, as the settings want it.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;

use crate::commands::say;
use crate::config::{AdminArgs, KongAction, KongSettings};
use crate::kong::admin::Admin;
use crate::kong::export::live::Live;
use crate::kong::failure::{Failure, Outcome};
use crate::kong::plan::Word;
use crate::kong::settings::Settings;
use crate::kong::{apply, export};

/// `--dry-run` found differences.
const DIFFERENCES: u8 = 3;

/// Carries out the command; the status is the program's.
pub fn run(action: &KongAction) -> ExitCode {
    say::ending(match action {
        KongAction::Apply { print_batch: true, admin, settings, .. } => print_batch(admin, settings),
        KongAction::Apply { wait, adopt, dry_run, admin, settings, .. } => configure(admin, settings, *adopt, *dry_run, *wait),
        KongAction::Export { output, with_models, with_users, admin, settings } => {
            let is_live = *with_models || *with_users;
            read_live(admin, settings, is_live, *with_users).and_then(|file| write_file(&file, output.as_deref()))
        }
    })
}

fn open(args: &AdminArgs, settings: &KongSettings) -> Outcome<(Admin, Settings)> {
    let settings = Settings::read(settings)?;
    let mut admin = Admin::new(args)?;
    settings.secrets().for_each(|secret| admin.conceal(secret));
    Ok((admin, settings))
}

fn print_batch(args: &AdminArgs, settings: &KongSettings) -> Outcome<ExitCode> {
    let (admin, settings) = open(args, settings)?;
    let batch = apply::batch(&admin, &settings)?;
    say::line(batch.lines(&settings).trim_end())?;
    Ok(ExitCode::SUCCESS)
}

fn configure(args: &AdminArgs, settings: &KongSettings, adopt: bool, dry_run: bool, wait: bool) -> Outcome<ExitCode> {
    let (admin, settings) = open(args, settings)?;
    let ready = apply::prepare(&admin, &settings, adopt)?;
    for warning in &ready.warnings {
        say::note(format!("warning: {warning}"));
    }
    for step in &ready.steps {
        if !dry_run {
            apply::carry_out(&admin, step)?;
        }
        say::line(format!("{:<10} {}", step.word.text(), step.label))?;
    }
    let is_changed = ready.steps.iter().any(|step| step.word != Word::Unchanged);
    if !is_changed {
        say::line("nothing to change")?;
    } else if dry_run {
        return Ok(ExitCode::from(DIFFERENCES));
    }
    if wait {
        apply::wait_until_live(admin.url(), &settings)?;
        say::line(format!("{:<10} {}", "live", settings.proxy_url))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn read_live(args: &AdminArgs, settings: &KongSettings, is_live: bool, users: bool) -> Outcome<Value> {
    if !is_live {
        return export::declarative(&Settings::read(settings)?, Live::default());
    }
    let (admin, settings) = open(args, settings)?;
    export::declarative(&settings, Live::read(&admin, users)?)
}

fn write_file(file: &Value, path: Option<&Path>) -> Outcome<ExitCode> {
    let text = format!("{file:#}\n");
    match path {
        None => say::line(text.trim_end())?,
        Some(path) => {
            let written = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
            written
                .and_then(|mut file| {
                    // One that was there may be open to others.
                    file.set_permissions(Permissions::from_mode(0o600))?;
                    file.write_all(text.as_bytes())
                })
                .map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display())))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
