//! Why the database did not do what it was asked, whose fault that is, and what may be said of it.

use std::time::Duration;

use tokio_postgres::error::{DbError, SqlState};

/// Why the database did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No connection in time.
    #[error("no connection to PostgreSQL within {0:?}")]
    NoConnection(Duration),
    /// No answer in time.
    #[error("no answer from PostgreSQL within {0:?}")]
    NoAnswer(Duration),
    /// An error of PostgreSQL or of the connection. It is no source of this one: whoever prints a chain of causes would print
    /// PostgreSQL's DETAIL.
    #[error("{}", describe(.0))]
    Postgres(tokio_postgres::Error),
    /// There is no time left to ask PostgreSQL, or to ask it again.
    #[error("too little time is left to ask PostgreSQL")]
    Late,
    /// Neither PostgreSQL nor the spool takes entries.
    #[error("{0}")]
    Unavailable(String),
    /// The schema could not be brought up to date; with PostgreSQL's code, where it has one.
    #[error("migration failed: {0}")]
    Migration(String, Option<SqlState>),
    /// What is in the database is not ours.
    #[error("{0}")]
    Foreign(String),
}

impl From<tokio_postgres::Error> for StoreError {
    fn from(error: tokio_postgres::Error) -> Self {
        StoreError::Postgres(error)
    }
}

/// Classes of errors whose messages name servers, roles, tables and limits, and never quote a value of a row: connection,
/// transaction, authorization, missing objects, limits, resources, intervention, I/O, corruption. 22 (data) does quote values,
/// 23 (integrity) may where a trigger raises it, and so may P0 (functions).
const CLASSES_WITHOUT_VALUES: [&str; 13] = ["08", "25", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58", "XX"];

/// What PostgreSQL says, without any value of a row: reasons are logged and kept, and rows hold what people wrote. Its DETAIL
/// ("Failing row contains (…)") is never told, and its message only where it cannot quote a value.
pub(super) fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => describe_refusal(db),
        None => {
            let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("{error}{cause}")
        }
    }
}

fn describe_refusal(db: &DbError) -> String {
    let code = db.code().code();
    let class = code.get(..2).unwrap_or_default();
    // A function in the database (RAISE) can use any code, and any text with it.
    let is_of_a_function = db.routine() == Some("exec_stmt_raise");
    if CLASSES_WITHOUT_VALUES.contains(&class) && !is_of_a_function {
        return format!("{} [{code}]", db.message());
    }
    let what = match class {
        "22" => "a value that the column cannot hold",
        "23" => "a row that violates a constraint",
        "P0" => "a function or trigger refused the row",
        _ => "refused",
    };
    let named: String =
        [("constraint", db.constraint()), ("column", db.column()), ("table", db.table()), ("type", db.datatype())]
            .into_iter()
            .filter_map(|(kind, name)| name.map(|name| format!(", {kind} {name}")))
            .collect();
    format!("{what}{named} [{code}]")
}

impl StoreError {
    /// Whether the same statement may succeed later, or on another server: then nothing is wrong with the rows.
    pub fn is_transient(&self) -> bool {
        let StoreError::Postgres(error) = self else {
            return !matches!(self, StoreError::Migration(..) | StoreError::Foreign(_));
        };
        if is_too_large(error) {
            return false;
        }
        let Some(code) = error.code() else {
            // The connection broke. An error in encoding our own parameters would be none of the connection's.
            let is_io = |cause: &(dyn std::error::Error + 'static)| cause.is::<std::io::Error>();
            return error.is_closed() || std::error::Error::source(error).is_some_and(is_io);
        };
        // 57P0x: shutdown, crash recovery; 53: out of connections, disk or memory; 08: connection; 40: serialization, deadlock;
        // 55: lock not available; 25006: a standby; 57014: statement_timeout; 58: I/O error; XX: the server itself is broken.
        // 42 and 3D, 3F: the table, the schema or the right to use them is missing. Not the row's fault: someone can mend it.
        if self.is_conflict() {
            return true;
        }
        let class = code.code().get(..2).unwrap_or_default();
        matches!(class, "08" | "40" | "53" | "55" | "57" | "58" | "XX" | "42" | "3D" | "3F" | "28")
            || *code == SqlState::READ_ONLY_SQL_TRANSACTION
    }

    /// Whether the statement met another one that writes the same rows, or a change of partitions: nothing is wrong with the rows or
    /// the server, and it may succeed at once.
    pub fn is_conflict(&self) -> bool {
        let StoreError::Postgres(error) = self else { return false };
        let Some(db) = error.as_db_error() else { return false };
        // A row was on its way to the default partition when the partition of its day came into being.
        let has_moved =
            *db.code() == SqlState::CHECK_VIOLATION && db.constraint().is_none() && db.table() == Some("llm_logs_default");
        has_moved
            || self.is_about_content()
            || [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED].contains(db.code())
    }

    /// Whether content that the statement relied on was removed meanwhile, or its day has no place for content any more.
    pub fn is_about_content(&self) -> bool {
        let StoreError::Postgres(error) = self else { return false };
        let Some(db) = error.as_db_error() else { return false };
        db.code().code() == "LC001" || *db.code() == SqlState::CHECK_VIOLATION && db.table() == Some("llm_content")
    }

    /// Whether somebody holds a lock that the statement needs.
    pub fn is_lock(&self) -> bool {
        match self {
            StoreError::Postgres(error) => error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE),
            StoreError::Migration(_, code) => *code == Some(SqlState::LOCK_NOT_AVAILABLE),
            _ => false,
        }
    }

    /// Whether the server cannot be reached or is on its way up or down: nothing that a changed setting would mend.
    pub fn is_outage(&self) -> bool {
        match self {
            StoreError::NoConnection(_) | StoreError::NoAnswer(_) => true,
            StoreError::Postgres(error) => match error.code() {
                None => self.is_transient(),
                Some(code) => matches!(code.code().get(..2), Some("57" | "53" | "08")),
            },
            StoreError::Late | StoreError::Unavailable(_) | StoreError::Migration(..) | StoreError::Foreign(_) => false,
        }
    }

    /// Whether the statement may have been carried out although no answer came.
    pub fn is_uncertain(&self) -> bool {
        match self {
            StoreError::NoAnswer(_) => true,
            StoreError::Postgres(error) => error.code().is_none(),
            StoreError::NoConnection(_)
            | StoreError::Late
            | StoreError::Unavailable(_)
            | StoreError::Migration(..)
            | StoreError::Foreign(_) => false,
        }
    }
}

/// Whether a statement was too large: for PostgreSQL's limits on a value and an allocation, which it counts among its own failures, for
/// its protocol, or for the client that wrote it. Repeating it would fail for ever.
fn is_too_large(error: &tokio_postgres::Error) -> bool {
    let Some(db) = error.as_db_error() else {
        let is_refused_by_client = |cause: &std::io::Error| cause.kind() == std::io::ErrorKind::InvalidInput;
        let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
        return cause.is_some_and(is_refused_by_client);
    };
    let code = db.code().code();
    code.starts_with("54")
        || code == "XX000" && db.message().starts_with("invalid memory alloc request size")
        || code == "08P01" && db.message().contains("message length")
        || code == "53200" && db.message().starts_with("Cannot enlarge")
}
