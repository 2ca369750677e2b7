//! What commands print: results on standard output, everything else on standard error.

use std::io::{BufRead, Read, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::kong::failure::{Failure, Outcome};

/// Writes a result; a reader that went away (`| head`) is no error.
pub fn print(result: impl AsRef<[u8]>) -> Result<()> {
    match std::io::stdout().lock().write_all(result.as_ref()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("cannot write the result"),
        _ => Ok(()),
    }
}

/// A line of the result.
pub(super) fn line(text: impl AsRef<str>) -> Outcome<()> {
    print(format!("{}\n", text.as_ref())).map_err(|error| Failure::new(format!("{error:#}")))
}

/// A line for whoever looks on. If nobody can be told, there is nobody to tell that.
pub(super) fn note(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr().lock(), "{}", text.as_ref());
}

/// Longest line that is read as a key.
const LONGEST_LINE: u64 = 4096;

/// The first line of standard input: a key that stands in no process list.
pub(super) fn first_line() -> Outcome<String> {
    let mut line = String::new();
    let read = std::io::stdin().lock().take(LONGEST_LINE).read_line(&mut line);
    read.map_err(|_| Failure::new("standard input holds no key that can be read"))?;
    Ok(line.trim_end_matches('\n').trim_end_matches('\r').to_owned())
}

/// Says why a command failed, and gives the status it ends with: 1, or 2 when it was used in a wrong way.
pub(super) fn ending(outcome: Outcome<ExitCode>) -> ExitCode {
    match outcome {
        Ok(status) => status,
        Err(failure) => {
            note(format!("error: {failure}"));
            for line in &failure.advice {
                note(format!("  {line}"));
            }
            ExitCode::from(if failure.is_misuse { 2 } else { 1 })
        }
    }
}
