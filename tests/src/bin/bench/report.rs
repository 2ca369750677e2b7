//! The table for people and `target/bench.json` for machines.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::RunSettings;
use crate::arrival::Arrival;
use crate::cpu;
use crate::gateway::{self, Cpu};
use crate::phases::{Measured, Who};

/// What has to be reached, with batches of 200.
const TIMES_PYTHON: f64 = 25.0;
const OF_COPY: f64 = 0.7;
const DECODE_MB_PER_SECOND: f64 = 150.0;
const AUDIT_CPU_RATIO: f64 = 1.2;
const ROUTER_CPU_US: f64 = 8.0;
const VISIBLE_SECONDS: f64 = 1.5;

/// The medians of what was measured several times.
struct Summary {
    who: Who,
    rows_per_second: f64,
    megabytes_per_second: f64,
    /// CPU seconds for 1,000 entries.
    own_cpu: f64,
    session_cpu: f64,
    background_cpu: f64,
    peak_memory: u64,
}

/// `decode` and `extract` alone, as criterion measured them last.
struct Decode {
    workload: &'static str,
    megabytes_per_second: f64,
    entries_per_second: f64,
}

struct Target {
    name: &'static str,
    value: Option<f64>,
    limit: f64,
    /// Otherwise below it.
    at_least: bool,
}

impl Target {
    fn is_met(&self) -> Option<bool> {
        self.value.map(|value| if self.at_least { value >= self.limit } else { value < self.limit })
    }
}

/// Prints the table and writes the file.
pub(crate) fn finish(settings: &RunSettings, measured: &[Measured], gateway: Option<&gateway::Measured>) {
    let folder = target_folder();
    let mut whos: Vec<Who> = measured.iter().map(|measured| measured.who).collect();
    whos.sort();
    whos.dedup();
    let summaries: Vec<Summary> = whos.into_iter().map(|who| summary(who, measured)).collect();
    let decodes: Vec<Decode> = ["recorded", "generated"].iter().filter_map(|workload| decode(&folder, workload)).collect();
    let targets = targets(measured, &summaries, &decodes, gateway);
    print_table(settings, &summaries, &decodes);
    if let Some(gateway) = gateway {
        print_gateway(gateway);
    }
    print_targets(&targets);
    let file = folder.join("bench.json");
    let json = to_json(settings, measured, &summaries, &decodes, gateway, &targets);
    std::fs::write(&file, format!("{json:#}\n")).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    println!("\nwritten to {}", file.display());
}

fn targets(measured: &[Measured], summaries: &[Summary], decodes: &[Decode], gateway: Option<&gateway::Measured>) -> Vec<Target> {
    let large = summaries.iter().find(|summary| summary.who == Who::Collector(200));
    let slowest = decodes.iter().map(|decode| decode.megabytes_per_second).reduce(f64::min);
    vec![
        Target {
            name: "rows per second, as a multiple of the Python collector",
            value: speed_ratio(measured, Who::PythonConnecting),
            limit: TIMES_PYTHON,
            at_least: true,
        },
        Target {
            name: "rows per second, as a part of \\copy of the finished rows",
            value: speed_ratio(measured, Who::Copy),
            limit: OF_COPY,
            at_least: true,
        },
        Target {
            name: "CPU per entry, collector to PostgreSQL sessions",
            value: large.map(|large| large.own_cpu / large.session_cpu),
            limit: 1.0,
            at_least: false,
        },
        Target {
            name: "MB per second of Kong JSON on one core, decode and extract alone",
            value: slowest,
            limit: DECODE_MB_PER_SECOND,
            at_least: true,
        },
        Target {
            name: "CPU of the gateway for a call, with llm-audit to without",
            value: gateway.map(|gateway| audit_ratio(&gateway.cpu)),
            limit: AUDIT_CPU_RATIO,
            at_least: false,
        },
        Target {
            name: "µs of CPU of the gateway that llm-router adds to a call",
            value: gateway.map(|gateway| router_us(&gateway.cpu)),
            limit: ROUTER_CPU_US,
            at_least: false,
        },
        Target {
            name: "seconds from the last byte of an answer to its row, 99th percentile",
            value: gateway.map(|gateway| share(&gateway.visible_seconds, 0.99)),
            limit: VISIBLE_SECONDS,
            at_least: false,
        },
    ]
}

