//! `llm_rejected`: what could not become a row, until somebody looks at it.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use tokio_postgres::types::Type;

use super::Sequence;
use super::pool::{PooledConnection, StoreError};

/// An entry that could not become a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The entry's bytes, credentials removed.
    pub raw: Bytes,
    /// Why, in words for a person.
    pub reason: String,
    /// Its number among the entries of its Kong worker, where it could be read: a rejected entry is not a lost one.
    pub sequence: Option<Sequence>,
}

/// A rejected entry on record.
#[derive(Debug)]
pub struct Record {
    /// Its number, for `rejected show`.
    pub id: i64,
    /// When it was rejected first.
    pub rejected_at: DateTime<Utc>,
    /// Why.
    pub reason: String,
    /// Its size in bytes.
    pub size: i64,
}

/// Puts entries on record; one that is there already (a repeated batch) stays once. Returns how many were new.
pub async fn insert(connection: &PooledConnection<'_>, rejected: &[Rejected]) -> Result<u64, StoreError> {
    let mut hashed: Vec<(Vec<u8>, &Rejected)> =
        rejected.iter().map(|entry| (Sha256::digest(&entry.raw).to_vec(), entry)).collect();
    // In the order of the unique key, so that two collectors with the same entries wait for each other in one direction only.
    hashed.sort_by(|(one, _), (other, _)| one.cmp(other));
    let reasons: Vec<&str> = hashed.iter().map(|(_, entry)| entry.reason.as_str()).collect();
    let raws: Vec<&[u8]> = hashed.iter().map(|(_, entry)| entry.raw.as_ref()).collect();
    let hashes: Vec<&[u8]> = hashed.iter().map(|(hash, _)| hash.as_slice()).collect();
    const INSERT: &str = "INSERT INTO llm_rejected (reason, raw, raw_sha256)
        SELECT * FROM unnest($1::text[], $2::bytea[], $3::bytea[]) ON CONFLICT (raw_sha256) DO NOTHING RETURNING 1";
    let rows = connection
        .bounded(
            connection
                .client()
                .query_typed(INSERT, &[(&reasons, Type::TEXT_ARRAY), (&raws, Type::BYTEA_ARRAY), (&hashes, Type::BYTEA_ARRAY)]),
        )
        .await?;
    Ok(rows.len() as u64)
}

/// The newest records, at most `limit`.
pub async fn list(connection: &PooledConnection<'_>, limit: i64) -> Result<Vec<Record>, StoreError> {
    let query = "SELECT id, rejected_at, reason, length(raw)::bigint FROM llm_rejected ORDER BY id DESC LIMIT $1";
    let rows = connection.bounded(connection.client().query(query, &[&limit])).await?;
    let record = |row: &tokio_postgres::Row| {
        Ok(Record { id: row.try_get(0)?, rejected_at: row.try_get(1)?, reason: row.try_get(2)?, size: row.try_get(3)? })
    };
    rows.iter().map(record).collect()
}

/// The bytes and the reason of a record.
pub async fn get(connection: &PooledConnection<'_>, id: i64) -> Result<Option<(Vec<u8>, String)>, StoreError> {
    let query = "SELECT raw, reason FROM llm_rejected WHERE id = $1";
    match connection.bounded(connection.client().query_opt(query, &[&id])).await? {
        Some(row) => Ok(Some((row.try_get(0)?, row.try_get(1)?))),
        None => Ok(None),
    }
}

/// The number of the newest record, 0 when there is none.
pub async fn last_id(connection: &PooledConnection<'_>) -> Result<i64, StoreError> {
    let query = "SELECT coalesce(max(id), 0) FROM llm_rejected";
    Ok(connection.bounded(connection.client().query_one(query, &[])).await?.try_get(0)?)
}

/// The numbers of the records after `id` up to `end`, oldest first, at most `limit`.
pub async fn ids_between(connection: &PooledConnection<'_>, id: i64, end: i64, limit: i64) -> Result<Vec<i64>, StoreError> {
    let query = "SELECT id FROM llm_rejected WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3";
    let rows = connection.bounded(connection.client().query(query, &[&id, &end, &limit])).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Takes a record off, because its entry is a row now.
pub async fn delete(connection: &PooledConnection<'_>, id: i64) -> Result<(), StoreError> {
    let statement = "DELETE FROM llm_rejected WHERE id = $1";
    connection.bounded(connection.client().execute(statement, &[&id])).await.map(drop)
}
