//! Which sessions, and which of their actions: what a search asks for.

use chrono::{DateTime, TimeDelta, Utc};

use super::{Action, DataCondition, FacetDetail};

/// Which sessions. All parts are combined with AND.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SessionFilter {
    /// Only sessions of this user.
    pub user_id: Option<String>,
    /// Only sessions of users with this e-mail address, in lower case.
    pub email: Option<String>,
    /// Only sessions of users whose e-mail address begins with this, in lower case.
    pub email_prefix: Option<String>,
    /// The users with such an e-mail address, where they were looked up and are not too many.
    pub users: Option<Vec<String>>,
    /// Only sessions that started at this time or later.
    pub started_after: Option<DateTime<Utc>>,
    /// Only sessions that started before this time.
    pub started_before: Option<DateTime<Utc>>,
    /// How long they last, from their start to their last action, in milliseconds.
    pub duration_ms: Between,
    /// How long their users were active, in milliseconds.
    pub active_ms: Between,
    /// How many actions they have.
    pub action_count: Between,
    /// How many errors they have.
    pub error_count: Between,
    /// How many rage clicks they have.
    pub rage_click_count: Between,
    /// Whether their last action is an error.
    pub is_dead_end: Option<bool>,
    /// What their attributes are.
    pub attributes: Vec<AttributeMatch>,
    /// Whether they are live.
    pub is_live: Option<bool>,
    /// Whether they are pinned now.
    pub is_pinned: Option<bool>,
    /// All of these happened.
    pub all_of: Vec<ActionMatch>,
    /// At least one of these happened, if there is any.
    pub any_of: Vec<ActionMatch>,
    /// None of these happened.
    pub none_of: Vec<ActionMatch>,
    /// These happened one after the other, if there is any.
    pub sequence: Vec<SequenceStep>,
}

impl SessionFilter {
    /// Everything that is asked of the actions, but for the order of a sequence.
    pub fn matches(&self) -> impl Iterator<Item = &ActionMatch> + Clone {
        let steps = self.sequence.iter().map(|step| &step.action);
        self.all_of.iter().chain(&self.any_of).chain(&self.none_of).chain(steps)
    }

    /// Whether only the actions themselves can tell whether a session matches: their time, their data or their order.
    #[must_use]
    pub fn needs_actions(&self) -> bool {
        !self.sequence.is_empty() || self.matches().any(|wanted| !wanted.is_of_facets())
    }

    /// How much has to be known of a session's facets to tell, as far as facets can, what it asks of the actions.
    #[must_use]
    pub fn facet_detail(&self) -> FacetDetail {
        self.matches().map(ActionMatch::facet_detail).max().unwrap_or_default()
    }

    /// Whether it asks for anything that happened, or did not.
    #[must_use]
    pub fn asks_for_actions(&self) -> bool {
        self.matches().next().is_some()
    }

    /// Whether it asks for what the index knows of a session's actions taken together, and tracks do not.
    #[must_use]
    pub fn asks_for_summary(&self) -> bool {
        !self.active_ms.is_open() || !self.rage_click_count.is_open() || self.is_dead_end.is_some()
    }

    /// Whether it asks for an e-mail address.
    #[must_use]
    pub fn asks_for_email(&self) -> bool {
        self.email.is_some() || self.email_prefix.is_some()
    }

    /// The one user whose sessions it is about, if that is known.
    #[must_use]
    pub fn only_user(&self) -> Option<&str> {
        let only = match self.users.as_deref() {
            Some([only]) => Some(only.as_str()),
            _ => None,
        };
        self.user_id.as_deref().or(only)
    }

    /// Whether a time range bounds what has to be read.
    #[must_use]
    pub fn has_time_range(&self) -> bool {
        self.started_after.is_some() && self.started_before.is_some()
    }
}

/// A number, from one to another, both included. None is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Between {
    /// The least.
    pub min: Option<i64>,
    /// The most.
    pub max: Option<i64>,
}

impl Between {
    /// Whether a number is in it.
    #[must_use]
    pub fn contains(&self, number: i64) -> bool {
        self.min.is_none_or(|min| number >= min) && self.max.is_none_or(|max| number <= max)
    }

    /// Whether every number is in it.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.min.is_none() && self.max.is_none()
    }
}

