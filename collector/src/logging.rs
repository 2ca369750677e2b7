//! The log: plain lines for a person, or one JSON object a line.
//!
//! A failure is logged once, where it is handled. Never logged: bodies, keys, the database URL; whatever level is set.

use std::io::Write;

use env_logger::{Builder, Target};
use log::kv::{Key, Value, VisitSource};

use crate::config::{LogFormat, LogSettings};

/// Starts logging to standard error.
pub fn start(settings: &LogSettings) {
    let mut builder = Builder::new();
    builder.parse_filters(&settings.log_level).target(Target::Stderr);
    // At debug it logs the parameters of statements, which are what people wrote, and at info what functions of others raise.
    builder.filter_module("tokio_postgres", log::LevelFilter::Warn);
    if settings.log_format == LogFormat::Json {
        builder.format(|out, record| {
            let mut object = serde_json::Map::new();
            object.insert("time".to_owned(), chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true).into());
            object.insert("level".to_owned(), record.level().as_str().to_ascii_lowercase().into());
            object.insert("target".to_owned(), record.target().into());
            object.insert("message".to_owned(), record.args().to_string().into());
            // A pair that cannot be visited is left out; the message stands on its own.
            let _ = record.key_values().visit(&mut Pairs(&mut object));
            writeln!(out, "{}", serde_json::Value::Object(object))
        });
    } else {
        builder.format_target(false);
    }
    // A second start (tests) keeps the first logger.
    let _ = builder.try_init();
}

struct Pairs<'m>(&'m mut serde_json::Map<String, serde_json::Value>);

impl<'kvs> VisitSource<'kvs> for Pairs<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
        let value = value.to_u64().map_or_else(|| value.to_string().into(), serde_json::Value::from);
        self.0.insert(key.to_string(), value);
        Ok(())
    }
}
