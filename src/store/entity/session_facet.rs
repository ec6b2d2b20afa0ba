//! Which facets are in which sessions.

use sea_orm::entity::prelude::*;

/// That a session has actions of a facet.
#[derive(Clone, Debug, DeriveEntityModel)]
#[sea_orm(table_name = "session_facets")]
pub struct Model {
    /// The facet.
    #[sea_orm(primary_key, auto_increment = false)]
    pub facet_id: i64,
    /// The session.
    #[sea_orm(primary_key, auto_increment = false)]
    pub session_id: Uuid,
    /// How many.
    pub count: i32,
    /// The earliest timestamp of them.
    pub first_at: DateTimeUtc,
}

/// None are needed: queries name what they join.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
