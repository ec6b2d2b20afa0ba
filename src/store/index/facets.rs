//! The numbers of facets.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap, HashSet},
};

use sea_orm::{FromQueryResult, Value};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{Reading, write::Table};
use crate::store::{Store, failure::Failure};

/// Facets that are remembered at most.
const MAX_REMEMBERED: usize = 200_000;

/// Facets that are looked up, or made, by one statement.
const FACETS_A_STATEMENT: usize = 5_000;

const FIND: Table = Table {
    columns: &[("type", "text"), ("target_sha256", "bytea")],
    head: "SELECT facets.id, facets.type AS kind, facets.target_sha256 FROM ",
    tail: " JOIN facets ON facets.type = given.type AND facets.target_sha256 = given.target_sha256",
};

/// Arrays have no room for nothing: where there is no target, its digest is empty.
const MAKE: Table = Table {
    columns: &[("type", "text"), ("target", "text"), ("target_sha256", "bytea")],
    head: "INSERT INTO facets (type, target, target_sha256) \
           SELECT given.type, CASE WHEN length(given.target_sha256) > 0 THEN given.target END, given.target_sha256 FROM ",
    tail: " WHERE true ON CONFLICT (type, target_sha256) DO NOTHING",
};

const SESSIONS_THERE: Table = Table {
    columns: &[("id", "uuid")],
    head: "SELECT sessions.id FROM ",
    tail: " JOIN sessions ON sessions.id = given.id",
};

/// The digest by which a target is found: its SHA-256, or nothing for all targets together.
pub(in crate::store) fn target_digest(target: Option<&str>) -> Vec<u8> {
    target.map(|target| Sha256::digest(target).to_vec()).unwrap_or_default()
}

#[derive(FromQueryResult)]
struct Row {
    id: i64,
    kind: String,
    target_sha256: Vec<u8>,
}

#[derive(FromQueryResult)]
struct Session {
    id: Uuid,
}

/// The numbers of facets that are known.
#[derive(Debug, Default)]
pub struct FacetIds {
    /// By type, then by the digest of the target: targets may be long.
    by_type: HashMap<String, HashMap<Vec<u8>, i64>>,
    count: usize,
}

impl FacetIds {
    /// The number of a facet.
    pub(super) fn get(&self, kind: &str, target: Option<&str>) -> Option<i64> {
        self.by_type.get(kind)?.get(&target_digest(target)).copied()
    }

    fn insert(&mut self, row: Row) {
        let of_type = self.by_type.entry(row.kind).or_default();
        self.count += usize::from(of_type.insert(row.target_sha256, row.id).is_none());
    }
}

impl Store {
    /// Makes the facets of these readings that are new, and learns the numbers of all. In transactions of their own and before
    /// the sessions' rows: distributed PostgreSQL wants it so.
    pub(super) async fn facets_learn(&self, readings: &[Reading], ids: &mut FacetIds) -> Result<(), Failure> {
        if ids.count > MAX_REMEMBERED {
            *ids = FacetIds::default();
        }
        self.facets_look_up(readings, ids).await?;
        for new in unknown(readings, ids).chunks(FACETS_A_STATEMENT) {
            self.facets_make(new, readings).await?;
            self.facets_find(new, ids).await?;
        }
        Ok(())
    }

    /// Learns the numbers of the facets of these readings that there are.
    pub(super) async fn facets_look_up(&self, readings: &[Reading], ids: &mut FacetIds) -> Result<(), Failure> {
        for facets in unknown(readings, ids).chunks(FACETS_A_STATEMENT) {
            self.facets_find(facets, ids).await?;
        }
        Ok(())
    }

    /// Makes facets, but none of a session that was erased since it was read: nobody would remove it again. A sweep that follows
    /// the erasure of one that is still there comes after this transaction.
    async fn facets_make(&self, facets: &[(&str, Option<&str>)], readings: &[Reading]) -> Result<(), Failure> {
        let tx = self.begin_to_index().await?;
        let sessions = readings.iter().map(|reading| vec![reading.row.id.into()]).collect();
        let there: Vec<Session> = SESSIONS_THERE.rows(&tx, sessions).await?;
        let mut facets = Cow::Borrowed(facets);
        if there.len() < readings.len() {
            let there: HashSet<_> = there.into_iter().map(|session| session.id).collect();
            let there = readings.iter().filter(|reading| there.contains(&reading.row.id));
            let wanted: HashSet<_> = there.flat_map(facets_of).collect();
            facets.to_mut().retain(|facet| wanted.contains(facet));
        }
        let rows = facets.iter().map(|(kind, target)| -> Vec<Value> {
            vec![(*kind).into(), target.unwrap_or_default().into(), target_digest(*target).into()]
        });
        MAKE.run(&tx, rows.collect()).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn facets_find(&self, facets: &[(&str, Option<&str>)], ids: &mut FacetIds) -> Result<(), Failure> {
        let rows = facets.iter().map(|(kind, target)| vec![(*kind).into(), target_digest(*target).into()]);
        // Not where only reads go: that may be behind.
        let rows: Vec<Row> = FIND.rows(&self.write, rows.collect()).await?;
        rows.into_iter().for_each(|row| ids.insert(row));
        Ok(())
    }
}

fn facets_of(reading: &Reading) -> impl Iterator<Item = (&str, Option<&str>)> {
    reading.facets.iter().map(|(kind, target, _)| (kind, target))
}

/// The facets of these readings whose numbers are not known. In their order, so that two processes do not wait for each other.
fn unknown<'a>(readings: &'a [Reading], ids: &FacetIds) -> Vec<(&'a str, Option<&'a str>)> {
    let all = readings.iter().flat_map(facets_of);
    let unknown: BTreeSet<_> = all.filter(|(kind, target)| ids.get(kind, *target).is_none()).collect();
    unknown.into_iter().collect()
}
