//! `reel.v1.SessionService`.

use prost::Message;
use tonic::{Request, Response, Status};

use super::Services;
use crate::{
    convert::{
        PageToken, Scope, action_place_to_text, found_action_to_proto, found_session_to_proto, parse_list_actions,
        parse_list_sessions, parse_session_id, parse_update_session, place_to_text,
    },
    error::{Error, Result},
    proto::{
        DeleteSessionRequest, DeleteSessionResponse, GetSessionRequest, GetSessionResponse, ListActionsRequest,
        ListActionsResponse, ListSessionsRequest, ListSessionsResponse, UpdateSessionRequest, UpdateSessionResponse,
        session_service_server::SessionService,
    },
};

#[tonic::async_trait]
impl SessionService for Services {
    async fn get_session(&self, request: Request<GetSessionRequest>) -> Result<Response<GetSessionResponse>, Status> {
        let id = parse_session_id(&request.into_inner().session_id)?;
        let session = found_session_to_proto(self.store.session_describe(id).await?);
        Ok(Response::new(GetSessionResponse { session: Some(session) }))
    }

    async fn list_sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        let (search, size, scope) = parse_list_sessions(request.into_inner())?;
        // Not in a task of its own: a caller that goes away takes the question along.
        let found = self.store.session_search(&search, self.store.now()).await?;
        let places: Vec<_> = found.sessions.iter().map(|found| found.session.place(search.order)).collect();
        let mut sessions = found.sessions.into_iter().map(found_session_to_proto).collect();
        let next_page_token = cut_page(&mut sessions, size, &scope, |last| place_to_text(places[last]));
        Ok(Response::new(ListSessionsResponse { sessions, next_page_token, total_count: found.total }))
    }

    async fn list_actions(
        &self,
        request: Request<ListActionsRequest>,
    ) -> Result<Response<ListActionsResponse>, Status> {
        let (search, size, scope) = parse_list_actions(request.into_inner())?;
        let found = self.store.action_search(&search, self.store.now()).await?;
        let places: Vec<_> = found.iter().map(|found| (found.session, found.stored.position())).collect();
        let mut actions = found.into_iter().map(found_action_to_proto).collect();
        let place = |last: usize| action_place_to_text(places[last].0, places[last].1);
        let next_page_token = cut_page(&mut actions, size, &scope, place);
        Ok(Response::new(ListActionsResponse { actions, next_page_token }))
    }

    async fn update_session(
        &self,
        request: Request<UpdateSessionRequest>,
    ) -> Result<Response<UpdateSessionResponse>, Status> {
        let changes = parse_update_session(request.into_inner(), &self.limits)?;
        let (id, limit) = (changes.session, self.limits.max_attributes);
        let update = |store: crate::store::Store| async move { store.session_update(id, &changes.update, limit).await };
        self.store.ask(update).await?;
        let session = found_session_to_proto(self.store.session_describe(id).await?);
        Ok(Response::new(UpdateSessionResponse { session: Some(session) }))
    }

    async fn delete_session(
        &self,
        request: Request<DeleteSessionRequest>,
    ) -> Result<Response<DeleteSessionResponse>, Status> {
        let id = parse_session_id(&request.into_inner().session_id)?;
        let services = self.clone();
        // In a task of its own: a caller that goes away cannot cut it in half.
        let erasure = self.tasks.spawn(async move {
            let erased = services.store.session_erase(id, services.store.now()).await;
            services.changes.announce(id);
            erased
        });
        let erased_action_count = erasure.await.unwrap_or(Err(Error::Internal))?;
        Ok(Response::new(DeleteSessionResponse { erased_action_count }))
    }
}

/// Bytes of a page at most, unless a single entry has more: clients take messages of 4 MiB unless told otherwise.
const PAGE_BYTES: usize = 3 << 20;

/// Cuts a list that was read one entry too far to the size of its page, and makes the token for what follows. `place` says
/// where the entry with this index is.
pub(super) fn cut_page<T: Message>(
    entries: &mut Vec<T>,
    size: u64,
    scope: &Scope,
    place: impl Fn(usize) -> String,
) -> String {
    let mut bytes = 0;
    let fitting = entries.iter().take_while(|entry| {
        bytes += entry.encoded_len();
        bytes <= PAGE_BYTES
    });
    let size = fitting.count().max(1).min(usize::try_from(size).unwrap_or(usize::MAX));
    if entries.len() <= size {
        return String::new();
    }
    entries.truncate(size);
    PageToken::seal(&place(size - 1), scope)
}
