//! `reel.v1.AnalyticsService`. Nothing here runs in a task of its own: a caller that goes away takes its question along.

use tonic::{Request, Response, Status};

use super::Services;
use crate::{
    convert::{
        action_counts_to_proto, error_frequency_to_proto, funnel_to_proto, parse_count_actions, parse_error_frequency,
        parse_funnel, parse_list_transitions, parse_session_durations, session_durations_to_proto,
        transitions_to_proto,
    },
    error::Result,
    proto::{
        CountActionsRequest, CountActionsResponse, GetErrorFrequencyRequest, GetErrorFrequencyResponse,
        GetFunnelRequest, GetFunnelResponse, GetSessionDurationsRequest, GetSessionDurationsResponse,
        ListTransitionsRequest, ListTransitionsResponse, analytics_service_server::AnalyticsService,
    },
};

#[tonic::async_trait]
impl AnalyticsService for Services {
    async fn count_actions(
        &self,
        request: Request<CountActionsRequest>,
    ) -> Result<Response<CountActionsResponse>, Status> {
        let counting = parse_count_actions(request.into_inner())?;
        let counts = self.store.action_counts(&counting, self.store.now()).await?;
        Ok(Response::new(action_counts_to_proto(counts, &counting.group_by)))
    }

    async fn get_session_durations(
        &self,
        request: Request<GetSessionDurationsRequest>,
    ) -> Result<Response<GetSessionDurationsResponse>, Status> {
        let (filter, bounds) = parse_session_durations(request.into_inner())?;
        let days = self.store.session_durations(&filter, self.store.now()).await?;
        Ok(Response::new(session_durations_to_proto(days, &bounds)))
    }

    async fn get_error_frequency(
        &self,
        request: Request<GetErrorFrequencyRequest>,
    ) -> Result<Response<GetErrorFrequencyResponse>, Status> {
        let (filter, target, interval) = parse_error_frequency(request.into_inner())?;
        let frequency = self.store.error_frequency(&filter, target.as_deref(), interval, self.store.now());
        let (total, intervals) = frequency.await?;
        let intervals = intervals.into_iter().map(error_frequency_to_proto).collect();
        Ok(Response::new(GetErrorFrequencyResponse { total: Some(error_frequency_to_proto(total)), intervals }))
    }

    async fn list_transitions(
        &self,
        request: Request<ListTransitionsRequest>,
    ) -> Result<Response<ListTransitionsResponse>, Status> {
        let counting = parse_list_transitions(request.into_inner())?;
        let transitions = self.store.transitions(&counting, self.store.now()).await?;
        Ok(Response::new(transitions_to_proto(transitions)))
    }

    async fn get_funnel(&self, request: Request<GetFunnelRequest>) -> Result<Response<GetFunnelResponse>, Status> {
        let counting = parse_funnel(request.into_inner())?;
        let steps = self.store.funnel(&counting, self.store.now()).await?;
        Ok(Response::new(funnel_to_proto(steps)))
    }
}
