//! `llm-collector`: parse arguments, start logging, dispatch.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use llm_collector::commands::say::print;
use llm_collector::commands::{
    self, certificate, doctor, erase, feed, healthcheck, import, kong, models, prices, quota, rejected, replay, report,
    retention, upkeep, users,
};
use llm_collector::config::{Cli, Command, ServeSettings};
use llm_collector::counted::counted;
use llm_collector::server::{Application, BLOCKING_THREADS};
use llm_collector::{logging, panics};
use log::{error, info};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::start(&cli.log);
    panics::log_places();
    let outcome = match &cli.command {
        // In this thread alone: a check of health must work where no further thread may be started.
        Command::Healthcheck(settings) => healthcheck::run(settings),
        // They wait for one answer after the other, and say themselves what went wrong.
        Command::Kong(command) => return kong::run(&command.action),
        Command::Users(command) => return users::run(command),
        Command::Models(command) => return models::run(command),
        Command::Certificate => return certificate::run(),
        command => runtime(command).and_then(|runtime| runtime.block_on(run(command))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // `{:#}` is the chain of causes in one line, without a backtrace.
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The service has the threads that its settings say, whatever the machine; commands do with one, and some for what blocks.
fn runtime(command: &Command) -> Result<Runtime> {
    let mut builder = match command {
        Command::Serve(settings) => {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(settings.workers);
            builder
        }
        _ => Builder::new_current_thread(),
    };
    builder.max_blocking_threads(BLOCKING_THREADS).enable_all().build().context("cannot start the runtime")
}

async fn run(command: &Command) -> Result<()> {
    match command {
        Command::Serve(settings) => serve(settings).await,
        Command::Migrate(settings) => {
            let applied = commands::migrate(&settings.database, settings.site.zone().as_deref()).await?;
            print(match applied.as_slice() {
                [] => "the schema is current\n".to_owned(),
                names => format!("applied {}\n", names.join(", ")),
            })
        }
        Command::Replay(settings) => {
            let replay::Replayed { outcome, damaged } = replay::run(settings).await?;
            print(format!(
                "{} stored, {}, {} spooled, {} rejected\n",
                outcome.stored,
                counted(outcome.duplicates, "duplicate", "duplicates"),
                outcome.spooled,
                outcome.rejected
            ))?;
            match damaged {
                0 => Ok(()),
                1 => anyhow::bail!("one place is damaged and was passed over, see above; everything else was taken"),
                _ => anyhow::bail!("{damaged} places are damaged and were passed over, see above; everything else was taken"),
            }
        }
        Command::Import(settings) => print(import::run(settings).await?),
        Command::Rejected(settings) => {
            let (result, left) = rejected::run(settings).await?;
            print(result)?;
            match left {
                0 => Ok(()),
                _ => anyhow::bail!("{}, see above", counted(left, "entry is no row", "entries are no rows")),
            }
        }
        Command::Report(settings) => print(report::run(settings).await?),
        Command::Prices(settings) => print(prices::run(settings).await?),
        Command::Quota(settings) => print(quota::run(settings).await?),
        Command::Upkeep(settings) => upkeep::run(settings).await,
        Command::Retention(settings) => print(retention::run(settings).await?),
        Command::Erase(settings) => print(erase::run(settings).await?),
        Command::Feed(settings) => print(feed::run(settings).await?),
        Command::Doctor(settings) => {
            let report = doctor::run(settings).await?;
            print(if settings.json { report.json()? } else { report.text() })?;
            match (report.problems(), report.warnings()) {
                (0, 0) => Ok(()),
                (0, warnings) if settings.strict => anyhow::bail!(counted(warnings, "warning", "warnings")),
                (0, _) => Ok(()),
                (problems, _) => anyhow::bail!(counted(problems, "problem found", "problems found")),
            }
        }
        // Handled without a runtime.
        Command::Healthcheck(settings) => healthcheck::run(settings),
        Command::Kong(_) | Command::Users(_) | Command::Models(_) | Command::Certificate => Ok(()),
    }
}

async fn serve(settings: &ServeSettings) -> Result<()> {
    let application = Application::build(settings).await?;
    let handle = application.handle();
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        info!("stopping: finishing what is in flight");
        handle.stop(true).await;
    });
    application.run_until_stopped().await
}
