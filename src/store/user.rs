//! Queries about users.

use std::sync::atomic::Ordering;

use sea_orm::{
    ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _, Set,
    sea_query::{Expr, OnConflict},
};

use super::{
    Store,
    entity::user,
    failure::{Attempts, Failure},
    session::user_has_sessions,
};
use crate::{
    error::{Error, Result},
    model::{Attributes, User},
};

impl Store {
    /// Creates the user, or replaces what is known of it by what is given; empty fields leave the stored ones.
    pub async fn user_upsert(&self, given: User, max_attributes: usize) -> Result<User> {
        let mut attempts = Attempts::default();
        loop {
            match self.user_upsert_once(&given, max_attributes).await {
                Ok(user) => return Ok(user),
                Err(failure) => attempts.again_after(failure).await?,
            }
        }
    }

    async fn user_upsert_once(&self, given: &User, max_attributes: usize) -> Result<User, Failure> {
        let tx = self.begin().await?;
        // Writing first takes the row's lock, or makes the row.
        let stored_email = Expr::col((user::Entity, user::Column::Email));
        let inserted = user::Entity::insert(to_row(given))
            .on_conflict(OnConflict::column(user::Column::Id).value(user::Column::Email, stored_email).to_owned())
            .exec_with_returning(&tx)
            .await?;
        let mut merged = from_row(inserted);
        let mut attributes = std::mem::take(&mut merged.attributes);
        attributes.extend(given.attributes.clone());
        if attributes.len() > max_attributes {
            return Err(Error::TooManyAttributes { count: attributes.len(), limit: max_attributes }.into());
        }
        let newer = |given: &String, stored: String| if given.is_empty() { stored } else { given.clone() };
        let merged = User {
            email: newer(&given.email, merged.email),
            name: newer(&given.name, merged.name),
            attributes,
            ..merged
        };
        user::Entity::update(to_row(&merged)).exec(&tx).await?;
        tx.commit().await?;
        Ok(merged)
    }

    /// Gives one user.
    pub async fn user_get(&self, id: &str) -> Result<User> {
        let row = user::Entity::find_by_id(id).one(&self.read).await?;
        row.map(from_row).ok_or(Error::UserNotFound)
    }

    /// Lists users by id, those after the given one.
    pub async fn user_list(&self, email: Option<&str>, after: Option<&str>, limit: u64) -> Result<Vec<User>> {
        let mut users = user::Entity::find().order_by_asc(user::Column::Id).limit(limit);
        if let Some(email) = email {
            users = users.filter(user::Column::Email.eq(email));
        }
        if let Some(after) = after {
            users = users.filter(user::Column::Id.gt(after));
        }
        Ok(users.all(&self.read).await?.into_iter().map(from_row).collect())
    }

    /// Removes a user, if it has no sessions. Returns whether it is gone.
    pub(super) async fn user_delete(&self, id: &str) -> Result<bool> {
        let tx = self.begin().await?;
        // Whoever starts a session of the user holds this lock until it is committed; only a statement that begins after
        // that sees the session.
        if user::Entity::find_by_id(id).lock_exclusive().one(&tx).await?.is_none() {
            return Ok(true);
        }
        if user_has_sessions(&tx, id).await? {
            return Ok(false);
        }
        user::Entity::delete_by_id(id).exec(&tx).await?;
        tx.commit().await?;
        self.has_erased.store(true, Ordering::Release);
        Ok(true)
    }
}

fn to_row(user: &User) -> user::ActiveModel {
    let known = |text: &String| (!text.is_empty()).then(|| text.clone());
    user::ActiveModel {
        id: Set(user.id.clone()),
        email: Set(known(&user.email)),
        name: Set(known(&user.name)),
        attributes: Set(attributes_to_json(&user.attributes)),
        created_at: Set(user.created_at),
    }
}

fn from_row(row: user::Model) -> User {
    User {
        id: row.id,
        email: row.email.unwrap_or_default(),
        name: row.name.unwrap_or_default(),
        attributes: attributes_from_json(row.attributes),
        created_at: row.created_at,
    }
}

/// Attributes as they are stored: a JSON object of texts.
pub(super) fn attributes_to_json(attributes: &Attributes) -> serde_json::Value {
    attributes.iter().map(|(key, value)| (key.clone(), serde_json::Value::from(value.as_str()))).collect()
}

/// The reverse. What somebody else may have put there by hand, and is not a text, is given as its JSON.
pub(super) fn attributes_from_json(json: serde_json::Value) -> Attributes {
    let serde_json::Value::Object(entries) = json else { return Attributes::new() };
    let text = |value| match value {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    entries.into_iter().map(|(key, value)| (key, text(value))).collect()
}
