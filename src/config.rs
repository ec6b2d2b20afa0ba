//! What can be configured: arguments of the command line, each also as an environment variable, checked before anything
//! starts. Every field says its default.

mod database_url;

use std::{net::SocketAddr, time::Duration};

use chrono::TimeDelta;
use clap::Args;

pub use self::database_url::{DatabaseUrl, GivenUrl, InvalidDatabaseUrl};
use crate::{
    archive::{Archive, ArchiveUrl, Unusable},
    convert::RedactionRule,
    model::{ArchivePolicy, Facets, RetentionPolicy},
};

/// Which database.
#[derive(Args, Clone, Debug)]
pub struct DatabaseArgs {
    /// Where sessions are kept: sqlite://FILE or postgres://USER:PASSWORD@HOST/DATABASE
    #[arg(
        long,
        env = "REEL_DATABASE_URL",
        default_value = "sqlite://reel.db",
        value_name = "URL",
        hide_env_values = true
    )]
    pub database_url: GivenUrl,
    /// Connections to PostgreSQL in all, shared out to writing, reading, questions and what looks after them, and one more for
    /// each writer beyond two; fewer where the server has fewer left at the start. Connections that read SQLite
    #[arg(long, env = "REEL_DATABASE_CONNECTIONS", default_value_t = 12, value_name = "N", value_parser = clap::value_parser!(u32).range(9..=1000))]
    pub database_connections: u32,
    /// How many days of session starts a new partition on PostgreSQL is for. They expire together, when the last of them does;
    /// with 7, from Monday to Sunday. Widen it for retentions of many months: questions look into every partition
    #[arg(long, env = "REEL_PARTITION_DAYS", default_value_t = 1, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(1..=366))]
    pub partition_days: u16,
}

/// How the service runs.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Address and port to listen on
    #[arg(long, env = "REEL_LISTEN", default_value = "127.0.0.1:50051", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Which database.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// How it behaves.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// How the service behaves, wherever it listens and whatever its database.
#[derive(Args, Clone, Debug)]
pub struct ServiceArgs {
    /// A session for which no action has arrived for this long is ended
    #[arg(long, env = "REEL_IDLE_TIMEOUT", default_value = "30min", value_name = "DURATION", value_parser = positive_duration)]
    pub idle_timeout: Duration,
    /// How long a message may take to arrive once it has begun, and all of a request that is no upload
    #[arg(long, env = "REEL_UPLOAD_STALL_TIMEOUT", default_value = "30s", value_name = "DURATION", value_parser = positive_duration)]
    pub upload_stall_timeout: Duration,
    /// How long the client of a playback may read nothing of what is ready for it
    #[arg(long, env = "REEL_PLAYBACK_STALL_TIMEOUT", default_value = "1min", value_name = "DURATION", value_parser = positive_duration)]
    pub playback_stall_timeout: Duration,
    /// How long streams and transactions may go on after SIGTERM before they are cut off
    #[arg(long, env = "REEL_DRAIN_TIMEOUT", default_value = "25s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub drain_timeout: Duration,
    /// How many connections may be open at once; more wait
    #[arg(long, env = "REEL_MAX_CONNECTIONS", default_value_t = 1024, value_name = "N", value_parser = positive)]
    pub max_connections: usize,
    /// MiB of messages that may be on their way into the database, or be answered, at once; senders of more wait
    #[arg(long, env = "REEL_INGEST_BUFFER_MIB", default_value_t = 128, value_name = "MIB", value_parser = clap::value_parser!(u32).range(8..=65536))]
    pub ingest_buffer_mib: u32,
    /// Transactions that write actions at once, each for many senders [default: 2 on PostgreSQL; SQLite takes 1]
    #[arg(long, env = "REEL_WRITERS", value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub writers: Option<u8>,
    /// Whether this process keeps the index by which sessions are found; of all processes on a database at least one should
    #[arg(long, env = "REEL_INDEXER", default_value = "on", value_name = "SWITCH")]
    pub indexer: Switch,
    /// How much the index holds.
    #[command(flatten)]
    pub index: IndexLimits,
    /// How long sessions are kept.
    #[command(flatten)]
    pub retention: RetentionArgs,
    /// What is never stored of actions: a NAME of fields in data, as password; a path in data, as $.card.number; or a /PATTERN/
    /// (regular expression) of texts and numbers in data, and of targets. May be given many times, in the variable a line each
    #[arg(long, env = "REEL_REDACT", value_name = "RULE", value_delimiter = '\n')]
    pub redact: Vec<RedactionRule>,
    /// What requests may not exceed.
    #[command(flatten)]
    pub limits: Limits,
}

