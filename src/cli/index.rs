//! `reel index`: checks the index, makes it anew.

use chrono::NaiveDate;
use clap::Args;

use super::{Failure, open_store};
use crate::{
    archive::{Archive, ArchiveUrl},
    config::{DatabaseArgs, IndexLimits},
    model::LATEST_TIME,
    store::{Difference, FacetIds, Store},
};

/// What to do with the index.
#[derive(Args, Debug)]
pub(super) struct IndexArgs {
    /// Which database.
    #[command(flatten)]
    database: DatabaseArgs,
    /// Where archived actions are, if any are
    #[arg(long, env = "REEL_ARCHIVE", value_name = "URL")]
    archive: Option<ArchiveUrl>,
    /// How much it holds: as the service is told.
    #[command(flatten)]
    limits: IndexLimits,
    /// Compare it with the actions, report every difference, and fail if there are any
    #[arg(long, required_unless_present = "rebuild")]
    verify: bool,
    /// Make it anew from the actions; the service may go on meanwhile
    #[arg(long)]
    rebuild: bool,
    /// The first day of session starts, as 2026-11-24 [default: the first there is]
    #[arg(long, value_name = "DAY")]
    from: Option<NaiveDate>,
    /// The day after the last [default: after the last there is]
    #[arg(long, value_name = "DAY")]
    to: Option<NaiveDate>,
}

/// The index is wrong.
#[derive(Debug, thiserror::Error)]
#[error("the index differs from the actions in {0} places; `reel index --rebuild` mends it")]
struct Differs(usize);

/// Some sessions could not be read or written. They are dirty, so that answers are right.
#[derive(Debug, thiserror::Error)]
#[error("{0} sessions could not be indexed; answers read their actions instead")]
struct NotIndexed(usize);

/// Runs the subcommand.
pub(super) async fn index(args: IndexArgs) -> Result<(), Failure> {
    let archive = args.archive.as_ref().map(Archive::open).transpose()?;
    let store = open_store(&args.database, archive).await?.with_max_session_facets(args.limits.max_session_facets);
    store.prepare().await?;
    let (from, to) = (args.from.unwrap_or_default(), args.to.unwrap_or(LATEST_TIME.date_naive()));
    if args.rebuild {
        rebuild(&store, from, to).await?;
    }
    if args.verify {
        verify(&store, from, to).await?;
    }
    store.close().await;
    Ok(())
}

async fn rebuild(store: &Store, from: NaiveDate, to: NaiveDate) -> Result<(), Failure> {
    let (mut ids, mut failed) = (FacetIds::default(), 0);
    let mut next = Some(from);
    while let Some(from) = next
        && let Some(day) = store.index_day_from(from).await?.filter(|day| *day < to)
    {
        next = day.succ_opt();
        store.index_forget(day).await?;
        let sessions = store.index_dirty(day).await?;
        let indexed = store.index_sessions(&sessions, &mut ids).await?;
        if !sessions.is_empty() {
            println!("{day}: {} sessions, {} actions indexed", indexed.sessions.len(), indexed.actions);
        }
        for (session, error) in &indexed.failed {
            println!("session {session}: not indexed, {error}");
        }
        failed += sessions.len() - indexed.sessions.len();
    }
    store.facets_sweep().await?;
    if failed == 0 { Ok(()) } else { Err(NotIndexed(failed).into()) }
}

async fn verify(store: &Store, from: NaiveDate, to: NaiveDate) -> Result<(), Failure> {
    let loose = store.index_loose_facets().await?;
    let (checked, differences) = store.index_verify(from, to).await?;
    for difference in &differences {
        match difference {
            Difference::Summary(session) => println!("session {session}: its summary is wrong"),
            Difference::Facets(session) => println!("session {session}: its facets are wrong"),
            Difference::Tracks(session) => println!("session {session}: its tracks count actions that are not there"),
            Difference::Gone(day, sessions) => println!("{day}: facets of {sessions} sessions that are not there"),
            Difference::Day(day, facets) => println!("{day}: the roll-up is wrong for {facets} facets"),
        }
    }
    if loose > 0 {
        println!("{loose} facets are in no session any more; the service removes them in time, --rebuild at once");
    }
    println!("{checked} sessions checked, {} differences", differences.len());
    if differences.is_empty() { Ok(()) } else { Err(Differs(differences.len()).into()) }
}