/// An attribute of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributeMatch {
    /// Its key.
    pub key: String,
    /// One of these is its value. Empty: it has any.
    pub values: Vec<String>,
}

/// Actions: those for which everything that is set here is so.
#[derive(Clone, Debug, PartialEq)]
pub struct ActionMatch {
    /// Their type.
    pub kind: Option<String>,
    /// Their target.
    pub target: Option<TargetMatch>,
    /// How many such actions a session must have, at least 1.
    pub min_count: i64,
    /// From which offset from the session's start on.
    pub from: Option<TimeDelta>,
    /// Up to which offset from the session's start, those at it left out.
    pub until: Option<TimeDelta>,
    /// What their data must be like.
    pub data: Vec<DataCondition>,
}

impl Default for ActionMatch {
    fn default() -> Self {
        Self { kind: None, target: None, min_count: 1, from: None, until: None, data: Vec::new() }
    }
}

impl ActionMatch {
    /// Whether type and target alone tell which actions these are.
    #[must_use]
    pub fn is_of_facets(&self) -> bool {
        self.from.is_none() && self.until.is_none() && self.data.is_empty()
    }

    /// Whether all actions are such.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        !self.names_facets() && self.is_of_facets()
    }

    /// Whether it says anything of type or target.
    #[must_use]
    pub fn names_facets(&self) -> bool {
        self.kind.is_some() || self.target.is_some()
    }

    /// How much has to be known of a session's facets to know which are of such actions.
    #[must_use]
    pub fn facet_detail(&self) -> FacetDetail {
        match (&self.kind, &self.target) {
            (_, Some(_)) => FacetDetail::Targets,
            (Some(_), None) => FacetDetail::Types,
            (None, None) => FacetDetail::Nothing,
        }
    }

    /// Whether actions of this type and target may be such.
    #[must_use]
    pub fn has_facet(&self, kind: &str, target: &str) -> bool {
        self.kind.as_ref().is_none_or(|wanted| wanted == kind)
            && self.target.as_ref().is_none_or(|wanted| wanted.matches(target))
    }

    /// Whether it names one type and one target.
    #[must_use]
    pub fn is_of_one_facet(&self) -> bool {
        self.kind.is_some() && matches!(self.target, Some(TargetMatch::Exact(_)))
    }

    /// Whether an action of a session that started at this time is such.
    #[must_use]
    pub fn matches(&self, started_at: DateTime<Utc>, action: &ActionView<'_>) -> bool {
        self.has_facet(action.kind, action.target)
            && self.from.is_none_or(|from| action.timestamp - started_at >= from)
            && self.until.is_none_or(|until| action.timestamp - started_at < until)
            && DataCondition::all_hold(&self.data, action.data)
    }
}

/// What a target must be like. Compared byte by byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetMatch {
    /// It is this.
    Exact(String),
    /// It begins with this.
    Prefix(String),
    /// This is somewhere in it.
    Contains(String),
}

impl TargetMatch {
    /// Whether a target is so.
    #[must_use]
    pub fn matches(&self, target: &str) -> bool {
        match self {
            Self::Exact(wanted) => target == wanted,
            Self::Prefix(prefix) => target.starts_with(prefix.as_str()),
            Self::Contains(part) => target.contains(part.as_str()),
        }
    }
}

/// A step of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceStep {
    /// The action.
    pub action: ActionMatch,
    /// How long after the action of the step before at most.
    pub within: Option<TimeDelta>,
}

/// An action as it is looked at.
#[derive(Clone, Copy)]
pub struct ActionView<'a> {
    /// When it happened.
    pub timestamp: DateTime<Utc>,
    /// What kind of thing.
    pub kind: &'a str,
    /// What it was done to.
    pub target: &'a str,
    /// JSON text. May be empty.
    pub data: &'a str,
}

impl<'a> From<&'a Action> for ActionView<'a> {
    fn from(action: &'a Action) -> Self {
        Self { timestamp: action.timestamp, kind: &action.kind, target: &action.target, data: &action.data }
    }
}

/// What sessions are ordered by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SessionOrder {
    /// Their start.
    #[default]
    StartTime,
    /// How long they last.
    Duration,
    /// The number of their actions.
    ActionCount,
    /// The number of their errors.
    ErrorCount,
    /// The time of their last action, or of their start where they have none.
    LastActionTime,
}