/// How much the index holds.
#[derive(Args, Clone, Copy, Debug)]
pub struct IndexLimits {
    /// How many different pairs of type and target the index has of a session; where one has more, questions about targets read
    /// its actions
    #[arg(long, env = "REEL_MAX_SESSION_FACETS", default_value_t = Facets::DEFAULT_MAX, value_name = "N", value_parser = facet_count)]
    pub max_session_facets: usize,
}

/// How long sessions are kept.
#[derive(Args, Clone, Debug)]
pub struct RetentionArgs {
    /// How long sessions are kept after the end of the day (UTC) on which they started; 0 keeps them for ever. With an
    /// archive, how long their actions stay in the database
    #[arg(long, env = "REEL_RETENTION", default_value = "14days", value_name = "DURATION", value_parser = duration_or_zero)]
    pub retention: Duration,
    /// Bytes that the database may take, as 500MiB or 2TiB; beyond them the oldest days go, to the archive if there is one,
    /// but never today [default: any number]
    #[arg(long, env = "REEL_RETENTION_BYTES", value_name = "BYTES", value_parser = byte_count)]
    pub retention_bytes: Option<i64>,
    /// Where the actions of old sessions go instead of being lost: a folder, or s3://BUCKET/PREFIX, with keys, region and
    /// endpoint from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL
    #[arg(long, env = "REEL_ARCHIVE", value_name = "URL")]
    pub archive: Option<ArchiveUrl>,
    /// When actions go to the archive, after the end of the day on which their sessions started [default: --retention]
    #[arg(long, env = "REEL_ARCHIVE_AFTER", value_name = "DURATION", value_parser = duration_or_zero, requires = "archive")]
    pub archive_after: Option<Duration>,
    /// How long archived sessions are kept in all, after the end of the day on which they started; 0 keeps them for ever
    #[arg(long, env = "REEL_ARCHIVE_RETENTION", default_value = "0", value_name = "DURATION", value_parser = duration_or_zero)]
    pub archive_retention: Duration,
}

impl RetentionArgs {
    /// The same as a policy.
    #[must_use]
    pub fn policy(&self) -> RetentionPolicy {
        let delta = |duration| TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX);
        let unless_zero = |duration: Duration| (!duration.is_zero()).then(|| delta(duration));
        let archive = self.archive.is_some().then(|| ArchivePolicy {
            after: self.archive_after.map(delta).or(unless_zero(self.retention)),
            keep_for: unless_zero(self.archive_retention),
        });
        RetentionPolicy { keep_for: unless_zero(self.retention), max_bytes: self.retention_bytes, archive }
    }

    /// Opens the archive, if there is to be one.
    pub fn open_archive(&self) -> Result<Option<Archive>, Unusable> {
        self.archive.as_ref().map(Archive::open).transpose()
    }
}

/// On or off.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// It is done.
    On,
    /// It is not done.
    Off,
}

/// What requests may not exceed. Each error names the limit that was hit.
#[derive(Args, Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a message, after decompression
    #[arg(long, env = "REEL_MAX_MESSAGE_BYTES", default_value_t = 4 << 20, value_name = "BYTES", value_parser = positive)]
    pub max_message_bytes: usize,
    /// Bytes of an action: type, target and data together
    #[arg(long, env = "REEL_MAX_ACTION_BYTES", default_value_t = 1 << 20, value_name = "BYTES", value_parser = positive)]
    pub max_action_bytes: usize,
    /// Actions of a batch
    #[arg(long, env = "REEL_MAX_BATCH_ACTIONS", default_value_t = 5_000, value_name = "N", value_parser = batch_size)]
    pub max_batch_actions: usize,
    /// How deep the JSON of an action may be nested
    #[arg(long, env = "REEL_MAX_JSON_DEPTH", default_value_t = 128, value_name = "N", value_parser = json_depth)]
    pub max_json_depth: usize,
    /// Bytes of an action's type, a track's source and an end's reason
    #[arg(long, env = "REEL_MAX_TYPE_BYTES", default_value_t = 64, value_name = "BYTES", value_parser = type_bytes)]
    pub max_type_bytes: usize,
    /// Bytes of an action's target
    #[arg(long, env = "REEL_MAX_TARGET_BYTES", default_value_t = 1_024, value_name = "BYTES", value_parser = target_bytes)]
    pub max_target_bytes: usize,
    /// Attributes of a session, or of a user
    #[arg(long, env = "REEL_MAX_ATTRIBUTES", default_value_t = 64, value_name = "N", value_parser = positive)]
    pub max_attributes: usize,
    /// Bytes of an attribute's key
    #[arg(long, env = "REEL_MAX_ATTRIBUTE_KEY_BYTES", default_value_t = 64, value_name = "BYTES", value_parser = positive)]
    pub max_attribute_key_bytes: usize,
    /// Bytes of an attribute's value
    #[arg(long, env = "REEL_MAX_ATTRIBUTE_VALUE_BYTES", default_value_t = 1_024, value_name = "BYTES", value_parser = positive)]
    pub max_attribute_value_bytes: usize,
    /// Tracks of a session
    #[arg(long, env = "REEL_MAX_TRACKS", default_value_t = 64, value_name = "N", value_parser = track_count)]
    pub max_tracks: usize,
    /// How far ahead of the service's clock an action or a session's start may be
    #[arg(long, env = "REEL_MAX_CLOCK_LEAD", default_value = "1day", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub max_clock_lead: Duration,
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}

