//! The numbers of facets.

use std::collections::{BTreeSet, HashMap};

use sea_orm::{FromQueryResult, Value};

use super::{Reading, write::Table};
use crate::store::{Store, failure::Failure};

/// Facets that are remembered at most.
const MAX_REMEMBERED: usize = 200_000;

/// Facets that are looked up, or made, by one statement.
const FACETS_A_STATEMENT: usize = 5_000;

const COLUMNS: &[(&str, &str)] = &[("type", "text"), ("target", "text")];

const FIND: Table = Table {
    columns: COLUMNS,
    head: "SELECT facets.id, facets.type AS kind, facets.target FROM ",
    tail: " JOIN facets ON facets.type = given.type AND facets.target = given.target",
};

const MAKE: Table = Table {
    columns: COLUMNS,
    head: "INSERT INTO facets (type, target) SELECT given.type, given.target FROM ",
    tail: " WHERE true ON CONFLICT (type, target) DO NOTHING",
};

#[derive(FromQueryResult)]
struct Row {
    id: i32,
    kind: String,
    target: String,
}

/// The numbers of facets that are known.
#[derive(Debug, Default)]
pub struct FacetIds {
    by_type: HashMap<String, HashMap<String, i32>>,
    count: usize,
}

impl FacetIds {
    /// The number of a facet.
    pub(super) fn get(&self, kind: &str, target: &str) -> Option<i32> {
        self.by_type.get(kind)?.get(target).copied()
    }

    fn insert(&mut self, kind: String, target: String, id: i32) {
        self.count += usize::from(self.by_type.entry(kind).or_default().insert(target, id).is_none());
    }
}

impl Store {
    /// Makes the facets of these readings that are new, and learns the numbers of all. In transactions of their own and before
    /// the sessions' rows: distributed PostgreSQL wants it so.
    pub(super) async fn facets_learn(&self, readings: &[Reading], ids: &mut FacetIds) -> Result<(), Failure> {
        if ids.count > MAX_REMEMBERED {
            *ids = FacetIds::default();
        }
        let all = readings.iter().flat_map(|reading| &reading.facets);
        let all = all.flat_map(|(kind, targets)| targets.keys().map(move |target| (kind.as_str(), target.as_str())));
        // In their order, so that two processes do not wait for each other.
        let unknown: BTreeSet<_> = all.filter(|(kind, target)| ids.get(kind, target).is_none()).collect();
        let unknown: Vec<_> = unknown.into_iter().collect();
        for facets in unknown.chunks(FACETS_A_STATEMENT) {
            self.facets_find(facets, ids).await?;
            let new: Vec<_> = facets.iter().copied().filter(|(kind, target)| ids.get(kind, target).is_none()).collect();
            if new.is_empty() {
                continue;
            }
            MAKE.run(&self.write, values(&new)).await?;
            self.facets_find(&new, ids).await?;
        }
        Ok(())
    }

    async fn facets_find(&self, facets: &[(&str, &str)], ids: &mut FacetIds) -> Result<(), Failure> {
        // Not where only reads go: that may be behind.
        let rows: Vec<Row> = FIND.rows(&self.write, values(facets)).await?;
        for Row { id, kind, target } in rows {
            ids.insert(kind, target, id);
        }
        Ok(())
    }
}

fn values(facets: &[(&str, &str)]) -> Vec<Vec<Value>> {
    facets.iter().map(|(kind, target)| vec![(*kind).into(), (*target).into()]).collect()
}
