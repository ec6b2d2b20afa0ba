//! What is asked about many sessions at once, and what is answered.

use chrono::{DateTime, TimeDelta, Utc};

use super::{ActionMatch, FacetDetail, SequenceStep, SessionFilter};

/// What actions may have in common, in the order in which groups are sorted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dimension {
    /// The user of their session.
    User,
    /// Their type.
    Type,
    /// Their target.
    Target,
    /// The source of their track.
    Source,
    /// The attribute of their session with this key.
    Attribute(String),
    /// The day on which their session started.
    SessionDay,
    /// The day on which they happened.
    Day,
    /// The hour in which they happened.
    Hour,
}

impl Dimension {
    /// Whether the facet of an action tells it.
    #[must_use]
    pub fn is_of_facets(&self) -> bool {
        matches!(self, Self::Type | Self::Target)
    }

    /// How much has to be known of a session's facets to tell it, where they do.
    #[must_use]
    pub fn facet_detail(&self) -> FacetDetail {
        match self {
            Self::Target => FacetDetail::Targets,
            Self::Type => FacetDetail::Types,
            _ => FacetDetail::Nothing,
        }
    }

    /// Whether the session of an action tells it.
    #[must_use]
    pub fn is_of_sessions(&self) -> bool {
        matches!(self, Self::User | Self::Attribute(_) | Self::SessionDay)
    }
}

/// What the actions of a group have in common: for each dimension its value, times as text. None where there is none.
pub type GroupKey = Vec<Option<String>>;

/// Which actions to count, and by what.
#[derive(Clone, Debug)]
pub struct ActionCounting {
    /// Of which sessions.
    pub filter: SessionFilter,
    /// Which.
    pub action: ActionMatch,
    /// By what, each once and in their order.
    pub group_by: Vec<Dimension>,
    /// How many groups to list.
    pub limit: usize,
}

impl ActionCounting {
    /// How much has to be known of a session's facets to count by them.
    #[must_use]
    pub fn facet_detail(&self) -> FacetDetail {
        let of_groups = self.group_by.iter().map(Dimension::facet_detail).max().unwrap_or_default();
        // Even of all actions facets tell the number, where they are counted by them at all.
        of_groups.max(self.action.facet_detail()).max(FacetDetail::Types)
    }
}

/// Numbers of actions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ActionCounts {
    /// The groups with the most actions, most first, then by key.
    pub groups: Vec<(GroupKey, i64)>,
    /// How many others there are.
    pub other_group_count: i64,
    /// How many actions are in the others.
    pub other_action_count: i64,
    /// How many actions there are in all.
    pub total: i64,
}

/// How often errors happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorFrequency {
    /// Since when.
    pub start: Option<DateTime<Utc>>,
    /// Number of errors.
    pub error_count: i64,
    /// Number of sessions that have any.
    pub session_count: i64,
    /// Number of users that have any.
    pub user_count: i64,
}

/// Which transitions to count.
#[derive(Clone, Debug)]
pub struct TransitionCounting {
    /// In which sessions.
    pub filter: SessionFilter,
    /// Between actions of which types. Empty: all.
    pub types: Vec<String>,
    /// Only from actions with this target.
    pub from_target: Option<String>,
    /// How many to list.
    pub limit: usize,
}

/// One action after another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Type and target of the one.
    pub from: (String, String),
    /// Type and target of the other.
    pub to: (String, String),
    /// How often.
    pub count: i64,
    /// The median of the time between.
    pub median: TimeDelta,
}

/// What follows what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transitions {
    /// The most frequent, most frequent first.
    pub transitions: Vec<Transition>,
    /// How many others there are.
    pub other_transition_count: i64,
    /// How often those happened.
    pub other_count: i64,
}

/// Which funnel.
#[derive(Clone, Debug)]
pub struct FunnelCounting {
    /// Of which sessions.
    pub filter: SessionFilter,
    /// The steps.
    pub steps: Vec<SequenceStep>,
    /// How many exits of a step to list.
    pub exit_limit: usize,
}

/// How many reach a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FunnelStep {
    /// Number of sessions.
    pub session_count: i64,
    /// Number of users.
    pub user_count: i64,
    /// Where those go that go no further, most frequent first: type and target of the next action, if there is one.
    pub exits: Vec<(Option<(String, String)>, i64)>,
    /// How many go elsewhere.
    pub other_exit_count: i64,
}
