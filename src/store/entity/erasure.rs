//! Erasures of users and of sessions.

use sea_orm::entity::prelude::*;

/// What was asked to be erased, and how far that is.
#[derive(Clone, Debug, DeriveEntityModel)]
#[sea_orm(table_name = "erasures")]
pub struct Model {
    /// SHA-256 of the user's id, in hexadecimal digits; or the session's id.
    #[sea_orm(primary_key, auto_increment = false)]
    pub user_digest: String,
    /// The user's id, while any answer shows it.
    pub user_id: Option<String>,
    /// When it was asked for.
    pub requested_at: DateTimeUtc,
    /// When no answer showed it any more. None before.
    pub gone_at: Option<DateTimeUtc>,
    /// When nothing was left. None while it goes on.
    pub finished_at: Option<DateTimeUtc>,
    /// How many sessions there were when it was asked for.
    pub session_total: i64,
    /// How many sessions are erased.
    pub session_count: i64,
    /// How many actions they had.
    pub action_count: i64,
}

/// None are needed: queries name what they join.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
