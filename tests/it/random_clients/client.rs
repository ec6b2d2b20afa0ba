//! One client: carries out its operations one after the other, and holds every answer against the model.

use std::sync::Arc;

use futures_util::StreamExt as _;
use reel::proto::{
    DeleteSessionRequest, DeleteUserRequest, GetIngestCursorRequest, RecordActionsRequest, SessionEnd, SessionReceipt,
    SessionStart, ingest_service_client::IngestServiceClient, session_service_client::SessionServiceClient,
    user_service_client::UserServiceClient,
};
use tonic::{Status, transport::Channel};

use super::{
    model::{Before, Refusal, Sending, sessions_of_same_user, source_name, source_number},
    plan::{Cut, Kind, LastSeqs, Operation, SOURCES, USERS, Upload},
    run::Run,
    verify::{play, spawn_follower},
};
use crate::harness::{batch, end, reason, start, streamed, user};

/// Carries out the operations of one client.
pub async fn carry_out(run: Arc<Run>, operations: Vec<Operation>) {
    for Operation { server, session, kind, .. } in operations {
        match kind {
            Kind::Start => start_session(&run, server, session).await,
            Kind::Upload(upload) => send(&run, server, session, &upload).await,
            Kind::End { last_seqs } => end_session(&run, server, session, last_seqs).await,
            Kind::DeleteSession => delete_session(&run, server, session).await,
            Kind::DeleteUser => delete_user(&run, server, session).await,
            Kind::Play(how) => play(&run, server, session, how).await,
            Kind::Follow => spawn_follower(&run, server, session),
            Kind::Restart => run.restart(server).await,
        }
    }
}

fn start_message(session: usize, id: &str) -> RecordActionsRequest {
    let user = USERS[session].map(|id| user(id, "a@example.com"));
    start(id, SessionStart { user, ..Default::default() })
}

/// Sends one message, and gives its receipt.
async fn send_one(channel: Channel, request: RecordActionsRequest) -> Result<SessionReceipt, Status> {
    let response = IngestServiceClient::new(channel).record_actions(tokio_stream::once(request)).await?;
    Ok(response.into_inner().receipts.remove(0))
}

async fn start_session(run: &Run, server: usize, session: usize) {
    let channel = run.channel(server).await;
    let (id, before) = {
        let mut model = run.model();
        let before = model.before(session);
        let Some(id) = model.begin_start(session) else { return };
        (id, before)
    };
    let result = send_one(channel, start_message(session, &id)).await;
    let mut model = run.model();
    match result {
        Ok(receipt) => {
            assert!(receipt.started && !receipt.ended && receipt.tracks.is_empty());
            model.started(session, &before, &receipt.session_id);
        }
        Err(status) => match model.refused(session, &before, &status) {
            Refusal::NotThere | Refusal::Unknown => model.start_unknown(session),
            other => panic!("a start cannot be answered with {other:?}"),
        },
    }
}

/// Sends batches, and goes on after a break from the cursor that the service tells.
async fn send(run: &Run, server: usize, session: usize, upload: &Upload) {
    let channel = match upload.cut {
        Some(Cut { connection: true, .. }) => run.connect(server).await,
        _ => run.channel(server).await,
    };
    let asked = if upload.ask { ask(run, channel.clone(), session, upload.source).await } else { None };
    let Some(sending) = run.model().begin_upload(session, upload, asked) else { return };
    let mut messages = Vec::new();
    let id = if upload.start_first { "" } else { &sending.id };
    if upload.start_first {
        messages.push(start_message(session, &sending.id));
    }
    for sent in &sending.batches {
        let contents = run.model().contents(session, upload.source, sent);
        let actions = contents.into_iter().map(|content| content.action).collect();
        messages.push(batch(id, source_name(upload.source), sent.first, actions));
    }
    if upload.streaming || upload.cut.is_some() {
        stream(run, channel, session, upload, sending, messages).await;
    } else {
        record(run, channel, session, upload, &sending, messages).await;
    }
}

/// Asks for the cursor of a track.
async fn ask(run: &Run, channel: Channel, session: usize, source: usize) -> Option<i64> {
    let id = run.model().sessions[session].id.clone()?;
    let before = run.model().before(session);
    let request = GetIngestCursorRequest { session_id: id, source: source_name(source).to_owned() };
    let result = IngestServiceClient::new(channel).get_ingest_cursor(request).await;
    let mut model = run.model();
    match result {
        Ok(response) => {
            let cursor = response.into_inner().cursors[0].committed_seq;
            let track = &mut model.sessions[session].tracks[source];
            let low = before.acknowledged[source];
            assert!((low..=track.reach()).contains(&cursor), "cursor {cursor}, {low} are acknowledged");
            track.acknowledged = track.acknowledged.max(cursor);
            Some(cursor)
        }
        Err(status) => {
            model.refused(session, &before, &status);
            None
        }
    }
}

