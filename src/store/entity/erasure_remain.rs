//! What is left of erasures.

use sea_orm::entity::prelude::*;

/// Where something of an erasure may still be.
#[derive(Clone, Debug, DeriveEntityModel)]
#[sea_orm(table_name = "erasure_remains")]
pub struct Model {
    /// The erasure's key.
    #[sea_orm(primary_key, auto_increment = false)]
    pub erasure: String,
    /// What kind of place it is.
    #[sea_orm(primary_key, auto_increment = false)]
    pub kind: String,
    /// Which of its kind.
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
}

/// None are needed: queries name what they join.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
