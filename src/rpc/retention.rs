//! `reel.v1.RetentionService`.

use tonic::{Request, Response, Status};

use super::Services;
use crate::{
    convert::{retention_report_to_proto, storage_stats_to_proto},
    error::{Error, Result},
    proto::{
        ApplyRetentionRequest, ApplyRetentionResponse, GetStorageStatsRequest, GetStorageStatsResponse,
        PreviewRetentionRequest, PreviewRetentionResponse, retention_service_server::RetentionService,
    },
};

#[tonic::async_trait]
impl RetentionService for Services {
    async fn preview_retention(
        &self,
        _: Request<PreviewRetentionRequest>,
    ) -> Result<Response<PreviewRetentionResponse>, Status> {
        let policy = self.retention;
        let preview =
            move |store: crate::store::Store| async move { store.retention_preview(&policy, store.now()).await };
        let report = self.store.ask(preview).await?;
        Ok(Response::new(PreviewRetentionResponse { report: Some(retention_report_to_proto(&report)) }))
    }

    async fn apply_retention(
        &self,
        _: Request<ApplyRetentionRequest>,
    ) -> Result<Response<ApplyRetentionResponse>, Status> {
        let services = self.clone();
        // In a task of its own: a caller that goes away cannot cut it in half.
        let applying = self.tasks.spawn(async move {
            let store = &services.store;
            store.unless_away(store.retention_keep_up(&services.retention, store.now())).await
        });
        let report = applying.await.unwrap_or(Err(Error::Internal))?;
        Ok(Response::new(ApplyRetentionResponse { report: Some(retention_report_to_proto(&report)) }))
    }

    async fn get_storage_stats(
        &self,
        _: Request<GetStorageStatsRequest>,
    ) -> Result<Response<GetStorageStatsResponse>, Status> {
        let stats = self.store.ask(|store| async move { store.storage_stats(store.now()).await }).await?;
        Ok(Response::new(storage_stats_to_proto(&stats, &self.retention)))
    }
}
