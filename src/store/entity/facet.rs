//! Facets.

use sea_orm::entity::prelude::*;

/// A distinct pair of type and target.
#[derive(Clone, Debug, DeriveEntityModel)]
#[sea_orm(table_name = "facets")]
pub struct Model {
    /// A number of our own.
    #[sea_orm(primary_key)]
    pub id: i32,
    /// The type.
    #[sea_orm(column_name = "type")]
    pub kind: String,
    /// The target.
    pub target: String,
}

/// None are needed: queries name what they join.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
