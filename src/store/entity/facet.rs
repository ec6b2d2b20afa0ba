//! Facets.

use sea_orm::entity::prelude::*;

/// A distinct pair of type and target, or a type whatever the target.
#[derive(Clone, Debug, DeriveEntityModel)]
#[sea_orm(table_name = "facets")]
pub struct Model {
    /// A number of our own.
    #[sea_orm(primary_key)]
    pub id: i64,
    /// The type.
    #[sea_orm(column_name = "type")]
    pub kind: String,
    /// The target. None is all of them together.
    pub target: Option<String>,
    /// The SHA-256 of the target, by which it is found. Nothing where there is none.
    pub target_sha256: Vec<u8>,
}

/// None are needed: queries name what they join.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
