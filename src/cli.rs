//! The command line: one file a subcommand. This is the part that talks to people, so it may print.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod archive;
mod client;
mod demo;
mod export;
mod import;
mod index;
mod play;
mod retention;
mod serve;
mod signals;
mod time;

use std::{error::Error, io::IsTerminal as _, process::ExitCode};

use clap::{Parser, Subcommand};
use futures_util::future::LocalBoxFuture;
use tracing::Level;
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{FilterExt as _, filter_fn},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use self::{
    archive::{ArchiveArgs, RestoreArgs},
    demo::DemoArgs,
    export::ExportArgs,
    import::ImportArgs,
    index::IndexArgs,
    play::PlayArgs,
    retention::RetentionCommand,
};
use crate::{
    archive::Archive,
    config::{DatabaseArgs, ServeArgs},
    store::Store,
};

/// Why a subcommand failed, for people.
pub type Failure = Box<dyn Error + Send + Sync>;

/// Reel records what users do and plays it back.
///
/// Without a subcommand it serves, with the defaults and REEL_… environment variables of `reel serve`.
#[derive(Debug, Parser)]
#[command(name = "reel", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the service
    Serve(Box<ServeArgs>),
    /// Brings the database's schema up to date, and exits
    Migrate(DatabaseArgs),
    /// Sends recordings to a running service
    Import(ImportArgs),
    /// Writes the sessions of a search as JSON Lines or Parquet
    Export(ExportArgs),
    /// Checks the index by which sessions are found, or makes it anew
    Index(IndexArgs),
    /// Forgets what is not kept, or says what would go
    Retention(RetentionCommand),
    /// Moves old sessions' actions to the archive
    Archive(ArchiveArgs),
    /// Brings sessions back from the archive
    Restore(RestoreArgs),
    /// Prints a session as JSON Lines, for reading and for `reel import`
    Play(PlayArgs),
    /// Records a real visit to a web application and plays it back, to see what Reel does
    Demo(DemoArgs),
}

/// Opens the database that arguments name, with an archive where there is one.
async fn open_store(database: &DatabaseArgs, archive: Option<Archive>) -> Result<Store, Failure> {
    let url = database.database_url.check()?;
    let store = Store::open(&url, database.database_connections).await?;
    Ok(store.with_partition_days(database.partition_days).with_archive(archive))
}

impl Cli {
    /// Runs the subcommand. Boxed, so that it is compiled here and not once more in the binary.
    #[must_use]
    pub fn run(self) -> LocalBoxFuture<'static, Result<(), Failure>> {
        Box::pin(self.run_subcommand())
    }

    async fn run_subcommand(self) -> Result<(), Failure> {
        match self.command.unwrap_or_else(|| Command::Serve(Box::new(self.serve))) {
            Command::Serve(args) => {
                log_at("info");
                serve::serve(*args).await
            }
            Command::Migrate(args) => {
                log_at("info");
                serve::migrate(args).await
            }
            Command::Import(args) => {
                log_at("warn");
                import::import(args).await
            }
            Command::Export(args) => {
                log_at("warn");
                export::export(args).await
            }
            Command::Index(args) => {
                log_at("warn");
                index::index(args).await
            }
            Command::Retention(args) => {
                log_at("warn");
                retention::retention(args).await
            }
            Command::Archive(args) => {
                log_at("warn");
                archive::archive(args).await
            }
            Command::Restore(args) => {
                log_at("warn");
                archive::restore(args).await
            }
            Command::Play(args) => {
                log_at("warn");
                play::play(args).await
            }
            Command::Demo(args) => {
                log_at("warn");
                demo::demo(args).await
            }
        }
    }
}

/// Logs to standard error, from this level on unless `RUST_LOG` says otherwise.
fn log_at(level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    // At its finest level sea-orm says the database's URL, password and all.
    let discreet = filter_fn(|metadata| !metadata.target().starts_with("sea_orm") || *metadata.level() <= Level::INFO);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_filter(filter.and(discreet));
    tracing_subscriber::registry().with(lines).init();
}

/// Tells a person why a subcommand failed.
#[must_use]
pub fn report(error: &(dyn Error + 'static)) -> ExitCode {
    eprintln!("reel: {error}");
    let mut cause = error.source();
    while let Some(inner) = cause {
        eprintln!("  because: {inner}");
        cause = inner.source();
    }
    ExitCode::FAILURE
}
