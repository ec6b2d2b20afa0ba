//! `reel.v1.SessionService`.

use chrono::Utc;
use prost::Message;
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
        let session = session_to_proto(self.store.ask(|store| async move { store.session_get(id).await }).await?);
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
        let listed = self.store.ask(|store| async move { store.session_list(&filter, after, size + 1).await });
        let sessions = listed.await?;
        let mut sessions = sessions.into_iter().map(session_to_proto).collect();
        let next_page_token = cut_page(&mut sessions, size, &scope, |session| session.id.clone());
        Ok(Response::new(ListSessionsResponse { sessions, next_page_token }))
    }

    async fn update_session(
        &self,
        request: Request<UpdateSessionRequest>,
    ) -> Result<Response<UpdateSessionResponse>, Status> {
        let changes = parse_update_session(request.into_inner(), &self.limits)?;
        let (id, limit) = (changes.session, self.limits.max_attributes);
        let update = |store: crate::store::Store| async move {
            store.session_update(id, &changes.removed, &changes.set, limit).await
        };
        self.store.ask(update).await?;
        let session = session_to_proto(self.store.ask(|store| async move { store.session_get(id).await }).await?);
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
            let erased = services.store.session_erase(id, Utc::now()).await;
            services.changes.announce(id);
            erased
        });
        let erased_action_count = erasure.await.unwrap_or(Err(Error::Internal))?;
        Ok(Response::new(DeleteSessionResponse { erased_action_count }))
    }
}

/// Bytes of a page at most, unless a single entry has more: clients take messages of 4 MiB unless told otherwise.
const PAGE_BYTES: usize = 3 << 20;

/// Cuts a list that was read one entry too far to the size of its page, and makes the token for what follows.
pub(super) fn cut_page<T: Message>(
    entries: &mut Vec<T>,
    size: u64,
    scope: &Scope,
    place: impl Fn(&T) -> String,
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
    entries.last().map(|last| PageToken::seal(&place(last), scope)).unwrap_or_default()
}
