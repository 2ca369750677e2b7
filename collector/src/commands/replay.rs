//! `replay`: recorded entries through the same pipeline.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result};
use log::warn;

use crate::config::ReplaySettings;
use crate::pipeline::{Pipeline, PipelineError};
use crate::store::Outcome;

/// Bytes of lines that are sent together.
const CHUNK_BYTES: usize = 8 << 20;

/// Sends every file; a line that is no JSON is reported and passed over.
pub async fn run(settings: &ReplaySettings) -> Result<Outcome> {
    let (pipeline, writers) = super::pipeline(&settings.database, &settings.pipeline).await?;
    let mut outcome = Outcome::default();
    for file in &settings.files {
        let input: Box<dyn Read + Send> = if file == Path::new("-") {
            Box::new(std::io::stdin())
        } else {
            Box::new(std::fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?)
        };
        let name = file.display().to_string();
        outcome += replay(&pipeline, BufReader::new(input), &name).await.with_context(|| format!("cannot replay {name}"))?;
    }
    drop(pipeline);
    writers.finish().await;
    Ok(outcome)
}

/// One entry a line, an array, or an entry that is spread over lines: a document is complete where it parses.
async fn replay(pipeline: &Pipeline, mut input: impl BufRead, name: &str) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut lines = Lines::default();
    let mut line = Vec::new();
    let mut number = 0_usize;
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        number += 1;
        let is_json = is_json(&line);
        if number == 1 && (line.starts_with(b"[") || !is_json) {
            // Not one entry a line: the whole file is one document.
            input.read_to_end(&mut line)?;
            return Ok(pipeline.take(line.into()).await?);
        }
        if is_json {
            lines.push(&line);
        } else if !line.trim_ascii().is_empty() {
            warn!("{name}, line {number}: not JSON, passed over");
        }
        if lines.body.len() > CHUNK_BYTES {
            outcome += lines.send(pipeline).await?;
        }
    }
    outcome += lines.send(pipeline).await?;
    Ok(outcome)
}

fn is_json(line: &[u8]) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(&crate::decode::text(line)).is_ok()
}

/// Lines put together to a batch.
#[derive(Default)]
struct Lines {
    body: Vec<u8>,
}

impl Lines {
    fn push(&mut self, line: &[u8]) {
        self.body.push(if self.body.is_empty() { b'[' } else { b',' });
        self.body.extend_from_slice(line);
    }

    async fn send(&mut self, pipeline: &Pipeline) -> Result<Outcome, PipelineError> {
        if self.body.is_empty() {
            return Ok(Outcome::default());
        }
        self.body.push(b']');
        pipeline.take(std::mem::take(&mut self.body).into()).await
    }
}
