//! The limit of playback: the keyset query that the service also makes, page after page through the same driver, with every
//! column decoded and nothing sent anywhere.

use std::path::Path;

use chrono::{DateTime, Utc};
use reel::model::SessionId;
use sea_orm::sqlx::{
    Connection as _, PgConnection, Row as _, SqliteConnection, postgres::PgConnectOptions, query,
    sqlite::SqliteConnectOptions,
};

use crate::support::Result;

/// Rows of a page.
const PAGE_ROWS: usize = 1_000;

const PAGE: &str = "
SELECT timestamp, track, seq, type, target, CAST(data AS text) FROM actions
WHERE session_id = $1 AND (timestamp, track, seq) > ($2, $3, $4) ORDER BY timestamp, track, seq LIMIT 1000";

/// A connection to either database.
pub enum Reader {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

/// How much was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    pub actions: usize,
    /// Of types, targets and data.
    pub bytes: usize,
}

/// Where a page ends.
type Position = (DateTime<Utc>, i16, i64);

/// Reads a page after a place. Gives the place where it ends.
macro_rules! page {
    ($connection:expr, $session:expr, $after:expr, $amount:expr) => {{
        let (timestamp, track, seq) = $after;
        let statement = query(PAGE).bind($session.as_uuid()).bind(timestamp).bind(track).bind(seq);
        let mut last = None;
        for row in statement.fetch_all($connection).await? {
            last = Some((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
            let texts: (&str, &str, &str) = (row.try_get(3)?, row.try_get(4)?, row.try_get(5)?);
            $amount.bytes += texts.0.len() + texts.1.len() + texts.2.len();
            $amount.actions += 1;
        }
        last
    }};
}

impl Reader {
    pub async fn postgres(url: &str) -> Result<Self> {
        // As the service does, so that no plan looks at all partitions.
        let options: PgConnectOptions = url.parse()?;
        let options = options.options([("plan_cache_mode", "force_custom_plan")]);
        Ok(Self::Postgres(PgConnection::connect_with(&options).await?))
    }

    pub async fn sqlite(file: &Path) -> Result<Self> {
        Ok(Self::Sqlite(SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(file)).await?))
    }

    /// Reads the first page.
    pub async fn first_page(&mut self, session: SessionId) -> Result<Amount> {
        let mut amount = Amount::default();
        self.page(session, (DateTime::UNIX_EPOCH, -1, 0), &mut amount).await?;
        Ok(amount)
    }

    /// Reads a whole session.
    pub async fn drain(&mut self, session: SessionId) -> Result<Amount> {
        let mut amount = Amount::default();
        let mut after = Some((DateTime::UNIX_EPOCH, -1, 0));
        while let Some(position) = after {
            let before = amount.actions;
            after = self.page(session, position, &mut amount).await?;
            if amount.actions - before < PAGE_ROWS {
                break;
            }
        }
        Ok(amount)
    }

    async fn page(&mut self, session: SessionId, after: Position, amount: &mut Amount) -> Result<Option<Position>> {
        Ok(match self {
            Self::Postgres(connection) => page!(connection, session, after, amount),
            Self::Sqlite(connection) => page!(connection, session, after, amount),
        })
    }
}
