//! Sessions.

use sea_orm::entity::prelude::*;

/// One user's visit.
#[derive(Clone, Debug, DeriveEntityModel)]
#[sea_orm(table_name = "sessions")]
pub struct Model {
    /// A UUIDv7 whose time part is the session's start.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// Whoever it belongs to.
    pub user_id: Option<String>,
    /// The time part of the id, for people and for indexes.
    pub started_at: DateTimeUtc,
    /// When it ended.
    pub ended_at: Option<DateTimeUtc>,
    /// Why it ended.
    pub end_reason: Option<String>,
    /// A JSON object of texts.
    #[sea_orm(column_type = "JsonBinary")]
    pub attributes: Json,
    /// When the service first heard of it.
    pub created_at: DateTimeUtc,
}

/// None are needed: queries name what they join.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
