//! Feeds: how far behind they are, and what they have copied.

use std::collections::HashMap;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::labels;
use crate::store::feed::known::Known;

/// Feeds that get series of their own. A site has one or two.
const MAX_FEEDS: usize = 20;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FeedLabel {
    feed: String,
}

/// A gauge of each feed, and which feeds have one.
type Gauges = (Family<FeedLabel, Gauge>, labels::Shown<FeedLabel>);

/// The series about feeds.
#[derive(Debug, Default)]
pub struct Feeds {
    lag: Gauges,
    failed: Gauges,
    files: Gauges,
    rows: Gauges,
    size: Gauges,
}

impl Feeds {
    /// Registers the series.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let feeds = Self::default();
        let help = "Time since the end of the last day or hour up to which a feed has copied all";
        registry.register_with_unit("feed_lag", help, Unit::Seconds, feeds.lag.0.clone());
        registry.register("feed_failed", "Whether the last round of a feed failed", feeds.failed.0.clone());
        registry.register("feed_files", "Files that a feed has written and that stand", feeds.files.0.clone());
        registry.register("feed_rows", "Rows in these files", feeds.rows.0.clone());
        registry.register_with_unit("feed_size", "Size of these files", Unit::Bytes, feeds.size.0.clone());
        feeds
    }

    /// Notes how far feeds are. One that is not there any more is shown no longer.
    pub fn set(&self, feeds: &[Known]) {
        let show = |gauges: &Gauges, value: fn(&Known) -> i64| {
            let now = feeds.iter().take(MAX_FEEDS).map(|feed| (FeedLabel { feed: feed.name.clone() }, value(feed)));
            labels::show(&gauges.0, &gauges.1, now.collect::<HashMap<_, _>>());
        };
        show(&self.lag, |feed| feed.lag_seconds);
        show(&self.failed, |feed| i64::from(feed.failure.is_some()));
        show(&self.files, |feed| feed.files);
        show(&self.rows, |feed| feed.rows);
        show(&self.size, |feed| feed.bytes);
    }
}
