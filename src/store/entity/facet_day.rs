//! The daily roll-up of facets.

use sea_orm::entity::prelude::*;

/// How often a facet occurs in the sessions that started on a day.
#[derive(Clone, Debug, DeriveEntityModel)]
#[sea_orm(table_name = "facet_days")]
pub struct Model {
    /// The day, in UTC.
    #[sea_orm(primary_key, auto_increment = false)]
    pub day: Date,
    /// The facet.
    #[sea_orm(primary_key, auto_increment = false)]
    pub facet_id: i64,
    /// Number of actions.
    pub action_count: i64,
    /// Number of sessions that have any.
    pub session_count: i64,
}

/// None are needed: queries name what they join.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
