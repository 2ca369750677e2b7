//! Connections to PostgreSQL.
//!
//! Invariant: every wait has an end that is ours. A server that accepts connections and never answers (stopped, swapping, a
//! full disk) must not hold an entry longer than [`DatabaseSettings::timeout`], well under the 10 seconds after which Kong gives
//! up on a batch. A connection whose answer we did not wait for is thrown away.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, Statement};

use super::connect::Target;
pub use super::error::StoreError;
use super::session::Session;

/// Connections that are kept free for long work (see [`Session`]), where there are enough; with few, one. Long work must not
/// wait until another statement has ended, nor hold one up.
const SESSIONS: u32 = 2;

/// Longest time for asking the server to give up a statement.
const CANCEL_PATIENCE: Duration = Duration::from_secs(2);

/// Longest time that the server waits for us in a transaction: what holds locks there is ours.
const IDLE_IN_TRANSACTION: &str = "-c idle_in_transaction_session_timeout=60000";

/// What the server holds in memory of a statement before it goes to a temporary file: all of one that writes rows, which is 16 MiB of text at
/// most. It keeps them until they are counted.
const WORK_MEMORY: &str = "-c work_mem=32MB";

/// How the database is reached.
#[derive(Debug, Clone)]
pub struct DatabaseSettings {
    /// Where it is and who we are.
    pub target: Target,
    /// Connections held at most, those that were given up and are not gone yet among them.
    pub connections: u32,
    /// Longest wait for a connection, and for the answer to a statement.
    pub timeout: Duration,
}

impl DatabaseSettings {
    /// Connections for long work, and for everything else.
    fn shares(&self) -> (u32, u32) {
        let sessions = if self.connections > 2 * SESSIONS { SESSIONS } else { 1 };
        (sessions, self.connections.saturating_sub(sessions).max(1))
    }
}

/// How long the server works on a statement before it gives up by itself: less than its answer is waited for, so that what nobody waits
/// for any more does not go on.
fn statement_milliseconds(timeout: Duration) -> u64 {
    u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX) / 8 * 7
}

/// How long the server waits for a lock, which is less still.
fn lock_milliseconds(timeout: Duration) -> u64 {
    u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX) / 4 * 3
}

/// Whether the session does not know a prepared statement, knows another one by its name, or knew it when columns had other types.
fn is_of_another_session(error: &tokio_postgres::Error) -> bool {
    let codes = [SqlState::INVALID_SQL_STATEMENT_NAME, SqlState::DUPLICATE_PSTATEMENT, SqlState::FEATURE_NOT_SUPPORTED];
    error.code().is_some_and(|code| codes.contains(code))
}

/// A connection, and whether it may be used again.
#[derive(Debug)]
pub struct Connection {
    client: Client,
    target: Target,
    abandoned: AtomicBool,
    /// What the server was told last.
    statement_milliseconds: AtomicU64,
    /// The statements that the server has parsed for this connection.
    prepared: Mutex<HashMap<&'static str, Statement>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The server may still be at it, or wait for a lock. It would give up by itself; asked, it does so at once.
        if self.abandoned.load(Ordering::Relaxed)
            && !self.client.is_closed()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (target, token) = (self.target.clone(), self.client.cancel_token());
            runtime.spawn(async move { tokio::time::timeout(CANCEL_PATIENCE, target.cancel(token)).await });
        }
    }
}

/// Makes connections for the pool.
#[derive(Debug)]
pub struct Manager {
    settings: DatabaseSettings,
    room: Arc<Semaphore>,
}

impl bb8::ManageConnection for Manager {
    type Connection = Connection;
    type Error = StoreError;

    async fn connect(&self) -> Result<Connection, StoreError> {
        let DatabaseSettings { target, timeout, .. } = &self.settings;
        let permit = permit(&self.room, *timeout).await?;
        let statement = statement_milliseconds(*timeout);
        let lock = lock_milliseconds(*timeout);
        let options = format!("-c statement_timeout={statement} -c lock_timeout={lock} {IDLE_IN_TRANSACTION} {WORK_MEMORY}");
        Ok(Connection {
            client: target.connect(*timeout, &options, permit).await?,
            target: target.clone(),
            abandoned: AtomicBool::new(false),
            statement_milliseconds: AtomicU64::new(statement),
            prepared: Mutex::default(),
        })
    }

