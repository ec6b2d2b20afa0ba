//! Users.

use sea_orm::entity::prelude::*;

/// Whoever sessions belong to.
#[derive(Clone, Debug, DeriveEntityModel)]
#[sea_orm(table_name = "users")]
pub struct Model {
    /// The caller's own id.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    /// E-mail address in lower case.
    pub email: Option<String>,
    /// Name for people to read.
    pub name: Option<String>,
    /// A JSON object of texts.
    pub attributes: Json,
    /// When the service first heard of the user.
    pub created_at: DateTimeUtc,
}

/// None are needed: queries name what they join.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
