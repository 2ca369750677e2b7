//! `certificate`: whether a certificate and its key can be those of the gateway.

use std::io::Read;
use std::process::ExitCode;

use chrono::Utc;

use crate::certificates::server::{self, TIME};
use crate::commands::say;
use crate::counted::counted;
use crate::kong::failure::{Failure, Outcome};

/// A chain of certificates with its key takes some KiB.
const MOST_BYTES: u64 = 1 << 20;

/// Reads PEM from standard input and says what it found, a word and a value a line; the status is the program's.
pub fn run() -> ExitCode {
    say::ending(examine())
}

fn examine() -> Outcome<ExitCode> {
    let mut pem = Vec::new();
    let read = std::io::stdin().lock().take(MOST_BYTES).read_to_end(&mut pem);
    read.map_err(|error| Failure::new(format!("cannot read standard input: {error}")))?;
    let now = Utc::now();
    let certificate = server::usable(&pem, now).map_err(|unfit| Failure::new(unfit.to_string()))?;
    for name in &certificate.names {
        say::line(format!("name {name}"))?;
    }
    say::line(format!("sha256 {}", certificate.fingerprint))?;
    say::line(format!("ends {}", certificate.ends.format(TIME)))?;
    if certificate.ends_soon(now) {
        let days = counted(certificate.days_left(now), "day", "days");
        say::note(format!("warning: the certificate ends in {days}, at {}", certificate.ends.format(TIME)));
    }
    Ok(ExitCode::SUCCESS)
}
