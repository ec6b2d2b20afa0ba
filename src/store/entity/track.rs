//! Tracks.

use sea_orm::entity::prelude::*;

/// One sender's numbered line of actions inside a session.
#[derive(Clone, Debug, DeriveEntityModel)]
#[sea_orm(table_name = "tracks")]
pub struct Model {
    /// The session.
    #[sea_orm(primary_key, auto_increment = false)]
    pub session_id: Uuid,
    /// 0, 1, 2, … in the order of first batches.
    #[sea_orm(primary_key, auto_increment = false)]
    pub number: i16,
    /// Who sends it. Unique in the session.
    pub source: String,
    /// The cursor.
    pub last_seq: i64,
    /// Number of actions stored as they were sent.
    pub accepted_count: i64,
    /// Number of actions that arrived again.
    pub duplicate_count: i64,
    /// Number of actions that were rejected.
    pub rejected_count: i64,
    /// Number of actions of type `error`.
    pub error_count: i64,
    /// The latest timestamp of its actions.
    pub last_action_at: Option<DateTimeUtc>,
    /// When its last batch arrived.
    pub last_received_at: DateTimeUtc,
    /// Whether it has actions that are not in the index, or had some that are not there any more.
    pub dirty: bool,
    /// Number of seqs under which nothing is stored any more, because somebody has deleted it by hand. None where that is not
    /// known.
    pub lost_count: Option<i64>,
    /// Changes with everything that is deleted by hand, and where placeholders are replaced: what was read before may be otherwise.
    pub cut: i64,
}

/// None are needed: queries name what they join.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
