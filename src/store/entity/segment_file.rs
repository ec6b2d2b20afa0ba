//! Files of the archive.

use sea_orm::entity::prelude::*;

/// A file, whoever needs it.
#[derive(Clone, Debug, DeriveEntityModel)]
#[sea_orm(table_name = "segment_files")]
pub struct Model {
    /// Its key, below the archive's URL. No other file has ever had it.
    #[sea_orm(primary_key, auto_increment = false)]
    pub path: String,
    /// The segment that it was written for.
    pub segment_id: i64,
    /// What becomes of it.
    pub state: FileState,
    /// Since when.
    pub since: DateTimeUtc,
}

/// What becomes of a file. See `store/archive.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "Text")]
pub enum FileState {
    /// It is being written.
    #[sea_orm(string_value = "planned")]
    Planned,
    /// It is whole, was read back, and nobody uses it yet.
    #[sea_orm(string_value = "written")]
    Written,
    /// It is what its segment is read from.
    #[sea_orm(string_value = "in_use")]
    InUse,
    /// Nobody will use it any more.
    #[sea_orm(string_value = "removing")]
    Removing,
    /// It was removed.
    #[sea_orm(string_value = "gone")]
    Gone,
}

/// None are needed: queries name what they join.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