/// Round by round, for the same reason as below.
fn audit_ratio(cpu: &Cpu) -> f64 {
    median(cpu.audit_us.iter().zip(&cpu.plain_us).map(|(audit, plain)| audit / plain).collect())
}

/// What `llm-router` adds, round by round.
fn router_us(cpu: &Cpu) -> f64 {
    median(cpu.router_us.iter().zip(&cpu.audit_us).map(|(router, audit)| router - audit).collect())
}

/// Every round, for each set of plugins the least (what nothing else disturbed) and the median, and how they compare.
pub(crate) fn print_cpu(body_bytes: usize, cpu: &Cpu) {
    println!(
        "µs of CPU a call, {body_bytes} bytes in and as many out: with key-auth and http-log; with llm-audit besides, and how"
    );
    println!("many times as much that is; with llm-router besides, and what that adds");
    let line = |plain: f64, audit: f64, ratio: f64, router: f64, more: f64, what: &str| {
        println!("{plain:>8.1} {audit:>8.1} {ratio:>6.3} {router:>8.1} {more:>+6.1}  {what}");
    };
    for ((plain, audit), router) in cpu.plain_us.iter().zip(&cpu.audit_us).zip(&cpu.router_us) {
        line(*plain, *audit, audit / plain, *router, router - audit, "");
    }
    let of_each = |of: &dyn Fn(&[f64]) -> f64| [&cpu.plain_us, &cpu.audit_us, &cpu.router_us].map(|times| of(times));
    let [plain, audit, router] = of_each(&|times| times.iter().copied().fold(f64::INFINITY, f64::min));
    line(plain, audit, audit / plain, router, router - audit, "least");
    let [plain, audit, router] = of_each(&|times| median(times.to_vec()));
    let about = format!("medians (of what is compared: over the rounds), load average {:.1}", cpu::load_average());
    line(plain, audit, audit_ratio(cpu), router, router_us(cpu), &about);
}

