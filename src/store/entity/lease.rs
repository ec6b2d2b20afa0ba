//! Leases: who may do what one process at a time does.

use sea_orm::entity::prelude::*;

/// A lease that somebody has, or had.
#[derive(Clone, Debug, DeriveEntityModel)]
#[sea_orm(table_name = "leases")]
pub struct Model {
    /// What it is for.
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
    /// Who has it: made up anew each time.
    pub holder: Uuid,
    /// Until when, unless it is renewed.
    pub until: DateTimeUtc,
}

/// None are needed.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
