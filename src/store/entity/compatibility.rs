//! Which migrations a process need not know.

use sea_orm::entity::prelude::*;

/// A migration without which a process may use the schema.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "schema_compatibility")]
pub struct Model {
    /// Its name.
    #[sea_orm(primary_key, auto_increment = false)]
    pub version: String,
    /// The name of the migration that the process must know.
    pub oldest: String,
}

/// None are needed: queries name what they join.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
