//! `prices list`, `set`, `remove`.

use anyhow::{Result, bail};
use chrono::{DateTime, Utc};

use super::{moment, table};
use crate::commands;
use crate::config::{PricesAction, PricesSettings};
use crate::counted::counted;
use crate::store::prices;

/// Carries out the action; returns what to print.
pub async fn run(settings: &PricesSettings) -> Result<String> {
    let database = commands::database(&settings.database).await?;
    match &settings.action {
        PricesAction::List => {
            let prices = prices::list(&database.connection().await?).await?;
            if prices.is_empty() {
                return Ok("no prices: every model costs nothing; `llm-collector prices set` sets one\n".to_owned());
            }
            let heading = ["model", "from (UTC)", "currency", "prompt", "cached", "completion"].map(str::to_owned).to_vec();
            let rows = prices.iter().map(|price| {
                let (pattern, from) = (table::visible(&price.pattern).into_owned(), time(price.valid_from));
                vec![pattern, from, price.currency.clone(), price.prompt.clone(), price.cached.clone(), price.completion.clone()]
            });
            let rows: Vec<_> = std::iter::once(heading).chain(rows).collect();
            Ok(format!("{}for a million tokens\n", table::aligned(&rows, 3)))
        }
        PricesAction::Set { pattern, prompt, cached, completion, currency, from } => {
            if pattern.is_empty() || pattern.contains('\\') {
                bail!("a pattern is the name of a model, without \\; % stands for any text");
            }
            let cached = cached.as_ref().unwrap_or(prompt);
            let connection = database.connection().await?;
            let amounts = [prompt.0.as_str(), &cached.0, &completion.0];
            let from = prices::set(&connection, pattern, hour(from.as_deref())?, amounts, currency).await?;
            Ok(format!(
                "{} from {} on: {} {currency} for a million prompt tokens, {} cached, {} completion\n",
                table::visible(pattern),
                time(from),
                prompt.0,
                cached.0,
                completion.0
            ))
        }
        PricesAction::Remove { pattern, from } => {
            match prices::remove(&database.connection().await?, pattern, hour(from.as_deref())?).await? {
                0 => bail!("there is no such price; `prices list` shows which there are"),
                removed => Ok(format!("{} removed\n", counted(removed, "price", "prices"))),
            }
        }
    }
}

fn hour(text: Option<&str>) -> Result<Option<DateTime<Utc>>> {
    text.map(|text| moment::hour(text, Utc::now())).transpose()
}

fn time(moment: DateTime<Utc>) -> String {
    if moment.timestamp() == 0 { "the beginning".to_owned() } else { moment.format("%Y-%m-%d %H:%M").to_string() }
}
