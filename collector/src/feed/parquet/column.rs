//! The values of a column of a row group.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use parquet::basic::{LogicalType, Repetition, TimeUnit, Type as Physical};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, FixedLenByteArray, FixedLenByteArrayType, Int32Type, Int64Type};
use parquet::file::writer::SerializedColumnWriter;
use parquet::schema::types::Type;
use tokio_postgres::Row;

use super::super::money::{DECIMALS, DIGITS};
use crate::store::feed::columns::{Column, Kind};

/// Values of a column, and for each row whether it has one.
#[derive(Debug)]
pub(super) struct Values {
    present: Present,
    data: Data,
}

/// Parquet's definition levels: 1 where there is a value, 0 where there is none. A column that is never null has none.
#[derive(Debug)]
struct Present(Option<Vec<i16>>);

impl Present {
    fn push(&mut self, is_there: bool) {
        if let Some(levels) = &mut self.0 {
            levels.push(i16::from(is_there));
        }
    }
}

#[derive(Debug)]
enum Data {
    Text {
        bytes: Vec<u8>,
        /// Where each value ends.
        ends: Vec<usize>,
    },
    Integer(Vec<i32>),
    Bigint(Vec<i64>),
    Boolean(Vec<bool>),
    Money(Vec<i128>),
}

/// The column as the schema of a file has it.
pub(super) fn field(column: &Column) -> Result<Type> {
    let (physical, logical) = match column.kind {
        Kind::Name | Kind::Text | Kind::Currency => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
        Kind::Integer => (Physical::INT32, None),
        Kind::Bigint => (Physical::INT64, None),
        Kind::Boolean => (Physical::BOOLEAN, None),
        Kind::Timestamp => (Physical::INT64, Some(LogicalType::timestamp(true, TimeUnit::MICROS))),
        Kind::Cost | Kind::EstimatedCost => (Physical::FIXED_LEN_BYTE_ARRAY, Some(LogicalType::decimal(DECIMALS, DIGITS))),
    };
    let field = Type::primitive_type_builder(column.name, physical)
        .with_repetition(if column.is_nullable { Repetition::OPTIONAL } else { Repetition::REQUIRED })
        .with_logical_type(logical);
    let is_money = matches!(column.kind, Kind::Cost | Kind::EstimatedCost);
    let field = if is_money { field.with_length(16).with_precision(DIGITS).with_scale(DECIMALS) } else { field };
    Ok(field.build()?)
}

impl Values {
    /// None yet.
    pub(super) fn of(column: &Column) -> Self {
        let data = match column.kind {
            Kind::Name | Kind::Text | Kind::Currency => Data::Text { bytes: Vec::new(), ends: Vec::new() },
            Kind::Integer => Data::Integer(Vec::new()),
            Kind::Bigint | Kind::Timestamp => Data::Bigint(Vec::new()),
            Kind::Boolean => Data::Boolean(Vec::new()),
            Kind::Cost | Kind::EstimatedCost => Data::Money(Vec::new()),
        };
        Self { present: Present(column.is_nullable.then(Vec::new)), data }
    }

    /// Takes the value of a column that is read as it is.
    pub(super) fn push(&mut self, kind: Kind, row: &Row, position: usize) -> Result<()> {
        match kind {
            Kind::Name | Kind::Text => self.push_text(row.try_get(position)?),
            Kind::Bigint | Kind::Timestamp => push(&mut self.present, self.data.bigints()?, row.try_get(position)?),
            Kind::Boolean => push(&mut self.present, self.data.booleans()?, row.try_get(position)?),
            Kind::Integer | Kind::Cost | Kind::EstimatedCost | Kind::Currency => bail!("the column is computed"),
        }
        Ok(())
    }

    pub(super) fn push_text(&mut self, text: Option<&str>) {
        self.present.push(text.is_some());
        if let (Some(text), Data::Text { bytes, ends }) = (text, &mut self.data) {
            bytes.extend_from_slice(text.as_bytes());
            ends.push(bytes.len());
        }
    }

    pub(super) fn push_integer(&mut self, number: Option<i32>) {
        if let Data::Integer(values) = &mut self.data {
            push(&mut self.present, values, number);
        }
    }

    pub(super) fn push_money(&mut self, units: i128) {
        if let Data::Money(values) = &mut self.data {
            push(&mut self.present, values, Some(units));
        }
    }

    /// Writes them.
    pub(super) fn write(self, column: &mut SerializedColumnWriter<'_>) -> Result<()> {
        let levels = self.present.0.as_deref();
        match self.data {
            Data::Text { bytes, ends } => {
                let bytes = Bytes::from(bytes);
                let starts = std::iter::once(0).chain(ends.iter().copied());
                let values: Vec<ByteArray> =
                    starts.zip(&ends).map(|(start, end)| ByteArray::from(bytes.slice(start..*end))).collect();
                column.typed::<ByteArrayType>().write_batch(&values, levels, None)?;
            }
            Data::Integer(values) => {
                column.typed::<Int32Type>().write_batch(&values, levels, None)?;
            }
            Data::Bigint(values) => {
                column.typed::<Int64Type>().write_batch(&values, levels, None)?;
            }
            Data::Boolean(values) => {
                column.typed::<BoolType>().write_batch(&values, levels, None)?;
            }
            Data::Money(values) => {
                let decimal = |units: &i128| FixedLenByteArray::from(ByteArray::from(units.to_be_bytes().to_vec()));
                let values: Vec<FixedLenByteArray> = values.iter().map(decimal).collect();
                column.typed::<FixedLenByteArrayType>().write_batch(&values, levels, None)?;
            }
        }
        Ok(())
    }
}

impl Data {
    fn bigints(&mut self) -> Result<&mut Vec<i64>> {
        if let Data::Bigint(values) = self { Some(values) } else { None }.context("the column holds no bigints")
    }

    fn booleans(&mut self) -> Result<&mut Vec<bool>> {
        if let Data::Boolean(values) = self { Some(values) } else { None }.context("the column holds no booleans")
    }
}

fn push<T>(present: &mut Present, values: &mut Vec<T>, value: Option<T>) {
    present.push(value.is_some());
    values.extend(value);
}