    async fn is_valid(&self, connection: &mut Connection) -> Result<(), StoreError> {
        connection.client.simple_query("").await?;
        Ok(())
    }

    fn has_broken(&self, connection: &mut Connection) -> bool {
        connection.abandoned.load(Ordering::Relaxed) || connection.client.is_closed()
    }
}

/// Those who wait for a connection, the first one first. bb8 lets them wait until their time is over when none could be made; an attempt
/// that failed is an answer to one of them.
#[derive(Debug, Clone, Default)]
struct Waiting(Arc<Mutex<VecDeque<oneshot::Sender<StoreError>>>>);

impl Waiting {
    /// Where a failure will come.
    fn join(&self) -> oneshot::Receiver<StoreError> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|other| !other.is_closed());
        waiting.push_back(sender);
        receiver
    }
}

impl bb8::ErrorSink<StoreError> for Waiting {
    fn sink(&self, error: StoreError) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut untold = Some(error);
        while let (Some(error), Some(next)) = (untold.take(), waiting.pop_front()) {
            untold = next.send(error).err();
        }
    }

    fn boxed_clone(&self) -> Box<dyn bb8::ErrorSink<StoreError>> {
        Box::new(self.clone())
    }
}

/// The pool of connections.
///
/// Invariant: never more connections than the settings allow. A connection counts until its socket is closed, which for one that was
/// given up is when the server has answered after all; a server that does not even do that gets no further ones.
#[derive(Debug, Clone)]
pub struct Database {
    pool: bb8::Pool<Manager>,
    waiting: Waiting,
    settings: DatabaseSettings,
    session_room: Arc<Semaphore>,
}

impl Database {
    /// A pool; connects when a connection is first needed.
    pub fn new(settings: DatabaseSettings) -> Self {
        let (sessions, pooled) = settings.shares();
        let room = Arc::new(Semaphore::new(pooled as usize));
        let waiting = Waiting::default();
        let pool = bb8::Pool::builder()
            .max_size(pooled)
            .connection_timeout(settings.timeout)
            // A refused connection is an answer: the entries must not wait while bb8 tries again.
            .retry_connection(false)
            .error_sink(Box::new(waiting.clone()))
            // A check at every checkout would double the round trips of a lone entry; a dead connection is found by using it.
            .test_on_check_out(false)
            .build_unchecked(Manager { settings: settings.clone(), room });
        Self { pool, waiting, settings, session_room: Arc::new(Semaphore::new(sessions as usize)) }
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &DatabaseSettings {
        &self.settings
    }

    /// A connection that was alive a moment ago.
    pub async fn connection(&self) -> Result<PooledConnection<'_>, StoreError> {
        // A restart of the server kills every pooled connection: all of them are passed over, then a new one is made.
        for _ in 0..=self.settings.connections {
            let connection = match self.get().await {
                Ok(connection) => connection,
                Err(bb8::RunError::TimedOut) => break,
                Err(bb8::RunError::User(error)) => return Err(error),
            };
            if !connection.client.is_closed() {
                return Ok(PooledConnection { connection, timeout: self.settings.timeout });
            }
        }
        Err(StoreError::NoConnection(self.settings.timeout))
    }

    /// What the pool gives; or why it can give nothing, where it has no connection that may come back.
    async fn get(&self) -> Result<bb8::PooledConnection<'_, Manager>, bb8::RunError<StoreError>> {
        let mut wanted = std::pin::pin!(self.pool.get());
        loop {
            let failure = self.waiting.join();
            tokio::select! {
                biased;
                connection = &mut wanted => return connection,
                Ok(error) = failure => {
                    if self.pool.state().connections == 0 {
                        return Err(bb8::RunError::User(error));
                    }
                }
            }
        }
    }

    /// A connection for long work, which waits until another one is done where there is no room.
    pub async fn session(&self) -> Result<Session, StoreError> {
        let permit = Arc::clone(&self.session_room).acquire_owned().await;
        let permit = permit.map_err(|_| StoreError::NoConnection(self.settings.timeout))?;
        Session::open(&self.settings.target, self.settings.timeout, permit).await
    }
}

