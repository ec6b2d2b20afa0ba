//! Databases that are made for one test and removed after it.

use std::{env, time::Duration};

use sea_orm::ConnectionTrait as _;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// Which kind of database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Sqlite,
    Postgres,
}

/// An empty database, removed when it is dropped.
pub struct TestDatabase {
    pub url: String,
    /// The folder of the SQLite file.
    _folder: Option<TempDir>,
    /// The name of the PostgreSQL database.
    name: Option<String>,
}

/// The PostgreSQL server that `tests/run` has started.
pub fn postgres_server() -> String {
    env::var("REEL_TEST_POSTGRES").expect("REEL_TEST_POSTGRES is not set: run the tests by tests/run")
}

impl TestDatabase {
    pub async fn new(backend: Backend) -> Self {
        if backend == Backend::Sqlite {
            let folder = TempDir::new().unwrap();
            let url = format!("sqlite://{}/reel.db", folder.path().display());
            return Self { url, _folder: Some(folder), name: None };
        }
        let server = postgres_server();
        let name = format!("reel_{}", uuid::Uuid::now_v7().simple());
        administer(&server, &format!("CREATE DATABASE {name}")).await;
        let url = format!("{}/{name}", server.rsplit_once('/').unwrap().0);
        Self { url, _folder: None, name: Some(name) }
    }

    /// A database that somebody else removes.
    pub fn at(url: String) -> Self {
        Self { url, _folder: None, name: None }
    }

    pub fn backend(&self) -> Backend {
        if self.url.starts_with("sqlite:") { Backend::Sqlite } else { Backend::Postgres }
    }

    /// A connection past the service, for looking and meddling.
    pub async fn connect(&self) -> sea_orm::DatabaseConnection {
        connect(&self.url).await
    }

    /// Runs a statement past the service.
    pub async fn execute(&self, sql: &str) {
        self.connect().await.execute_unprepared(sql).await.unwrap();
    }

    /// The one number that a query gives.
    pub async fn number(&self, sql: &str) -> i64 {
        let connection = self.connect().await;
        let statement = sea_orm::Statement::from_string(connection.get_database_backend(), sql);
        let row = connection.query_one_raw(statement).await.unwrap().unwrap();
        row.try_get_by_index(0).unwrap()
    }

    /// The one text of each row that a query gives.
    pub async fn texts(&self, sql: &str) -> Vec<String> {
        let connection = self.connect().await;
        let statement = sea_orm::Statement::from_string(connection.get_database_backend(), sql);
        let rows = connection.query_all_raw(statement).await.unwrap();
        rows.into_iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
    }
}

/// The statement that makes a facet, as the service would.
pub fn insert_facet(backend: Backend, id: i64, kind: &str, target: &str) -> String {
    let digest = Sha256::digest(target).iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    let digest = match backend {
        Backend::Sqlite => format!("x'{digest}'"),
        Backend::Postgres => format!("'\\x{digest}'"),
    };
    format!("INSERT INTO facets (id, type, target, target_sha256) VALUES ({id}, '{kind}', '{target}', {digest})")
}

/// A connection for a moment. Its pool has no task of its own: that may go on for ever, and then the process does not end
/// (launchbadge/sqlx#3645).
pub async fn connect(url: &str) -> sea_orm::DatabaseConnection {
    sea_orm::Database::connect(connect_options(url)).await.unwrap()
}

fn connect_options(url: &str) -> sea_orm::ConnectOptions {
    let mut options = sea_orm::ConnectOptions::new(url);
    options.max_lifetime(None).idle_timeout(None);
    options
}

/// A connection, if there is one to be had now: by default one is tried for half a minute, with longer and longer pauses.
pub async fn try_connect(url: &str) -> Option<sea_orm::DatabaseConnection> {
    let mut options = connect_options(url);
    options.max_connections(1).acquire_timeout(Duration::from_millis(500));
    sea_orm::Database::connect(options).await.ok()
}

pub async fn administer(server: &str, sql: &str) {
    let connection = connect(server).await;
    connection.execute_unprepared(sql).await.unwrap();
    connection.close().await.unwrap();
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let Some(name) = self.name.take() else { return };
        let drop_it = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(administer(&postgres_server(), &format!("DROP DATABASE {name} WITH (FORCE)")));
        };
        let _ = std::thread::spawn(drop_it).join();
    }
}
