//! One run of a plan: the database, the servers that the clients switch between, and what all clients share.

use std::sync::{Arc, Mutex, MutexGuard};

use reel::proto::SessionEnd;
use tokio::{sync::RwLock, task::JoinHandle};
use tonic::transport::Channel;

use super::{
    client,
    model::Model,
    plan::{CLIENTS, Plan},
    verify::{self, Seen},
};
use crate::harness::{Backend, Reel, TestDatabase, connect, end, reason};

pub struct Run {
    database: TestDatabase,
    /// A server that is being restarted is locked.
    servers: Vec<RwLock<Option<Reel>>>,
    model: Mutex<Model>,
    pub followers: Mutex<Vec<JoinHandle<Seen>>>,
}

impl Run {
    /// Carries out a plan and checks what came of it. Says in a few words what that was.
    pub async fn carry_out(plan: Plan, backend: Backend) -> String {
        let database = TestDatabase::new(backend).await;
        let mut servers = Vec::new();
        for _ in 0..plan.servers {
            servers.push(RwLock::new(Some(Reel::start_on(&database, &[]).await)));
        }
        let model = Mutex::new(Model::new(plan.seed));
        let run = Arc::new(Self { database, servers, model, followers: Mutex::default() });
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let own = plan.operations.iter().filter(|operation| operation.client == number).cloned().collect();
                tokio::spawn(client::carry_out(Arc::clone(&run), own))
            })
            .collect();
        for client in clients {
            client.await.unwrap();
        }
        run.end_followed().await;
        let followers = std::mem::take(&mut *run.followers.lock().unwrap());
        let mut seen = Vec::new();
        for follower in followers {
            seen.push(follower.await.unwrap());
        }
        // What was cut may still be on its way into the database; a server that has drained has nothing on the way.
        let Self { database, servers, model, .. } = Arc::into_inner(run).expect("all clients are gone");
        for server in servers {
            server.into_inner().unwrap().stop().await;
        }
        let reel = Reel::start_on(&database, &[]).await;
        let model = model.into_inner().unwrap();
        let actions = verify::database(&reel, &database, &model, &seen).await;
        reel.stop().await;
        format!("{actions} actions, {} followers, refusals {:?}", seen.len(), model.refusals)
    }

    pub fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap()
    }

    pub async fn channel(&self, server: usize) -> Channel {
        self.servers[server].read().await.as_ref().unwrap().channel.clone()
    }

    /// A connection of the client's own.
    pub async fn connect(&self, server: usize) -> Channel {
        connect(self.servers[server].read().await.as_ref().unwrap().address).await
    }

    /// Ends a server in good order, while clients are using it, and starts another in its place.
    pub async fn restart(&self, server: usize) {
        let mut place = self.servers[server].write().await;
        self.model().restarted = true;
        place.take().unwrap().stop().await;
        *place = Some(Reel::start_on(&self.database, &[]).await);
    }

    /// Ends the sessions that are followed, through every server, so that each wakes its followers.
    async fn end_followed(&self) {
        let followed: Vec<_> = {
            let mut model = self.model();
            let followed = model.sessions.iter_mut().filter(|session| session.is_followed);
            followed
                .filter_map(|session| {
                    session.end_begun = true;
                    let acknowledged = session.tracks.iter().map(|track| track.acknowledged).collect();
                    session.before_end.get_or_insert(acknowledged);
                    session.id.clone()
                })
                .collect()
        };
        for id in followed {
            for server in &self.servers {
                let server = server.read().await;
                if let Err(status) = server.as_ref().unwrap().send(end(&id, SessionEnd::default())).await {
                    assert!(matches!(reason(&status).as_str(), "SESSION_ERASED" | "SESSION_NOT_FOUND"), "{status:?}");
                }
            }
        }
    }
}
