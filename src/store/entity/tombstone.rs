//! Tombstones: the ids of erased sessions.

use sea_orm::entity::prelude::*;

/// A session that was erased.
#[derive(Clone, Debug, DeriveEntityModel)]
#[sea_orm(table_name = "tombstones")]
pub struct Model {
    /// The id it had.
    #[sea_orm(primary_key, auto_increment = false)]
    pub session_id: Uuid,
    /// When it was erased.
    pub erased_at: DateTimeUtc,
}

/// None are needed: queries name what they join.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
