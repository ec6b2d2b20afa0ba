//! `reel.v1.SessionService`.

use chrono::Utc;
use tonic::{Request, Response, Status};

use super::Services;
use crate::{
    convert::{
        PageToken, Scope, page_size, parse_session_filter, parse_session_id, parse_update_session, session_to_proto,
    },
    error::{Error, Result},
    proto::{
        DeleteSessionRequest, DeleteSessionResponse, GetSessionRequest, GetSessionResponse, ListSessionsRequest,
        ListSessionsResponse, UpdateSessionRequest, UpdateSessionResponse, session_service_server::SessionService,
    },
};

#[tonic::async_trait]
impl SessionService for Services {
    async fn get_session(&self, request: Request<GetSessionRequest>) -> Result<Response<GetSessionResponse>, Status> {
        let id = parse_session_id(&request.into_inner().session_id)?;
        let session = session_to_proto(self.store.session_get(id).await?);
        Ok(Response::new(GetSessionResponse { session: Some(session) }))
    }

    async fn list_sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        let request = request.into_inner();
        let filter = parse_session_filter(request.filter)?;
        let size = page_size(request.page_size)?;
        let scope = Scope::new("sessions", &filter);
        let after = PageToken::parse(&request.page_token, &scope, |id| id.parse().ok())?;

        // One more than asked for tells whether there is a next page.
        let mut sessions = self.store.session_list(&filter, after, size + 1).await?;
        let next_page_token = next_page_token(&mut sessions, size, &scope, |session| session.id.to_string());
        let sessions = sessions.into_iter().map(session_to_proto).collect();
        Ok(Response::new(ListSessionsResponse { sessions, next_page_token }))
    }

    async fn update_session(
        &self,
        request: Request<UpdateSessionRequest>,
    ) -> Result<Response<UpdateSessionResponse>, Status> {
        let changes = parse_update_session(request.into_inner(), &self.limits)?;
        let (id, limit) = (changes.session, self.limits.max_attributes);
        self.store.session_update(id, &changes.removed, &changes.set, limit).await?;
        let session = session_to_proto(self.store.session_get(id).await?);
        Ok(Response::new(UpdateSessionResponse { session: Some(session) }))
    }

    async fn delete_session(
        &self,
        request: Request<DeleteSessionRequest>,
    ) -> Result<Response<DeleteSessionResponse>, Status> {
        let id = parse_session_id(&request.into_inner().session_id)?;
        let store = self.store.clone();
        // In a task of its own: a caller that goes away cannot cut it in half.
        let erasure = tokio::spawn(async move { store.session_erase(id, Utc::now()).await });
        let erased_action_count = erasure.await.unwrap_or(Err(Error::Internal))?;
        self.changes.announce(id);
        Ok(Response::new(DeleteSessionResponse { erased_action_count }))
    }
}

/// Cuts a list that was read one entry too far to the size of its page, and makes the token for what follows.
pub(super) fn next_page_token<T>(
    entries: &mut Vec<T>,
    size: u64,
    scope: &Scope,
    place: impl Fn(&T) -> String,
) -> String {
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if entries.len() <= size {
        return String::new();
    }
    entries.truncate(size);
    entries.last().map(|last| PageToken::seal(&place(last), scope)).unwrap_or_default()
}
