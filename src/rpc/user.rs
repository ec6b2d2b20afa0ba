//! `reel.v1.UserService`.

use tonic::{Request, Response, Status};

use super::{Services, session::cut_page};
use crate::{
    convert::{
        PageToken, Scope, erasure_to_proto, page_size, parse_session_id, parse_user, parse_user_email, parse_user_id,
        user_to_proto,
    },
    error::{Error, Result},
    proto::{
        DeleteUserRequest, DeleteUserResponse, GetErasureRequest, GetErasureResponse, GetUserRequest, GetUserResponse,
        ListUsersRequest, ListUsersResponse, UpsertUserRequest, UpsertUserResponse, user_service_server::UserService,
    },
};

#[tonic::async_trait]
impl UserService for Services {
    async fn upsert_user(&self, request: Request<UpsertUserRequest>) -> Result<Response<UpsertUserResponse>, Status> {
        let user = request.into_inner().user.ok_or_else(|| Error::invalid("user", "must be set"))?;
        let user = parse_user("user", user, &self.limits, self.store.now())?;
        let limit = self.limits.max_attributes;
        let user = self.store.ask(|store| async move { store.user_upsert(user, limit).await }).await?;
        Ok(Response::new(UpsertUserResponse { user: Some(user_to_proto(user)) }))
    }

    async fn get_user(&self, request: Request<GetUserRequest>) -> Result<Response<GetUserResponse>, Status> {
        let id = parse_user_id("user_id", request.into_inner().user_id)?;
        let user = user_to_proto(self.store.ask(|store| async move { store.user_get(&id).await }).await?);
        Ok(Response::new(GetUserResponse { user: Some(user) }))
    }

    async fn list_users(&self, request: Request<ListUsersRequest>) -> Result<Response<ListUsersResponse>, Status> {
        let request = request.into_inner();
        let scope = Scope::of_users(&request);
        let email = parse_user_email("email", &request.email)?;
        let email = (!email.is_empty()).then_some(email);
        let size = page_size(request.page_size)?;
        let after = PageToken::parse(&request.page_token, &scope, |id| parse_user_id("page_token", id).ok())?;

        let listed = |store: crate::store::Store| async move {
            store.user_list(email.as_deref(), after.as_deref(), size + 1).await
        };
        let users = self.store.ask(listed).await?;
        let ids: Vec<_> = users.iter().map(|user| user.id.clone()).collect();
        let mut users = users.into_iter().map(user_to_proto).collect();
        let next_page_token = cut_page(&mut users, size, &scope, |last| ids[last].clone());
        Ok(Response::new(ListUsersResponse { users, next_page_token }))
    }

    async fn get_erasure(&self, request: Request<GetErasureRequest>) -> Result<Response<GetErasureResponse>, Status> {
        let request = request.into_inner();
        let erasure = if request.session_id.is_empty() {
            let id = parse_user_id("user_id", request.user_id)?;
            self.store.ask(|store| async move { store.erasure_get(&id).await }).await?
        } else if request.user_id.is_empty() {
            let id = parse_session_id(&request.session_id)?;
            self.store.ask(|store| async move { store.erasure_get_of_session(id).await }).await?
        } else {
            return Err(Error::invalid("session_id", "must not be set with user_id").into());
        };
        Ok(Response::new(erasure_to_proto(&erasure)))
    }

    async fn delete_user(&self, request: Request<DeleteUserRequest>) -> Result<Response<DeleteUserResponse>, Status> {
        let id = parse_user_id("user_id", request.into_inner().user_id)?;
        let services = self.clone();
        // In a task of its own: a caller that goes away does not leave it half done.
        let erasure = self.tasks.spawn(async move {
            services.store.user_erase(&id, services.store.now(), |session| services.changes.announce(session)).await
        });
        let erased = erasure.await.unwrap_or(Err(Error::Internal))?;
        Ok(Response::new(DeleteUserResponse {
            erased_session_count: erased.sessions,
            erased_action_count: erased.actions,
        }))
    }
}
