//! What a call costs, exactly: tokens times the price of a million.
//!
//! Invariant: for prices with up to [`PRICE_DECIMALS`] decimals nothing is rounded, so that the costs of rows add up to what PostgreSQL
//! computes of the sums of their tokens, to the last digit. Further decimals of a price are left out.

use std::collections::HashMap;

use anyhow::{Context, Result};

use crate::store::feed::PricePeriod;

/// Decimals of an amount: those of a price, and six more for the million.
pub(super) const DECIMALS: i32 = 18;
const PRICE_DECIMALS: usize = 12;

/// Digits of an amount; those of a decimal of 16 bytes.
pub(super) const DIGITS: i32 = 38;

/// Prices by model.
#[derive(Debug)]
pub(super) struct Prices(HashMap<String, Vec<Period>>);

#[derive(Debug)]
struct Period {
    /// Microseconds since 1970.
    since: i64,
    until: i64,
    /// Of prompt tokens, of those from the cache, and of completion tokens, in units of 10^-12.
    per_million: [i128; 3],
    currency: String,
}

/// Tokens of a call.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tokens {
    /// Of the prompt, without those from the cache.
    pub(super) uncached: i64,
    /// Of the prompt, from the cache.
    pub(super) cached: i64,
    /// Of the answer.
    pub(super) completion: i64,
}

impl Prices {
    pub(super) fn new(periods: &[PricePeriod]) -> Result<Self> {
        let mut prices: HashMap<String, Vec<Period>> = HashMap::new();
        for period in periods {
            let [prompt, cached, completion] = &period.per_million;
            prices.entry(period.model.clone()).or_default().push(Period {
                since: period.since.unwrap_or(i64::MIN),
                until: period.until.unwrap_or(i64::MAX),
                per_million: [units(prompt)?, units(cached)?, units(completion)?],
                currency: period.currency.clone(),
            });
        }
        Ok(Self(prices))
    }

    /// The price of a model at a time in microseconds since 1970.
    pub(super) fn at(&self, model: &str, microseconds: i64) -> Option<Price<'_>> {
        let periods = self.0.get(model)?;
        periods.iter().find(|period| (period.since..period.until).contains(&microseconds)).map(Price)
    }
}

/// What tokens cost at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Price<'p>(&'p Period);

impl<'p> Price<'p> {
    pub(super) fn currency(self) -> &'p str {
        &self.0.currency
    }

    /// The cost in units of 10^-18. No count takes from it.
    pub(super) fn of(self, tokens: Tokens) -> Result<i128> {
        let counts = [tokens.uncached, tokens.cached, tokens.completion];
        let parts = self.0.per_million.iter().zip(counts).map(|(price, count)| price.checked_mul(i128::from(count.max(0))));
        let sum = parts.into_iter().try_fold(0_i128, |sum, part| sum.checked_add(part?));
        sum.filter(|cost| *cost < 10_i128.pow(DIGITS.unsigned_abs()))
            .context("a call costs more than a decimal of 38 digits can hold")
    }
}

/// A decimal in units of 10^-12.
fn units(text: &str) -> Result<i128> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = whole.chars().chain(fraction.chars().chain(std::iter::repeat('0')).take(PRICE_DECIMALS)).collect();
    digits.parse().ok().with_context(|| format!("{text} is no price that can be computed with"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn period(since: Option<i64>, until: Option<i64>, prompt: &str, currency: &str) -> PricePeriod {
        let per_million = [prompt, "0.5", "8"].map(str::to_owned);
        PricePeriod { model: "m".to_owned(), since, until, per_million, currency: currency.to_owned() }
    }

    #[test]
    fn a_call_costs_what_its_tokens_cost_at_its_hour() {
        let prices =
            Prices::new(&[period(None, Some(1_000), "2", "CNY"), period(Some(1_000), None, "0.000000000001", "EUR")]).unwrap();
        let tokens = Tokens { uncached: 3, cached: 2, completion: 1 };
        let cost = |at| prices.at("m", at).map(|price| (price.of(tokens).unwrap(), price.currency().to_owned()));
        // 3 × 2 + 2 × 0.5 + 1 × 8 = 15 for a million.
        assert_eq!(cost(999), Some((15_000_000_000_000, "CNY".to_owned())));
        assert_eq!(cost(1_000), Some((9_000_000_000_003, "EUR".to_owned())));
        assert!(prices.at("other", 0).is_none());
        assert_eq!(prices.at("m", 0).unwrap().of(Tokens { uncached: -5, cached: -1, completion: 0 }).unwrap(), 0);
    }

    #[test]
    fn what_cannot_be_held_is_an_error_and_not_another_amount() {
        let prices = Prices::new(&[period(None, None, "99999999999999999999", "CNY")]).unwrap();
        let price = prices.at("m", 0).unwrap();
        assert!(price.of(Tokens { uncached: i64::MAX, ..Tokens::default() }).is_err());
        assert!(Prices::new(&[period(None, None, "NaN", "CNY")]).is_err());
    }
}
