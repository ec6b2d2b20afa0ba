//! Actions.

use sea_orm::entity::prelude::*;

/// One thing that happened.
#[derive(Clone, Debug, DeriveEntityModel)]
#[sea_orm(table_name = "actions")]
pub struct Model {
    /// The session.
    #[sea_orm(primary_key, auto_increment = false)]
    pub session_id: Uuid,
    /// When it happened.
    #[sea_orm(primary_key, auto_increment = false)]
    pub timestamp: DateTimeUtc,
    /// The track's number.
    #[sea_orm(primary_key, auto_increment = false)]
    pub track: i16,
    /// Its number on the track.
    #[sea_orm(primary_key, auto_increment = false)]
    pub seq: i64,
    /// What kind of thing happened.
    #[sea_orm(column_name = "type")]
    pub kind: String,
    /// What it was done to.
    pub target: String,
    /// JSON text, byte for byte; NULL where there is none. Of type `json` on PostgreSQL, hence the cast.
    #[sea_orm(select_as = "text")]
    pub data: Option<String>,
}

/// None are needed: queries name what they join.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