async fn permit(room: &Arc<Semaphore>, patience: Duration) -> Result<OwnedSemaphorePermit, StoreError> {
    let refused = || StoreError::NoConnection(patience);
    tokio::time::timeout(patience, Arc::clone(room).acquire_owned()).await.map_err(|_| refused())?.map_err(|_| refused())
}

/// A connection out of the pool.
#[derive(Debug)]
pub struct PooledConnection<'p> {
    connection: bb8::PooledConnection<'p, Manager>,
    timeout: Duration,
}

impl PooledConnection<'_> {
    /// The client, for statements to be passed to [`PooledConnection::bounded`].
    pub fn client(&self) -> &Client {
        &self.connection.client
    }

    /// How long this connection waits for an answer.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Lets this connection wait longer than others for an answer.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The answer to a statement that is sent all the time: the server parses and plans it once for each connection, which takes longer than
    /// it takes to write a row. To be passed to [`PooledConnection::bounded`].
    ///
    /// Between us and the server there may be a pooler that gives each transaction another session, which knows nothing of what was
    /// prepared in one: then the statement is sent whole.
    pub async fn query_again(
        &self,
        statement: &'static str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let values: Vec<&(dyn ToSql + Sync)> = parameters.iter().map(|(value, _)| *value).collect();
        let sent = async { self.client().query(&self.prepared(statement, parameters).await?, &values).await };
        match sent.await {
            Err(error) if is_of_another_session(&error) => self.client().query_typed(statement, parameters).await,
            answer => answer,
        }
    }

    async fn prepared(
        &self,
        statement: &'static str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Statement, tokio_postgres::Error> {
        let all = || self.connection.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all().get(statement).cloned();
        if let Some(prepared) = known {
            return Ok(prepared);
        }
        let types: Vec<Type> = parameters.iter().map(|(_, of_type)| of_type.clone()).collect();
        let prepared = self.client().prepare_typed(statement, &types).await?;
        all().insert(statement, prepared.clone());
        Ok(prepared)
    }

    /// The answer to a statement, in bounded time, on our side as on the server's. A connection whose answer was not waited for, after
    /// the time-out or because the caller gave up, is not used again: the answer may still come.
    pub async fn bounded<T>(&self, statement: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, StoreError> {
        let connection = &self.connection;
        connection.abandoned.store(true, Ordering::Relaxed);
        let milliseconds = statement_milliseconds(self.timeout);
        let carried_out = async {
            if connection.statement_milliseconds.swap(milliseconds, Ordering::Relaxed) == milliseconds {
                return statement.await;
            }
            // Sent together, in this order: no round trip more.
            let set = format!("SET statement_timeout = {milliseconds}");
            let (set, answer) = futures_util::future::join(connection.client.batch_execute(&set), statement).await;
            set.and(answer)
        };
        let answer = tokio::time::timeout(self.timeout, carried_out).await.map_err(|_| StoreError::NoAnswer(self.timeout))?;
        connection.abandoned.store(false, Ordering::Relaxed);
        Ok(answer?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_to_the_setting_and_the_server_gives_up_first() {
        for (connections, shares) in [(2, (1, 1)), (3, (1, 2)), (4, (1, 3)), (5, (2, 3)), (6, (2, 4)), (100, (2, 98))] {
            let target = Target::parse("postgres://h", &super::super::connect::TlsDefaults::default()).unwrap();
            let settings = DatabaseSettings { target, connections, timeout: Duration::from_secs(4) };
            assert_eq!(settings.shares(), shares);
        }
        assert_eq!((lock_milliseconds(Duration::from_secs(4)), statement_milliseconds(Duration::from_secs(4))), (3_000, 3_500));
    }
}
