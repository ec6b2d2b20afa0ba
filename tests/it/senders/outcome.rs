//! What has to be true of the database after senders have sent to it, whatever happened meanwhile.

use std::{fmt, net::SocketAddr, time::Duration};

use reel::proto::{GetSessionRequest, session_service_client::SessionServiceClient};
use tonic::{Code, Status, transport::Channel};

use super::{Acknowledged, Place, Script, Senders, TRACKS, Trouble, check_content};
use crate::harness::{
    Reel, TestDatabase, check_same_as_undisturbed, check_tracks_agree_with_actions, connect, play, play_through,
};

/// What was sent, and what of it was acknowledged: the sessions that were begun, by sender.
#[derive(Clone, Debug)]
pub struct Sent {
    pub script: Script,
    pub sessions: Vec<Vec<Acknowledged>>,
}

impl Sent {
    /// Checks what is stored, sends everything again, and checks that the database then holds what one has to which the same
    /// was sent without trouble. `trouble` says what sending it again may still meet.
    pub async fn check(
        &self,
        server: SocketAddr,
        trouble: Trouble,
        database: &TestDatabase,
        undisturbed: &TestDatabase,
    ) {
        let channel = connect(server).await;
        self.check_stored(&channel, trouble, database).await;
        Senders::send_again(server, trouble, self).await;
        self.check_complete(&channel, trouble, database).await;
        let clean = Reel::start_on(undisturbed, &[]).await;
        Senders::send_again(clean.address, Trouble::None, self).await;
        check_same_as_undisturbed(database, undisturbed).await;
        eprintln!("{self}");
    }

    /// Checks that what is acknowledged is stored, that what is stored was sent, byte for byte, and that the tracks agree
    /// with it.
    pub async fn check_stored(&self, server: &Channel, trouble: Trouble, database: &TestDatabase) {
        check_tracks_agree_with_actions(database).await;
        for (place, acknowledged) in self.places() {
            let session = place.session();
            let request = GetSessionRequest { session_id: session.clone() };
            let get = async || SessionServiceClient::new(server.clone()).get_session(request.clone()).await;
            let got = match answered(trouble, get).await {
                Ok(response) => response.into_inner().session.unwrap(),
                // The answer to its very first message is missing.
                Err(status) if status.code() == Code::NotFound => {
                    assert!(
                        acknowledged.cursors == [0; _] && !acknowledged.ended,
                        "{place:?} is gone: {acknowledged:?}"
                    );
                    continue;
                }
                Err(status) => panic!("{place:?}: {status:?}"),
            };
            assert!(got.end_time.is_some() || !acknowledged.ended, "{place:?} is live again");
            let played = answered(trouble, async || play_through(server.clone(), play(&session)).await).await.unwrap();
            let stored = check_content(self.script, place, &played.actions);
            for (track, source) in TRACKS.iter().enumerate() {
                let bounds = acknowledged.cursors[track]..=self.script.counts(place)[track];
                assert!(bounds.contains(&stored[track]), "{place:?}, {source}: {} stored, {bounds:?}", stored[track]);
            }
        }
    }

    /// Checks that everything is stored, once, and that every session has ended.
    async fn check_complete(&self, server: &Channel, trouble: Trouble, database: &TestDatabase) {
        let mut whole = self.clone();
        for (place, _) in self.places() {
            whole.sessions[place.sender][place.number] =
                Acknowledged { cursors: self.script.counts(place), ended: true };
        }
        whole.check_stored(server, trouble, database).await;
        let count: i64 = self.places().flat_map(|(place, _)| self.script.counts(place)).sum();
        assert_eq!(database.number("SELECT count(*) FROM actions").await, count);
    }

    pub fn places(&self) -> impl Iterator<Item = (Place, Acknowledged)> {
        self.sessions.iter().enumerate().flat_map(|(sender, sessions)| {
            sessions.iter().enumerate().map(move |(number, acknowledged)| (Place { sender, number }, *acknowledged))
        })
    }
}

/// Asks again as long as the trouble goes on.
async fn answered<T>(trouble: Trouble, ask: impl AsyncFn() -> Result<T, Status>) -> Result<T, Status> {
    loop {
        match ask().await {
            Err(status) if status.code() == Code::Unavailable => trouble.check(&status),
            answer => return answer,
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let acknowledged: i64 = self.places().flat_map(|(_, acknowledged)| acknowledged.cursors).sum();
        write!(f, "{} sessions, {acknowledged} actions acknowledged", self.places().count())
    }
}
