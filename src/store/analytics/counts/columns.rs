//! Dimensions as columns of a query, and as parts of a key.

use sea_orm::{
    DatabaseBackend, DbErr, ExprTrait as _,
    sea_query::{Alias, BinOper, Expr, Func, Query, SelectStatement, SimpleExpr},
};

use crate::{
    model::{Dimension, GroupKey, StoredAction, Track},
    store::{
        entity::{action, session, session_facet, track},
        question::Question,
        search::DirtySession,
        user::attributes_from_json,
    },
};

/// Columns of a key at most.
const MAX_COLUMNS: usize = 4;

/// The columns by which a query groups. All are texts, but the number of a facet.
pub(super) struct Columns {
    columns: Vec<SimpleExpr>,
    facet: Option<SimpleExpr>,
}

/// A group of a query.
pub(super) struct Row {
    pub(super) key: GroupKey,
    /// Where the query groups by it.
    pub(super) facet: Option<i64>,
    pub(super) count: i64,
}

impl Columns {
    /// The columns of these dimensions.
    pub(super) fn of(dimensions: &[Dimension], backend: DatabaseBackend) -> Self {
        Self { columns: dimensions.iter().map(|dimension| column(dimension, backend)).collect(), facet: None }
    }

    /// The columns of these dimensions without those that facets tell, and the number of the facet if there are any.
    pub(super) fn with_facet(dimensions: &[Dimension], backend: DatabaseBackend) -> Self {
        let others: Vec<_> = dimensions.iter().filter(|dimension| !dimension.is_of_facets()).cloned().collect();
        let facet = Expr::col((session_facet::Entity, session_facet::Column::FacetId));
        let facet = (others.len() < dimensions.len()).then_some(facet);
        Self { facet, ..Self::of(&others, backend) }
    }

    /// Selects the columns, before all others and as many for every question.
    pub(super) fn select_each(&self, query: &mut SelectStatement) {
        query.exprs(self.columns.iter().cloned());
        for _ in self.columns.len()..MAX_COLUMNS {
            query.expr(Expr::cust("CAST(NULL AS text)"));
        }
    }

    /// Selects the columns and a sum, and groups.
    pub(super) fn select(&self, query: &mut SelectStatement, sum: SimpleExpr) {
        self.select_each(query);
        // By their places: what is selected may have parameters, and those of the same in another place are others.
        query.add_group_by((1..=self.columns.len()).map(|place| Expr::cust(place.to_string())));
        match &self.facet {
            Some(facet) => query.expr(facet.clone()).add_group_by([facet.clone()]),
            None => query.expr(Expr::cust("CAST(NULL AS bigint)")),
        };
        query.expr(Func::coalesce([SimpleExpr::from(Func::cast_as(sum, Alias::new("bigint"))), Expr::val(0_i64)]));
    }

    /// The groups of a query.
    pub(super) async fn rows(
        &self,
        question: &Question,
        name: &'static str,
        query: &SelectStatement,
    ) -> Result<Vec<Row>, DbErr> {
        type Text = Option<String>;
        let rows: Vec<(Text, Text, Text, Text, Option<i64>, i64)> = question.rows(name, query).await?;
        let rows = rows.into_iter().map(|(one, two, three, four, facet, count)| {
            let key = [one, two, three, four].into_iter().take(self.columns.len()).collect();
            Row { key, facet, count }
        });
        Ok(rows.collect())
    }
}

fn column(dimension: &Dimension, backend: DatabaseBackend) -> SimpleExpr {
    let is_postgres = backend == DatabaseBackend::Postgres;
    match dimension {
        Dimension::User => Expr::col((session::Entity, session::Column::UserId)),
        Dimension::Type => Expr::col((action::Entity, action::Column::Kind)),
        Dimension::Target => Expr::col((action::Entity, action::Column::Target)),
        Dimension::Source => Expr::col((track::Entity, track::Column::Source)),
        Dimension::Attribute(key) => attribute(key, is_postgres),
        Dimension::SessionDay => time("\"sessions\".\"started_at\"", "YYYY-MM-DD", 10, is_postgres),
        Dimension::Day => time("\"actions\".\"timestamp\"", "YYYY-MM-DD", 10, is_postgres),
        Dimension::Hour => time("\"actions\".\"timestamp\"", "YYYY-MM-DD\"T\"HH24", 13, is_postgres),
    }
}

/// The beginning of a time, in UTC, as text.
fn time(column: &str, format: &str, length: usize, is_postgres: bool) -> SimpleExpr {
    Expr::cust(if is_postgres {
        format!("to_char({column} AT TIME ZONE 'UTC', '{format}')")
    } else {
        format!("substr({column}, 1, {length})")
    })
}

fn attribute(key: &str, is_postgres: bool) -> SimpleExpr {
    let attributes = Expr::col((session::Entity, session::Column::Attributes));
    if is_postgres {
        return attributes.binary(BinOper::Custom("->>"), key);
    }
    let mut entries = Query::select();
    let entry = |column: &'static str| Expr::col((Alias::new("entry"), Alias::new(column)));
    entries
        .expr(entry("value"))
        .from_function(Func::cust("json_each").arg(attributes), "entry")
        .and_where(entry("key").eq(key));
    SimpleExpr::SubQuery(None, Box::new(entries.into()))
}

/// The key of what a dirty session has of a track.
pub(super) fn key_of_track(dimensions: &[Dimension], session: &DirtySession, track: &Track) -> GroupKey {
    let mut key = key_of(dimensions, session, None, None);
    for (part, dimension) in key.iter_mut().zip(dimensions) {
        if *dimension == Dimension::Source {
            *part = Some(track.source.clone());
        }
    }
    key
}

/// The key of what a dirty session has of a facet.
pub(super) fn key_of(
    dimensions: &[Dimension],
    session: &DirtySession,
    kind: Option<&str>,
    target: Option<&str>,
) -> GroupKey {
    let part = |dimension: &Dimension| match dimension {
        Dimension::User => session.user_id.clone(),
        Dimension::Type => kind.map(str::to_owned),
        Dimension::Target => target.map(str::to_owned),
        Dimension::Attribute(key) => session.attributes.get(key).cloned(),
        Dimension::SessionDay => Some(session.id.started_at().date_naive().to_string()),
        Dimension::Source | Dimension::Day | Dimension::Hour => None,
    };
    dimensions.iter().map(part).collect()
}

/// The key of an action.
pub(super) fn key_of_action(
    dimensions: &[Dimension],
    session: &session::Model,
    tracks: &[Track],
    stored: &StoredAction,
) -> GroupKey {
    let action = &stored.action;
    let source = || tracks.iter().find(|track| track.number == stored.track).map(|track| track.source.clone());
    let part = |dimension: &Dimension| match dimension {
        Dimension::User => session.user_id.clone(),
        Dimension::Type => Some(action.kind.to_string()),
        Dimension::Target => Some(action.target.to_string()),
        Dimension::Source => source(),
        Dimension::Attribute(key) => attributes_from_json(session.attributes.clone()).remove(key),
        Dimension::SessionDay => Some(session.started_at.date_naive().to_string()),
        Dimension::Day => Some(action.timestamp.date_naive().to_string()),
        Dimension::Hour => Some(action.timestamp.format("%Y-%m-%dT%H").to_string()),
    };
    dimensions.iter().map(part).collect()
}
