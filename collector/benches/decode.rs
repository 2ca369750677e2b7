//! `decode` and `extract` alone: from the bytes of a batch to calls, on one core, by the way that the pipeline goes.
//!
//! `cargo bench --bench decode` measures; the throughput is that of the JSON that Kong sent. To count instructions instead,
//! which a busy machine does not disturb, name the number of passes and the workload:
//!
//! ```text
//! DECODE_PASSES=5 valgrind --tool=callgrind target/release/deps/decode-* generated
//! ```
#![allow(missing_docs, clippy::expect_used, clippy::print_stdout, reason = "a benchmark fails by panicking")]

use std::collections::VecDeque;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput};
use llm_collector::decode::Limits;
use llm_collector::extract::{privacy::Privacy, redact::Secrets};
use llm_collector::pipeline::{Entries, Reader};

// Not a dependency: the crate of the tests depends on this one and on much else.
#[path = "../../tests/src/generator.rs"]
#[allow(dead_code, unreachable_pub, reason = "a library of which a part is used")]
mod generator;

/// The settings of a collector that was not told otherwise.
const LIMITS: Limits = Limits { decoded_bytes: 8 << 20 };

/// Something to decode: bodies of `POST /log`.
struct Workload {
    name: &'static str,
    batches: Vec<Bytes>,
}

impl Workload {
    fn bytes(&self) -> u64 {
        self.batches.iter().map(|batch| batch.len() as u64).sum()
    }

    /// What the pipeline does with every body before it is stored. Returns the number of calls.
    fn pass(&self, reader: &Reader) -> u64 {
        let mut calls = 0;
        for batch in &self.batches {
            let Ok(mut entries) = Entries::of_body(batch.clone()) else { continue };
            let mut waiting = VecDeque::new();
            while entries.look(&mut waiting) {
                calls += black_box(reader.read(&mut waiting)).items.len() as u64;
            }
        }
        calls
    }
}

/// Every recorded entry once, each as a batch of its own.
fn recorded() -> Workload {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/kong/entries");
    let files = std::fs::read_dir(folder).expect("recorded entries");
    let mut batches: Vec<Bytes> =
        files.map(|file| std::fs::read(file.expect("a file").path()).expect("a recorded entry").into()).collect();
    batches.sort();
    Workload { name: "recorded", batches }
}

/// The mix of the benchmarks, in batches of 200.
fn generated() -> Workload {
    let mut generator = generator::Generator::new(&generator::Settings::default());
    Workload { name: "generated", batches: (0..5).map(|_| generator.batch(200).into()).collect() }
}

fn main() {
    let reader = Reader { limits: LIMITS, secrets: Arc::new(Secrets::default()), privacy: Arc::new(Privacy::default()) };
    let workloads = [recorded(), generated()];
    if let Some(passes) = std::env::var("DECODE_PASSES").ok().and_then(|passes| passes.parse::<usize>().ok()) {
        let wanted = std::env::args().nth(1).unwrap_or_default();
        for workload in workloads.iter().filter(|workload| workload.name.contains(&wanted)) {
            let calls: u64 = (0..passes).map(|_| workload.pass(&reader)).sum();
            println!("{}: {calls} calls, {} bytes", workload.name, workload.bytes() * passes as u64);
        }
        return;
    }
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(5))
        .configure_from_args();
    let mut group = criterion.benchmark_group("decode");
    for workload in &workloads {
        let (elements, bytes) = (workload.pass(&reader), workload.bytes());
        group.throughput(Throughput::ElementsAndBytes { elements, bytes });
        group.bench_function(workload.name, |bencher| bencher.iter(|| workload.pass(&reader)));
    }
    group.finish();
    criterion.final_summary();
}
