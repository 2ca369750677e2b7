//! Rows as a Parquet file.
//!
//! Parquet keeps columns, so rows are gathered until they are a row group of [`GROUP_BYTES`]; that, and what compressing it takes, is all the
//! memory that a file needs, however large it becomes. The same rows make the same bytes: nothing of the time or the place of the writing
//! is in a file.

mod column;

use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, Result};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::{ColumnPath, Type};
use tokio_postgres::Row;

use super::money::{Prices, Tokens};
use crate::store::feed::columns::{COLUMNS, Kind, SCHEMA_VERSION};
use crate::store::feed::{Computed, PricePeriod};
use column::Values;

/// Bytes of a row group before they are compressed. Larger ones are a little quicker to read and take as much more memory to write, more than
/// once at that: vectors that grow, pages, what is compressed.
const GROUP_BYTES: usize = 32 << 20;

/// How hard zstd tries: of a day of chats 3 makes a tenth less than 1, and takes a third longer.
const ZSTD_LEVEL: i32 = 3;

/// A file that is being written.
pub(super) struct Encoder<W: Write + Send> {
    file: SerializedFileWriter<W>,
    prices: Prices,
    computed: Computed,
    group: Vec<Values>,
    group_bytes: usize,
    rows: i64,
}

impl<W: Write + Send> Encoder<W> {
    pub(super) fn new(to: W, computed: Computed, prices: &[PricePeriod]) -> Result<Self> {
        let schema = Arc::new(schema()?);
        Ok(Self {
            file: SerializedFileWriter::new(to, schema, Arc::new(properties()?))?,
            prices: Prices::new(prices)?,
            computed,
            group: empty_group(),
            group_bytes: 0,
            rows: 0,
        })
    }

    pub(super) fn row(&mut self, row: &Row) -> Result<()> {
        let hour: i64 = row.try_get(self.computed.first)?;
        let model: &str = row.try_get(self.computed.first + 1)?;
        let uncached: Option<i64> = row.try_get(self.computed.first + 2)?;
        let price = self.prices.at(model, hour);
        let (mut reported, mut estimated) = (Tokens { uncached: uncached.unwrap_or(0), ..Tokens::default() }, Tokens::default());
        // An estimate counts where the model server reported nothing.
        let (mut has_prompt, mut has_completion) = (false, false);
        let mut position = 0;
        for (column, values) in COLUMNS.iter().zip(&mut self.group) {
            match column.kind {
                Kind::Cost => values.push_money(price.map_or(Ok(0), |price| price.of(reported))?),
                Kind::EstimatedCost => values.push_money(price.map_or(Ok(0), |price| price.of(estimated))?),
                Kind::Currency => values.push_text(price.map(|price| price.currency())),
                Kind::Integer => {
                    let number: Option<i32> = row.try_get(position)?;
                    // Tokens come before what they cost.
                    let tokens = i64::from(number.unwrap_or(0));
                    match column.name {
                        "prompt_tokens" => has_prompt = number.is_some(),
                        "cached_tokens" => reported.cached = tokens,
                        "completion_tokens" => (reported.completion, has_completion) = (tokens, number.is_some()),
                        "estimated_prompt_tokens" if !has_prompt => estimated.uncached = tokens,
                        "estimated_completion_tokens" if !has_completion => estimated.completion = tokens,
                        _ => {}
                    }
                    values.push_integer(number);
                    position += 1;
                }
                kind => {
                    values.push(kind, row, position)?;
                    position += 1;
                }
            }
        }
        self.rows += 1;
        self.group_bytes += row.raw_size_bytes();
        if self.group_bytes >= GROUP_BYTES { self.write_group() } else { Ok(()) }
    }

    /// Ends the file. Returns how many rows are in it.
    pub(super) fn finish(mut self) -> Result<(W, i64)> {
        if self.group_bytes > 0 {
            self.write_group()?;
        }
        Ok((self.file.into_inner()?, self.rows))
    }

    fn write_group(&mut self) -> Result<()> {
        let mut group = self.file.next_row_group()?;
        for values in std::mem::replace(&mut self.group, empty_group()) {
            let mut column = group.next_column()?.context("the file has fewer columns than the list")?;
            values.write(&mut column)?;
            column.close()?;
        }
        group.close()?;
        self.group_bytes = 0;
        Ok(())
    }
}

fn empty_group() -> Vec<Values> {
    COLUMNS.iter().map(Values::of).collect()
}

fn schema() -> Result<Type> {
    let fields = COLUMNS.iter().map(|column| Ok(Arc::new(column::field(column)?))).collect::<Result<_>>()?;
    Ok(Type::group_type_builder("llm_logs").with_fields(fields).build()?)
}

fn properties() -> Result<WriterProperties> {
    let sorted = |name: &str| -> Result<SortingColumn> {
        let position = COLUMNS.iter().position(|column| column.name == name).context("a column of the order is missing")?;
        Ok(SortingColumn { column_idx: i32::try_from(position)?, descending: false, nulls_first: false })
    };
    let mut properties = WriterProperties::builder()
        // What every reader can read.
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?))
        .set_created_by(format!("llm-collector, schema version {SCHEMA_VERSION}"))
        .set_sorting_columns(Some(vec![sorted("started_at")?, sorted("request_id")?]));
    for column in COLUMNS.iter().filter(|column| column.kind == Kind::Text) {
        let path = || ColumnPath::from(column.name);
        properties = properties.set_column_dictionary_enabled(path(), false);
        // The least and the greatest of what people wrote tell a reader nothing.
        if column.is_content {
            properties = properties.set_column_statistics_enabled(path(), EnabledStatistics::None);
        }
    }
    Ok(properties.build())
}
