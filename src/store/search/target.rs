//! Types and targets as SQL: which facets a match names, and which actions.

use sea_orm::{
    Condition, ExprTrait as _,
    sea_query::{Expr, Func, SimpleExpr},
};

use crate::{
    model::{ActionMatch, TargetMatch},
    store::{
        entity::{action, facet},
        index::target_digest,
    },
};

/// The facets that a match names.
pub(super) fn facet_condition(wanted: &ActionMatch, is_postgres: bool) -> Condition {
    let column = |column: facet::Column| Expr::col((facet::Entity, column));
    let mut condition = Condition::all();
    if let Some(kind) = &wanted.kind {
        condition = condition.add(column(facet::Column::Kind).eq(kind.as_str()));
    }
    let Some(target) = &wanted.target else { return condition };
    condition = condition.add(target_condition(column(facet::Column::Target), target, is_postgres));
    match target {
        TargetMatch::Exact(target) if wanted.kind.is_some() => {
            condition.add(column(facet::Column::TargetSha256).eq(target_digest(Some(target))))
        }
        TargetMatch::Exact(target) => condition.add(beginning().eq(beginning_of(target))),
        TargetMatch::Prefix(prefix) => begins_with(condition, &beginning(), beginning_of(prefix)),
        TargetMatch::Contains(_) => condition,
    }
}

/// Characters of a target that are in the index `facets_target`: a key of an index on PostgreSQL has 2,704 bytes at most.
const INDEXED_CHARACTERS: usize = 512;

/// What of a facet's target is in the index, as the index says it.
fn beginning() -> SimpleExpr {
    Expr::cust(format!("substr(\"facets\".\"target\", 1, {INDEXED_CHARACTERS})"))
}

/// The same of a text.
fn beginning_of(text: &str) -> &str {
    text.char_indices().nth(INDEXED_CHARACTERS).map_or(text, |(end, _)| &text[..end])
}

/// That a text begins with another, as a range: for texts that are ordered by their bytes.
pub(super) fn begins_with(condition: Condition, text: &SimpleExpr, prefix: &str) -> Condition {
    let condition = condition.add(text.clone().gte(prefix));
    condition.add_option(after_all_with(prefix).map(|after| text.clone().lt(after)))
}

/// The least text that is greater than all that begin with this. None where there is none.
fn after_all_with(prefix: &str) -> Option<String> {
    let mut text = prefix.to_owned();
    while let Some(last) = text.pop() {
        if let Some(next) = (last..=char::MAX).nth(1) {
            text.push(next);
            return Some(text);
        }
    }
    None
}

fn target_condition(target: Expr, wanted: &TargetMatch, is_postgres: bool) -> SimpleExpr {
    match wanted {
        TargetMatch::Exact(wanted) => target.eq(wanted.as_str()),
        TargetMatch::Prefix(prefix) => {
            let length = i64::try_from(prefix.chars().count()).unwrap_or(i64::MAX);
            let start = Func::cust("substr").arg(target).arg(1).arg(length_argument(length));
            SimpleExpr::from(start).eq(prefix.as_str())
        }
        TargetMatch::Contains(part) => {
            let position = Func::cust(if is_postgres { "strpos" } else { "instr" });
            SimpleExpr::from(position.arg(target).arg(part.as_str())).gt(0)
        }
    }
}

/// PostgreSQL's substr takes 4 bytes.
fn length_argument(length: i64) -> i32 {
    i32::try_from(length).unwrap_or(i32::MAX)
}

/// Actions of the type and target that a match names.
pub(in crate::store) fn action_condition(wanted: &ActionMatch, is_postgres: bool) -> Condition {
    let mut condition = Condition::all();
    if let Some(kind) = &wanted.kind {
        condition = condition.add(Expr::col((action::Entity, action::Column::Kind)).eq(kind.as_str()));
    }
    if let Some(target) = &wanted.target {
        let column = Expr::col((action::Entity, action::Column::Target));
        condition = condition.add(target_condition(column, target, is_postgres));
    }
    condition
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_after_a_prefix_is_more_than_all_that_begin_with_it() {
        for (prefix, after) in [("a", "b"), ("a\u{d7ff}", "a\u{e000}"), ("a\u{10ffff}\u{10ffff}", "b")] {
            assert_eq!(after_all_with(prefix).as_deref(), Some(after));
            assert!(*after > *format!("{prefix}\u{10ffff}\u{10ffff}x"));
        }
        assert_eq!(after_all_with("\u{10ffff}"), None);
        assert_eq!(after_all_with(""), None);
    }

    #[test]
    fn the_beginning_of_a_text_ends_between_characters() {
        for (text, length) in [(String::new(), 0), ("é".repeat(512), 1_024), ("é".repeat(513), 1_024)] {
            assert_eq!(beginning_of(&text).len(), length);
        }
    }
}
