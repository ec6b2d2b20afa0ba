//! The order of a search as SQL.

use chrono::DateTime;
use sea_orm::{
    Condition, ExprTrait as _, Value,
    sea_query::{Expr, Func, Order, SelectStatement, SimpleExpr},
};

use super::condition::session_column;
use crate::{
    model::{SessionOrder, SessionPlace},
    store::entity::session,
};

/// What comes first in the order, if it is not the id. Each has an index together with the id.
fn key(order: SessionOrder) -> Option<SimpleExpr> {
    match order {
        // An id says its session's start.
        SessionOrder::StartTime => None,
        SessionOrder::Duration => Some(session_column(session::Column::DurationMs)),
        SessionOrder::ActionCount => Some(session_column(session::Column::ActionCount)),
        SessionOrder::ErrorCount => Some(session_column(session::Column::ErrorCount)),
        SessionOrder::LastActionTime => {
            let columns = [session::Column::LastActionAt, session::Column::StartedAt].map(session_column);
            Some(Func::coalesce(columns).into())
        }
    }
}

/// Orders sessions. `goes_by_start_column` says that the index to be used has the start before the id.
pub(super) fn order_by(query: &mut SelectStatement, order: SessionOrder, ascending: bool, goes_by_start_column: bool) {
    let direction = if ascending { Order::Asc } else { Order::Desc };
    let key = match order {
        SessionOrder::StartTime if goes_by_start_column => Some(session_column(session::Column::StartedAt)),
        order => key(order),
    };
    if let Some(key) = key {
        query.order_by_expr(key, direction.clone());
    }
    query.order_by((session::Entity, session::Column::Id), direction);
}

/// That a session comes after a place.
pub(super) fn is_after(place: SessionPlace, order: SessionOrder, ascending: bool) -> Condition {
    let id = session_column(session::Column::Id);
    let (columns, values) = match key(order) {
        None => (id, Expr::val(place.session.as_uuid())),
        Some(key) => {
            let value: Value = match order {
                SessionOrder::LastActionTime => {
                    DateTime::from_timestamp_micros(place.key).unwrap_or(DateTime::UNIX_EPOCH).into()
                }
                _ => place.key.into(),
            };
            (Expr::tuple([key, id]), Expr::tuple([Expr::val(value), Expr::val(place.session.as_uuid())]))
        }
    };
    Condition::all().add(if ascending { columns.gt(values) } else { columns.lt(values) })
}
