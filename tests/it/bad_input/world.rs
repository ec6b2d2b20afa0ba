//! What there is in the service before anything bad is sent to it.

use reel::proto::{
    DeleteSessionRequest, ListSessionsRequest, ListUsersRequest, SessionEnd, SessionStart, UpsertUserRequest, User,
};

use super::values::attributes;
use crate::harness::{NOON_MS, Reel, batch, clicks, end, play, session_id, start, user};

pub struct World {
    /// A session of the user `ada`: the source `main` is committed up to seq 3.
    pub session: String,
    /// Another one of hers, which has ended.
    pub ended: String,
    /// An id under which nothing was ever stored.
    pub unknown: String,
    pub erased: String,
    /// A session with as many attributes and tracks as a session may have. Its first source is `0`, its first key too.
    pub full: String,
    /// A cursor of `session`, after all of its actions.
    pub cursor: String,
    pub foreign_cursor: String,
    /// A token of the list of all sessions.
    pub session_token: String,
    /// A token of the list of all users. There are `ada`, `bob` and `full`, who has as many attributes as a user may have.
    pub user_token: String,
}

impl World {
    pub async fn make(reel: &Reel) -> Self {
        let started = |id: &str| SessionStart { user: Some(user(id, "")), ..Default::default() };
        let session = session_id(NOON_MS);
        let ended = session_id(NOON_MS);
        let erased = session_id(NOON_MS);
        let full = session_id(NOON_MS);
        let of_full = SessionStart { attributes: attributes(64), ..Default::default() };
        let mut messages = vec![
            start(&session, started("ada")),
            batch(&session, "", 1, clicks(0..3)),
            start(&ended, started("ada")),
            batch(&ended, "", 1, clicks(0..3)),
            end(&ended, SessionEnd::default()),
            start(&erased, SessionStart::default()),
            start(&full, of_full),
        ];
        messages.extend((0..64).map(|source| batch(&full, &source.to_string(), 1, clicks(0..1))));
        reel.record(messages).await.unwrap();
        let request = DeleteSessionRequest { session_id: erased.clone() };
        reel.sessions().delete_session(request).await.unwrap();
        for user in [user("bob", ""), User { attributes: attributes(64), ..user("full", "") }] {
            reel.users().upsert_user(UpsertUserRequest { user: Some(user) }).await.unwrap();
        }
        let cursor = reel.play(play(&session)).await.unwrap().end_cursor.unwrap();
        let foreign_cursor = reel.play(play(&ended)).await.unwrap().end_cursor.unwrap();
        let request = ListSessionsRequest { page_size: 1, ..Default::default() };
        let session_token = reel.sessions().list_sessions(request).await.unwrap().into_inner().next_page_token;
        let request = ListUsersRequest { page_size: 1, ..Default::default() };
        let user_token = reel.users().list_users(request).await.unwrap().into_inner().next_page_token;
        let unknown = session_id(NOON_MS);
        Self { session, ended, unknown, erased, full, cursor, foreign_cursor, session_token, user_token }
    }
}