/// More cannot be searched for.
fn target_bytes(text: &str) -> Result<usize, String> {
    positive_up_to(text, crate::convert::MAX_TARGET_BYTES)
}

/// All of them are in the memory while a session is indexed.
fn facet_count(text: &str) -> Result<usize, String> {
    positive_up_to(text, 1_000_000)
}

/// With the beginning of a target it is a key of an index, where PostgreSQL takes 2,704 bytes.
fn type_bytes(text: &str) -> Result<usize, String> {
    positive_up_to(text, 512)
}

fn positive_up_to(text: &str, limit: usize) -> Result<usize, String> {
    let number = positive(text)?;
    if number > limit { Err(format!("must be at most {limit}")) } else { Ok(number) }
}

/// More are not even taken out of their message.
fn batch_size(text: &str) -> Result<usize, String> {
    let limit = crate::convert::UploadBatch::MAX_ACTIONS;
    let size = positive(text)?;
    if size <= limit { Ok(size) } else { Err(format!("must be at most {limit}")) }
}

/// Playing a session back names each of its tracks in one condition, and SQLite takes conditions that are 1,000 deep.
fn track_count(text: &str) -> Result<usize, String> {
    let count = positive(text)?;
    if count <= 512 { Ok(count) } else { Err("must be at most 512".to_owned()) }
}

/// PostgreSQL checks the JSON once more, and its stack, of 2 MB unless configured otherwise, is enough for a depth of more
/// than 10,000 on PostgreSQL 15.
fn json_depth(text: &str) -> Result<usize, String> {
    let depth = positive(text)?;
    if depth <= 4_096 { Ok(depth) } else { Err("must be at most 4096".to_owned()) }
}

fn duration_or_zero(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { humantime::parse_duration(text).map_err(|error| error.to_string()) }
}

/// Takes `1000000`, `500MiB`, `2TB`.
fn byte_count(text: &str) -> Result<i64, String> {
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let factor: i64 = match text.split_at(digits.len()).1.trim() {
        "" | "B" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err("must be a number of bytes, such as 500MiB, 20GB or 2TiB".to_owned()),
    };
    let number: i64 = digits.parse().map_err(|_| "must begin with a whole number".to_owned())?;
    number.checked_mul(factor).filter(|bytes| *bytes > 0).ok_or_else(|| "must be from 1 byte to 8 EiB".to_owned())
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be more than 0".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(error.to_string()),
    }
}

/// Where a client finds the service.
#[derive(Args, Clone, Debug)]
pub struct ClientArgs {
    /// The service's URL
    #[arg(long, env = "REEL_SERVER", default_value = "http://127.0.0.1:50051", value_name = "URL")]
    pub server: String,
    /// How long to try again when the service or its database is away, since anything last went well
    #[arg(long, env = "REEL_RETRY_FOR", default_value = "30s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub retry_for: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_said_as_people_say_them() {
        for (text, bytes) in [("1", 1), ("20GB", 20_000_000_000), ("500MiB", 500 << 20), ("2 TiB", 2 << 40)] {
            assert_eq!(byte_count(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "0", "-1", "GB", "1.5GB", "1XB", "9999999TiB", "1 MiBs"] {
            assert!(byte_count(wrong).is_err(), "{wrong}");
        }
    }
}
