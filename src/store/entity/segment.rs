//! Segments of the archive.

use sea_orm::entity::prelude::*;

/// Old sessions' actions. Which file they are in may change.
#[derive(Clone, Debug, DeriveEntityModel)]
#[sea_orm(table_name = "segments")]
pub struct Model {
    /// Its number.
    #[sea_orm(primary_key)]
    pub id: i64,
    /// The day on which its sessions started.
    pub day: Date,
    /// The file that is read. None before it is written and verified, and for good where what sessions had in a damaged file was
    /// given up.
    pub path: Option<String>,
    /// Bytes of the file.
    pub bytes: i64,
    /// Number of actions in the file.
    pub action_count: i64,
    /// The digest of its rows.
    pub digest: Option<String>,
    /// How often something in the file has ceased to belong to a session since it was written.
    pub stale: i64,
    /// When the file was first found damaged, as it was to be written anew.
    pub damaged_at: Option<DateTimeUtc>,
}

/// None are needed: queries name what they join.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
