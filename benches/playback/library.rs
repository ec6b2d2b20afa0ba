//! Recorded sessions in either database, and a service that plays them.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use reel::{
    model::SessionId,
    proto::{
        Action, PlaySessionRequest, PlaySessionResponse, play_session_response::Event,
        playback_service_client::PlaybackServiceClient,
    },
};
use tempfile::TempDir;
use tokio::time::Instant;
use tonic::{Streaming, transport::Channel};

use super::reader::{Amount, Reader};
use crate::support::{
    Result,
    arguments::Arguments,
    postgres::Postgres,
    progress,
    reel::Reel,
    sender::{Rpc, Upload, start_sessions},
    workload::{LIVE_SESSIONS, Plan, Workload},
};

/// Connections that the players share.
const CONNECTIONS: usize = 8;

/// A page may hold an action as large as an action may be.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Actions of a small session.
const SMALL: usize = 100;

/// Sessions, and who plays them.
pub struct Library {
    /// Of the database.
    pub name: &'static str,
    pub reel: Reel,
    pub channels: Vec<Channel>,
    pub reader: Reader,
    pub large: SessionId,
    pub small: Vec<SessionId>,
    pub postmaster: Option<u32>,
    /// Of the SQLite file.
    _folder: Option<TempDir>,
}

impl Library {
    pub async fn on_postgres(postgres: &Postgres, arguments: &Arguments) -> Result<Self> {
        let (mut library, url) = Self::empty_on_postgres(postgres, "playback").await?;
        library.record(arguments).await?;
        library.settle(&url).await?;
        Ok(library)
    }

    /// One without sessions, and its database's URL.
    pub async fn empty_on_postgres(postgres: &Postgres, database: &str) -> Result<(Self, String)> {
        let url = postgres.database(database).await?;
        let reel = Reel::serve(&url).await?;
        let channels = reel.connect(CONNECTIONS).await?;
        let library = Self {
            name: "PostgreSQL",
            reel,
            channels,
            reader: Reader::postgres(&url).await?,
            large: SessionId::mint(Utc::now()),
            small: Vec::new(),
            postmaster: Some(postgres.pid()),
            _folder: None,
        };
        Ok((library, url))
    }

    pub async fn on_sqlite(arguments: &Arguments) -> Result<Self> {
        let folder = TempDir::new()?;
        let file = folder.path().join("reel.db");
        let reel = Reel::serve(&format!("sqlite://{}", file.display())).await?;
        let channels = reel.connect(CONNECTIONS).await?;
        let mut library = Self {
            name: "SQLite",
            reel,
            channels,
            reader: Reader::sqlite(&file).await?,
            large: SessionId::mint(Utc::now()),
            small: Vec::new(),
            postmaster: None,
            _folder: Some(folder),
        };
        library.record(arguments).await?;
        Ok(library)
    }

    async fn record(&mut self, arguments: &Arguments) -> Result<()> {
        progress(format_args!("recording sessions, {}", self.name));
        self.record_large(arguments).await?;
        // Long enough ago that all of it is over.
        let day = Utc::now() - TimeDelta::days(1);
        self.small = self
            .record_plan(&Plan {
                seed: arguments.seed,
                actions: arguments.scale(4_000, 100_000, 200_000),
                senders: 8,
                batch: 20,
                live: LIVE_SESSIONS,
                session: Some(SMALL),
                started: (day, day + TimeDelta::hours(1)),
            })
            .await?;
        Ok(())
    }

    /// One session that takes several hundred pages.
    pub async fn record_large(&mut self, arguments: &Arguments) -> Result<()> {
        let started = Utc::now() - TimeDelta::days(14);
        let plan = Plan {
            seed: arguments.seed,
            actions: arguments.scale(4_000, 300_000, 1_000_000),
            senders: 1,
            batch: 1_000,
            live: 1,
            session: None,
            started: (started, started),
        };
        self.large = self.record_plan(&plan).await?[0];
        Ok(())
    }

    async fn record_plan(&self, plan: &Plan) -> Result<Vec<SessionId>> {
        let workload = Workload::generate(plan);
        let ids = workload.mint();
        start_sessions(&self.channels, &ids).await?;
        Upload::new(Rpc::StreamActions, &workload, &ids).send(&self.channels).await?;
        Ok(ids)
    }

    /// What PostgreSQL would do by itself after a while.
    pub async fn settle(&self, url: &str) -> Result<()> {
        use sea_orm::sqlx::{Connection as _, Executor as _, PgConnection};

        let mut connection = PgConnection::connect(url).await?;
        connection.execute("VACUUM (ANALYZE) actions").await?;
        connection.execute("CHECKPOINT").await?;
        Ok(connection.close().await?)
    }

    /// Plays a session as fast as it goes. Gives how much came, and after how long the first action did.
    pub async fn play(&self, session: SessionId) -> Result<(Amount, Duration)> {
        let begun = Instant::now();
        let mut playback = Playback::begin(&self.channels[0], all_of(session)).await?;
        let (mut amount, mut first) = (Amount::default(), None);
        while let Some(actions) = playback.next_page().await? {
            first.get_or_insert_with(|| begun.elapsed());
            amount.actions += actions.len();
            let size = |action: &Action| action.r#type.len() + action.target.len() + action.data.len();
            amount.bytes += actions.iter().map(size).sum::<usize>();
        }
        Ok((amount, first.ok_or("a playback has no actions")?))
    }
}

pub fn all_of(session: SessionId) -> PlaySessionRequest {
    PlaySessionRequest { session_id: session.to_string(), ..Default::default() }
}

/// A playback that has begun.
pub struct Playback {
    stream: Streaming<PlaySessionResponse>,
    actions: i64,
}

impl Playback {
    /// Waits for its start.
    pub async fn begin(channel: &Channel, request: PlaySessionRequest) -> Result<Self> {
        let mut client = PlaybackServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut stream = client.play_session(request).await?.into_inner();
        match stream.message().await?.and_then(|response| response.event) {
            Some(Event::Start(_)) => Ok(Self { stream, actions: 0 }),
            _ => Err("a playback did not begin with its start".into()),
        }
    }

    /// Waits for the next actions. None after the end, which says as many as came.
    pub async fn next_page(&mut self) -> Result<Option<Vec<Action>>> {
        match self.stream.message().await?.and_then(|response| response.event) {
            Some(Event::Actions(page)) => {
                self.actions += page.actions.len() as i64;
                Ok(Some(page.actions))
            }
            Some(Event::End(end)) if end.action_count == self.actions => Ok(None),
            _ => Err("a playback was broken off".into()),
        }
    }
}