/// By StreamActions, up to the cut if there is one.
async fn stream(
    run: &Run,
    channel: Channel,
    session: usize,
    upload: &Upload,
    sending: Sending,
    messages: Vec<RecordActionsRequest>,
) {
    let receipts_wanted = upload.cut.map_or(messages.len(), |cut| cut.after.min(messages.len()));
    let is_cut = upload.cut.is_some();
    let requests = tokio_stream::iter(messages.into_iter().map(streamed));
    // Without an end of its own, an upload that is cut is still under way when it is.
    let requests = requests.chain(futures_util::stream::pending().take(usize::from(is_cut)));
    let call = IngestServiceClient::new(channel).stream_actions(requests).await;
    let mut outcome =
        Receipts { run, session, upload, low: sending.before.acknowledged[upload.source], sending, next: 0 };
    let mut receipts = match call {
        Ok(response) => response.into_inner(),
        Err(status) => return outcome.fail(&status),
    };
    for _ in 0..receipts_wanted {
        match receipts.message().await {
            Ok(response) => outcome.take(&response.expect("a receipt a message").receipt.unwrap()),
            Err(status) => return outcome.fail(&status),
        }
    }
    if is_cut {
        outcome.lose_rest();
    } else {
        match receipts.message().await {
            Ok(more) => assert!(more.is_none(), "as many receipts as messages"),
            // Everything has its receipt; only the stream was not closed in time.
            Err(status) => {
                let refusal = run.model().refused(session, &outcome.sending.before, &status);
                assert!(matches!(refusal, Refusal::Unknown), "{refusal:?}");
            }
        }
    }
}

/// The receipts of one stream, as they come.
struct Receipts<'a> {
    run: &'a Run,
    session: usize,
    upload: &'a Upload,
    sending: Sending,
    /// What is committed for sure.
    low: i64,
    /// Which message comes next.
    next: usize,
}

impl Receipts<'_> {
    fn take(&mut self, receipt: &SessionReceipt) {
        let mut model = self.run.model();
        let starts = usize::from(self.upload.start_first);
        if self.next < starts {
            assert!(receipt.started && receipt.tracks.is_empty());
            model.started(self.session, &self.sending.before, &receipt.session_id);
        } else {
            let sent = &self.sending.batches[self.next - starts];
            assert!(!self.sending.before.erased, "something was stored in an erased session");
            assert!(model.sessions[self.session].start_begun, "something was stored in a session that nobody started");
            assert_eq!(receipt.tracks.len(), 1);
            assert_eq!(receipt.tracks[0].source, source_name(self.upload.source));
            model.settle(self.session, self.upload.source, sent, self.low, &receipt.tracks[0]);
            self.low = self.low.max(receipt.tracks[0].committed_seq);
        }
        self.next += 1;
    }

    fn fail(&mut self, status: &Status) {
        let starts = usize::from(self.upload.start_first);
        let refusal = self.run.model().refused(self.session, &self.sending.before, status);
        match refusal {
            Refusal::NotThere => {}
            Refusal::Unknown => self.lose_rest(),
            Refusal::Gap { expected, received } => {
                let sent = &self.sending.batches[self.next - starts];
                assert!(sent.first == received && expected < received, "{sent:?} is no gap: {expected}");
                self.run.model().gap(self.session, self.upload.source, self.low, expected);
            }
            Refusal::Incomplete { .. } => panic!("nobody asked for an end"),
        }
        if starts > self.next {
            self.run.model().start_unknown(self.session);
        }
    }

    /// Whether the rest was stored, nobody knows.
    fn lose_rest(&self) {
        let mut model = self.run.model();
        if self.next < usize::from(self.upload.start_first) {
            model.start_unknown(self.session);
        }
        model.sessions[self.session].tracks[self.upload.source].is_uncertain = true;
    }
}

/// By RecordActions: one answer to all of it.
async fn record(
    run: &Run,
    channel: Channel,
    session: usize,
    upload: &Upload,
    sending: &Sending,
    messages: Vec<RecordActionsRequest>,
) {
    let result = IngestServiceClient::new(channel).record_actions(tokio_stream::iter(messages)).await;
    let mut model = run.model();
    let low = sending.before.acknowledged[upload.source];
    match result {
        Ok(response) => {
            let mut receipts = response.into_inner().receipts;
            assert!(receipts.len() == 1 && receipts[0].tracks.len() == 1 && receipts[0].started == upload.start_first);
            if upload.start_first {
                model.started(session, &sending.before, &receipts[0].session_id);
            }
            assert!(!sending.before.erased, "something was stored in an erased session");
            let receipt = receipts.remove(0).tracks.remove(0);
            if let [sent] = sending.batches.as_slice() {
                return model.settle(session, upload.source, sent, low, &receipt);
            }
            let sent: i64 = sending.batches.iter().map(|batch| batch.count).sum();
            assert_eq!(receipt.accepted_count + receipt.duplicate_count + receipt.rejected_count, sent);
            let track = &mut model.sessions[session].tracks[upload.source];
            assert!((low..=track.reach()).contains(&receipt.committed_seq));
            track.add(&receipt);
        }
        Err(status) => {
            match model.refused(session, &sending.before, &status) {
                Refusal::Gap { expected, received } => {
                    let is_sent = sending.batches.iter().any(|batch| batch.first == received);
                    assert!(is_sent && expected < received, "{received} is no gap: {expected}");
                    model.gap(session, upload.source, low, expected);
                }
                Refusal::NotThere | Refusal::Unknown => {}
                Refusal::Incomplete { .. } => panic!("nobody asked for an end"),
            }
            // What came before the fault is committed; its receipt is lost.
            model.sessions[session].tracks[upload.source].is_uncertain = true;
            if upload.start_first {
                model.start_unknown(session);
            }
        }
    }
}