/// The value at a share of sorted ones.
fn share(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

/// How much faster the collector with batches of 200 was, round by round: a machine that was busy in one round was so for both.
fn speed_ratio(measured: &[Measured], to: Who) -> Option<f64> {
    let speed = |who: Who, round: usize| {
        let found = measured.iter().find(|measured| measured.who == who && measured.round == round)?;
        Some(found.rows as f64 / found.seconds)
    };
    let rounds = measured.iter().map(|measured| measured.round).max().unwrap_or(0);
    let ratios: Vec<f64> =
        (1..=rounds).filter_map(|round| Some(speed(Who::Collector(200), round)? / speed(to, round)?)).collect();
    (!ratios.is_empty()).then(|| median(ratios))
}

fn summary(who: Who, measured: &[Measured]) -> Summary {
    let of = |value: &dyn Fn(&Measured) -> f64| {
        median(measured.iter().filter(|measured| measured.who == who).map(value).collect::<Vec<_>>())
    };
    let thousands = |measured: &Measured| measured.rows as f64 / 1_000.0;
    Summary {
        who,
        rows_per_second: of(&|m| m.rows as f64 / m.seconds),
        megabytes_per_second: of(&|m| m.bytes as f64 / 1e6 / m.seconds),
        own_cpu: of(&|m| m.own_cpu / thousands(m)),
        session_cpu: of(&|m| m.server_cpu.sessions / thousands(m)),
        background_cpu: of(&|m| m.server_cpu.background / thousands(m)),
        peak_memory: of(&|m| m.peak_memory as f64) as u64,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Reads what `cargo bench --bench decode` left.
fn decode(folder: &Path, workload: &'static str) -> Option<Decode> {
    let read = |name: &str| -> Option<Value> {
        let file = folder.join("criterion/decode").join(workload).join("new").join(name);
        serde_json::from_slice(&std::fs::read(file).ok()?).ok()
    };
    let seconds = read("estimates.json")?["median"]["point_estimate"].as_f64()? / 1e9;
    let throughput = read("benchmark.json")?["throughput"]["ElementsAndBytes"].clone();
    let amount = |unit: &str| throughput[unit].as_f64();
    Some(Decode {
        workload,
        megabytes_per_second: amount("bytes")? / 1e6 / seconds,
        entries_per_second: amount("elements")? / seconds,
    })
}

fn print_table(settings: &RunSettings, summaries: &[Summary], decodes: &[Decode]) {
    let (processor, cores) = cpu::machine();
    println!("{processor}, {cores} cores shared by sender, collector and PostgreSQL; load before: {:.1}", cpu::load_average());
    println!("{} connections; medians of {} rounds; every entry became one row\n", settings.connections, settings.rounds);
    println!("{:34} {:>10} {:>10}   {:^31} {:>8}", "", "rows/s", "MB/s", "CPU seconds per 1,000 entries", "memory");
    println!("{:34} {:>10} {:>10}   {:>10} {:>10} {:>9} {:>8}", "", "", "of JSON", "own", "PostgreSQL", "of which", "peak MB");
    println!("{:34} {:>10} {:>10}   {:>10} {:>10} {:>9}", "", "", "", "", "", "sessions");
    for summary in summaries {
        let or_dash = |value: f64, digits: usize| if value > 0.0 { format!("{value:.digits$}") } else { "–".to_owned() };
        println!(
            "{:34} {:>10.0} {:>10}   {:>10.3} {:>10.3} {:>9.3} {:>8}",
            summary.who.title(),
            summary.rows_per_second,
            or_dash(summary.megabytes_per_second, 1),
            summary.own_cpu,
            summary.session_cpu + summary.background_cpu,
            summary.session_cpu,
            or_dash(summary.peak_memory as f64 / 1e6, 0)
        );
    }
    println!();
    for decode in decodes {
        println!(
            "decode and extract alone, {} entries: {:.0} MB/s of Kong JSON, {:.0} entries/s on one core",
            decode.workload, decode.megabytes_per_second, decode.entries_per_second
        );
    }
}

fn print_gateway(gateway: &gateway::Measured) {
    let (plain, audit) = (median(gateway.cpu.plain_us.clone()), median(gateway.cpu.audit_us.clone()));
    println!(
        "\ngateway, 2 KB in and 2 KB out: {plain:.0} µs of CPU a call with key-auth and http-log, {audit:.0} µs with llm-audit, \
         {:.1} µs more with llm-router",
        router_us(&gateway.cpu)
    );
    if let (Some((few, first)), Some((many, last))) = (gateway.memory.first(), gateway.memory.last()) {
        let megabytes = |bytes: &u64| *bytes as f64 / 1e6;
        println!("memory of its processes: {:.1} MB after {few} calls, {:.1} MB after {many}", megabytes(first), megabytes(last));
    }
    let visible = &gateway.visible_seconds;
    println!("from the last byte of an answer to its row: p50 {:.2} s, p99 {:.2} s", share(visible, 0.5), share(visible, 0.99));
    println!("from the sending of an event of a stream to its arrival, ms:");
    for (way, delays) in ways(&gateway.arrival) {
        println!("    {way:34} p50 {:.3}, p99 {:.3}, at most {:.3}", share(delays, 0.5), share(delays, 0.99), share(delays, 1.0));
    }
}

fn ways(arrival: &Arrival) -> [(&'static str, &[f64]); 3] {
    [
        ("direct", &arrival.direct),
        ("through the gateway without llm-audit", &arrival.without_audit),
        ("through the gateway with llm-audit", &arrival.with_audit),
    ]
}

fn print_targets(targets: &[Target]) {
    println!();
    for target in targets {
        let verdict = match target.is_met() {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "not measured",
        };
        let value = target.value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"));
        let relation = if target.at_least { "at least" } else { "below" };
        println!("{:68} {value:>8}   {relation} {}: {verdict}", target.name, target.limit);
    }
}

fn to_json(
    settings: &RunSettings,
    measured: &[Measured],
    summaries: &[Summary],
    decodes: &[Decode],
    gateway: Option<&gateway::Measured>,
    targets: &[Target],
) -> Value {
    let (processor, cores) = cpu::machine();
    json!({
        "machine": { "processor": processor, "cores": cores, "load_average": cpu::load_average() },
        "settings": {
            "connections": settings.connections,
            "rounds": settings.rounds,
            "entries": settings.entries,
            "seconds": settings.seconds,
        },
        "results": summaries.iter().map(|summary| json!({
            "name": summary.who.name(),
            "rows_per_second": summary.rows_per_second,
            "entries_per_second": summary.rows_per_second,
            "megabytes_per_second": summary.megabytes_per_second,
            "own_cpu_seconds_per_1000_entries": summary.own_cpu,
            "postgresql_session_cpu_seconds_per_1000_entries": summary.session_cpu,
            "postgresql_background_cpu_seconds_per_1000_entries": summary.background_cpu,
            "peak_memory_bytes": summary.peak_memory,
        })).collect::<Vec<_>>(),
        "rounds": measured.iter().map(|measured| json!({
            "name": measured.who.name(),
            "round": measured.round,
            "rows": measured.rows,
            "seconds": measured.seconds,
            "bytes": measured.bytes,
            "own_cpu_seconds": measured.own_cpu,
            "postgresql_session_cpu_seconds": measured.server_cpu.sessions,
            "postgresql_background_cpu_seconds": measured.server_cpu.background,
            "peak_memory_bytes": measured.peak_memory,
        })).collect::<Vec<_>>(),
        "decode": decodes.iter().map(|decode| json!({
            "workload": decode.workload,
            "megabytes_per_second": decode.megabytes_per_second,
            "entries_per_second": decode.entries_per_second,
        })).collect::<Vec<_>>(),
        "gateway": gateway.map(|gateway| json!({
            "cpu_microseconds_plain": gateway.cpu.plain_us,
            "cpu_microseconds_with_llm_audit": gateway.cpu.audit_us,
            "cpu_microseconds_with_llm_audit_and_llm_router": gateway.cpu.router_us,
            "memory_bytes_after_calls": gateway.memory,
            "visible_seconds": {"p50": share(&gateway.visible_seconds, 0.5), "p99": share(&gateway.visible_seconds, 0.99)},
            "arrival_milliseconds": ways(&gateway.arrival).map(|(way, delays)| json!({
                "way": way, "p50": share(delays, 0.5), "p99": share(delays, 0.99), "max": share(delays, 1.0),
            })),
        })),
        "targets": targets.iter().map(|target| json!({
            "name": target.name,
            "value": target.value,
            (if target.at_least { "at_least" } else { "below" }): target.limit,
            "met": target.is_met(),
        })).collect::<Vec<_>>(),
    })
}

impl Who {
    fn title(self) -> String {
        match self {
            Who::Collector(1) => "llm-collector, single entries".to_owned(),
            Who::Collector(size) => format!("llm-collector, batches of {size}"),
            Who::Copy => "\\copy of the finished rows".to_owned(),
            Who::Python => "Python collector".to_owned(),
            Who::PythonConnecting => "… a connection for each entry".to_owned(),
        }
    }

    fn name(self) -> String {
        match self {
            Who::Collector(size) => format!("collector_batch_{size}"),
            Who::Copy => "copy".to_owned(),
            Who::Python => "python_batch_200".to_owned(),
            Who::PythonConnecting => "python_connecting_batch_200".to_owned(),
        }
    }
}

/// `target`, or where Cargo was told to put it: this program is in `target/PROFILE`.
fn target_folder() -> PathBuf {
    let own = std::env::current_exe().expect("the path of this program");
    own.ancestors().nth(2).expect("a folder").to_owned()
}
