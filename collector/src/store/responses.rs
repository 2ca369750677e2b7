//! `llm_response_makers`: who made which stored response, as the nodes of Kong tell, for those that do not know it.

use std::collections::BTreeMap;

use super::pool::{PooledConnection, StoreError};

/// A stored response of `/v1/responses`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The server's name for it.
    pub id: String,
    /// Identity of the consumer who made it.
    pub maker: String,
    /// Whether its tokens were counted with a call.
    pub counted: bool,
}

/// Notes what a node tells. Of several of one id the last stands.
pub async fn note(connection: &PooledConnection<'_>, told: &[Response]) -> Result<(), StoreError> {
    const NOTE: &str = "SELECT llm_note_response_makers($1, $2, $3)";
    // An id that comes twice would make the statement fail.
    let last: BTreeMap<&str, &Response> = told.iter().map(|response| (response.id.as_str(), response)).collect();
    if last.is_empty() {
        return Ok(());
    }
    let ids: Vec<&str> = last.keys().copied().collect();
    let makers: Vec<&str> = last.values().map(|response| response.maker.as_str()).collect();
    let counted: Vec<bool> = last.values().map(|response| response.counted).collect();
    connection.bounded(connection.client().execute(NOTE, &[&ids, &makers, &counted])).await.map(drop)
}

/// What is known of some ids.
pub async fn find(connection: &PooledConnection<'_>, ids: &[String]) -> Result<Vec<Response>, StoreError> {
    const FIND: &str = "SELECT id, maker, counted FROM llm_response_makers WHERE id = ANY ($1)";
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows = connection.bounded(connection.client().query(FIND, &[&ids])).await?;
    Ok(rows.iter().map(|row| Response { id: row.get(0), maker: row.get(1), counted: row.get(2) }).collect())
}