async fn end_session(run: &Run, server: usize, session: usize, last_seqs: LastSeqs) {
    let channel = run.channel(server).await;
    let (id, before, claimed) = {
        let mut model = run.model();
        let before = model.before(session);
        let state = &mut model.sessions[session];
        let Some(id) = state.id.clone() else { return };
        let mut claimed = before.acknowledged.map(Some);
        match last_seqs {
            LastSeqs::Absent => claimed = [None; SOURCES.len() + 1],
            LastSeqs::AsAcknowledged => {}
            LastSeqs::Wrong => claimed[0] = Some(before.acknowledged[0] + 10_000),
        }
        state.end_begun = true;
        state.before_end.get_or_insert_with(|| before.acknowledged.to_vec());
        (id, before, claimed)
    };
    let last_seqs =
        claimed.iter().enumerate().filter_map(|(source, seq)| Some((source_name(source).to_owned(), (*seq)?)));
    let request = end(&id, SessionEnd { last_seqs: last_seqs.collect(), ..Default::default() });
    let result = send_one(channel, request).await;
    let mut model = run.model();
    match result {
        Ok(receipt) => {
            assert!(receipt.ended && !before.erased);
            for (track, claimed) in model.sessions[session].tracks.iter().zip(claimed) {
                assert!(claimed.is_none_or(|claimed| claimed <= track.reach()), "ended without its last actions");
            }
            model.sessions[session].ended = true;
        }
        Err(status) => match model.refused(session, &before, &status) {
            Refusal::NotThere | Refusal::Unknown => {}
            Refusal::Incomplete { source, committed, claimed: told } => {
                let source = source_number(&source);
                let track = &model.sessions[session].tracks[source];
                assert_eq!(claimed[source], Some(told));
                assert!((before.acknowledged[source]..=track.reach()).contains(&committed) && committed != told);
            }
            gap @ Refusal::Gap { .. } => panic!("{gap:?}"),
        },
    }
}

async fn delete_session(run: &Run, server: usize, session: usize) {
    let channel = run.channel(server).await;
    let (id, before) = {
        let mut model = run.model();
        let before = model.before(session);
        let Some(id) = model.sessions[session].id.clone() else { return };
        model.sessions[session].erasing = true;
        (id, before)
    };
    let result = SessionServiceClient::new(channel).delete_session(DeleteSessionRequest { session_id: id }).await;
    let mut model = run.model();
    match result {
        Ok(response) => {
            assert!(!before.erased, "erased twice");
            let state = &mut model.sessions[session];
            state.erased = true;
            let reach = state.tracks.iter().map(super::model::Track::reach).sum::<i64>();
            let count = response.into_inner().erased_action_count;
            assert!((before.acknowledged.iter().sum::<i64>()..=reach).contains(&count), "{count} erased");
        }
        Err(status) => {
            model.refused(session, &before, &status);
        }
    }
}

async fn delete_user(run: &Run, server: usize, session: usize) {
    let Some(id) = USERS[session] else { return };
    let channel = run.channel(server).await;
    let before: Vec<(usize, Before, bool)> = {
        let mut model = run.model();
        let of_user = sessions_of_same_user(session);
        of_user
            .map(|number| {
                let before = model.before(number);
                (number, before, std::mem::replace(&mut model.sessions[number].erasing, true))
            })
            .collect()
    };
    let result = UserServiceClient::new(channel).delete_user(DeleteUserRequest { user_id: id.to_owned() }).await;
    let mut model = run.model();
    match result {
        Ok(_) => {
            for (number, before, was_erasing) in before {
                let state = &mut model.sessions[number];
                state.erased |= before.started;
                // What nobody has begun to start by now is not touched.
                state.erasing = was_erasing || state.start_begun;
            }
        }
        Err(status) if reason_of(&status) == "USER_NOT_FOUND" => {
            let is_known = before.iter().any(|(_, before, was_erasing)| before.started && !was_erasing);
            assert!(!is_known, "a user with a session is not there");
        }
        Err(status) => {
            model.refused(session, &before[0].1, &status);
        }
    }
}

fn reason_of(status: &Status) -> String {
    if status.details().is_empty() { String::new() } else { reason(status) }
}
