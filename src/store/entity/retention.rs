//! Retentions: how long services keep sessions, and when each of these was last applied.

use sea_orm::entity::prelude::*;

/// A retention that a service has, or had lately.
#[derive(Clone, Debug, DeriveEntityModel)]
#[sea_orm(table_name = "retentions")]
pub struct Model {
    /// Seconds that sessions are kept after their day. [`i64::MAX`] is for ever.
    #[sea_orm(primary_key, auto_increment = false)]
    pub keep_s: i64,
    /// Bytes that the database may take. [`i64::MAX`] is any number.
    #[sea_orm(primary_key, auto_increment = false)]
    pub max_bytes: i64,
    /// When a service last said that it has it.
    pub seen_at: DateTimeUtc,
    /// When it was last applied, and nothing was in doubt.
    pub applied_at: Option<DateTimeUtc>,
    /// The first day that it kept then. None where it keeps all.
    pub first_kept: Option<Date>,
}

/// None are needed.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
