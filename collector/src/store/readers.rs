//! Ends what dashboards have been at for too long.
//!
//! PostgreSQL lets every session lift its own time limit, so that of the role which dashboards use is a courtesy. The kit's
//! `deploy/postgresql/grants.sql` makes a function that ends its sessions from outside; a database without it has no such role.

use super::pool::{PooledConnection, StoreError};

/// Ends sessions of the dashboards' role whose transaction is older than the function allows; returns how many.
pub async fn end_long_queries(connection: &PooledConnection<'_>) -> Result<i64, StoreError> {
    const MAY: &str =
        "SELECT coalesce(has_function_privilege(to_regprocedure('llm_end_long_queries(interval)'), 'EXECUTE'), false)";
    const END: &str = "SELECT llm_end_long_queries()";
    if !connection.bounded(connection.client().query_one(MAY, &[])).await?.try_get::<_, bool>(0)? {
        return Ok(0);
    }
    Ok(connection.bounded(connection.client().query_one(END, &[])).await?.try_get(0)?)
}
