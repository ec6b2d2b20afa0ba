//! Bytes on disk of what the index adds.

use sea_orm::sqlx::query_as;

use crate::support::{
    Result,
    archive::Archive,
    figure::{Figure, Goal},
};

const SIZES: &str = "
SELECT (SELECT sum(pg_total_relation_size(relid))::float8 FROM pg_partition_tree('session_facets')),
    pg_total_relation_size('facets')::float8, pg_total_relation_size('facet_days')::float8,
    pg_total_relation_size('sessions')::float8,
    (SELECT count(*)::float8 FROM session_facets), (SELECT count(*)::float8 FROM facets)";

pub async fn measure(archive: &mut Archive) -> Result<Vec<Figure>> {
    let (session_facets, facets, days, sessions, rows, distinct): (f64, f64, f64, f64, f64, f64) =
        query_as(SIZES).fetch_one(&mut archive.connection).await?;
    let actions = archive.actions as f64;
    let json_lines = archive.json_lines_bytes / actions;
    let an_action = |name: &str, bytes: f64| Figure::new(name, bytes / actions, "bytes").beside(json_lines);
    Ok(vec![
        an_action("facets of sessions", session_facets),
        an_action("facets", facets),
        an_action("daily roll-up", days),
        an_action("facets and roll-up", session_facets + facets + days).goal(Goal::RatioAtMost(0.2)),
        an_action("sessions, with all their indexes", sessions),
        Figure::new("facets of sessions an action", rows / actions, ""),
        Figure::new("different facets", distinct, ""),
    ])
}
