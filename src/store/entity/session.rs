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
    /// Number of its actions when it was indexed, as everything from here to `facet_detail`.
    pub action_count: i64,
    /// Number of its actions of type `error`.
    pub error_count: i64,
    /// How long it lasts, from its start to its last action, in milliseconds.
    pub duration_ms: i64,
    /// How long its user was active, in milliseconds.
    pub active_ms: i64,
    /// Number of its rage clicks.
    pub rage_click_count: i64,
    /// Whether its last action is an error.
    pub is_dead_end: bool,
    /// The earliest timestamp of its actions.
    pub first_action_at: Option<DateTimeUtc>,
    /// The latest.
    pub last_action_at: Option<DateTimeUtc>,
    /// How often it was indexed.
    pub index_version: i64,
    /// What the index has of its facets: the number of a [`FacetDetail`](crate::model::FacetDetail).
    pub facet_detail: i16,
    /// Until when it is kept, whatever its age.
    pub pinned_until: Option<DateTimeUtc>,
    /// Why.
    pub pin_reason: Option<String>,
    /// When it goes, whatever the retention.
    pub expires_at: Option<DateTimeUtc>,
    /// How many of its actions are in its segment.
    pub archived_count: i64,
    /// Its segment, if it is archived.
    pub segment_id: Option<i64>,
}

/// None are needed: queries name what they join.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
