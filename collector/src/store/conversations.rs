//! Which conversation a call belongs to.
//!
//! A call continues the one whose end its messages have (see [`crate::extract::conversation`]). That one was written before, or by the same
//! statement, or, because each of Kong's workers sends its own batches, it comes later: then upkeep ties them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio_postgres::types::{ToSql, Type};

use super::Item;
use super::pool::{PooledConnection, StoreError};
use crate::extract::conversation::Turn;

/// The conversations of a statement's rows.
#[derive(Debug, Default)]
pub(super) struct Conversations<'i> {
    /// Of each call by its place among the items.
    of: HashMap<usize, String>,
    /// What may continue which conversation, in the order of the keys.
    pub(super) ends: BTreeMap<&'i Turn, String>,
    /// What was not there yet, and the conversation that goes on with it.
    pub(super) awaited: BTreeSet<(&'i Turn, String)>,
}

impl Conversations<'_> {
    /// The conversation of the item at `place`.
    pub(super) fn of(&self, place: usize) -> Option<&str> {
        self.of.get(&place).map(String::as_str)
    }
}

/// Finds the conversations that `items` continue. One that continues none, and was answered, begins one of its own.
pub(super) async fn find<'i>(connection: &PooledConnection<'_>, items: &[&'i Item]) -> Result<Conversations<'i>, StoreError> {
    let wanted: BTreeSet<&[u8]> = items.iter().flat_map(|item| &item.call.turns.continues).map(Turn::as_slice).collect();
    let mut known: HashMap<Vec<u8>, String> = HashMap::new();
    if !wanted.is_empty() {
        let wanted: Vec<&[u8]> = wanted.into_iter().collect();
        let parameters: [(&(dyn ToSql + Sync), Type); 1] = [(&wanted, Type::BYTEA_ARRAY)];
        let query = "SELECT turn, conversation FROM llm_turns WHERE turn = ANY ($1)";
        for row in connection.bounded(connection.query_again(query, &parameters)).await? {
            known.insert(row.try_get(0)?, row.try_get(1)?);
        }
    }
    let mut in_time: Vec<(usize, &'i Item)> = items.iter().copied().enumerate().collect();
    in_time.sort_by_key(|(_, item)| item.call.started_at);
    let mut found = Conversations::default();
    for (place, item) in in_time {
        let turns = &item.call.turns;
        let continued = turns.continues.iter().find_map(|turn| known.get(turn.as_slice())).cloned();
        let is_found = continued.is_some();
        let Some(conversation) = continued.or_else(|| (!turns.ends.is_empty()).then(|| item.call.request_id.clone())) else {
            continue;
        };
        if let Some(longest) = turns.continues.first().filter(|_| !is_found) {
            found.awaited.insert((longest, conversation.clone()));
        }
        for turn in &turns.ends {
            known.insert(turn.to_vec(), conversation.clone());
            found.ends.insert(turn, conversation.clone());
        }
        found.of.insert(place, conversation);
    }
    Ok(found)
}

/// Ties calls to earlier ones that came after them.
pub async fn join(connection: &PooledConnection<'_>) -> Result<i64, StoreError> {
    Ok(connection.bounded(connection.client().query_one("SELECT llm_join_conversations()", &[])).await?.try_get(0)?)
}

/// Removes ends of calls that are too old to be continued. `true` while there is more.
pub async fn forget(connection: &PooledConnection<'_>) -> Result<bool, StoreError> {
    Ok(connection.bounded(connection.client().query_one("SELECT llm_forget_turns()", &[])).await?.try_get(0)?)
}
