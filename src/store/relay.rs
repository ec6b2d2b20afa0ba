//! Carries the bytes of database connections over TCP sockets with TCP_NODELAY, which the driver (sqlx 0.9) neither sets nor
//! lets others set.
//!
//! COPY ends with a message of five bytes after the data. Without TCP_NODELAY, the kernel keeps it back until the data is
//! acknowledged, and the other side may take 40 ms for that: every transaction of the write would. So the driver connects to
//! a Unix socket in a folder that only this user can enter, and each connection is carried on from there, TLS and all.

use std::{io, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use tempfile::TempDir;
use tokio::{
    io::copy_bidirectional_with_sizes,
    net::{TcpStream, UnixListener, UnixStream},
    task::JoinSet,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

/// Bytes that are carried at once, in each direction: COPY sends much, and gets little.
const BYTES_UP: usize = 128 << 10;
const BYTES_DOWN: usize = 8 << 10;

/// How long the server may take to accept a connection. Whoever asked for it waits no longer than that.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Carries connections until it is dropped.
#[derive(Debug)]
pub(super) struct Relay {
    folder: TempDir,
    _carrying: AbortOnDropHandle<()>,
}

impl Relay {
    /// Begins to carry connections to this server. `port` is also part of the Unix socket's name, as PostgreSQL's own.
    pub(super) fn start(host: String, port: u16) -> io::Result<Self> {
        let private = std::fs::Permissions::from_mode(0o700);
        let folder = tempfile::Builder::new().prefix("reel-").permissions(private).tempdir()?;
        let listener = UnixListener::bind(folder.path().join(format!(".s.PGSQL.{port}")))?;
        let carrying = AbortOnDropHandle::new(tokio::spawn(carry_all(listener, host, port)));
        Ok(Self { folder, _carrying: carrying })
    }

    /// The folder of the Unix socket.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

async fn carry_all(listener: UnixListener, host: String, port: u16) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((driver, _)) => {
                    let host = host.clone();
                    connections.spawn(async move {
                        if let Err(error) = carry(driver, &host, port).await {
                            tracing::debug!(%error, "a connection to the database broke");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection of our own");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries one connection to its end. Where the server cannot be reached, the driver's connection ends.
async fn carry(mut driver: UnixStream, host: &str, port: u16) -> io::Result<()> {
    let mut server = timeout(CONNECT_TIMEOUT, TcpStream::connect((host, port))).await??;
    server.set_nodelay(true)?;
    copy_bidirectional_with_sizes(&mut driver, &mut server, BYTES_UP, BYTES_DOWN).await?;
    Ok(())
}
