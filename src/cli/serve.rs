//! `reel serve` and `reel migrate`.

use tokio::net::TcpListener;

use super::{Failure, open_store, signals::Signals};
use crate::{
    config::{DatabaseArgs, ServeArgs},
    server,
};

/// Serves until SIGTERM or SIGINT, then drains. A second signal ends it at once.
pub(super) async fn serve(args: ServeArgs) -> Result<(), Failure> {
    let url = args.database.database_url.check()?;
    let archive = args.service.retention.open_archive()?;
    let store = open_store(&args.database, archive).await?;
    let listener =
        TcpListener::bind(args.listen).await.map_err(|error| format!("cannot listen on {}: {error}", args.listen))?;
    tracing::info!(address = %listener.local_addr()?, database = %url, "listening");
    let mut signals = Signals::new()?;
    let (shut_down, shutdown) = tokio::sync::oneshot::channel::<()>();
    let shutdown = async {
        let _ = shutdown.await;
    };
    tokio::select! {
        served = server::run(listener, store, &args.service, shutdown) => Ok(served?),
        () = async {
            signals.next().await;
            let _ = shut_down.send(());
            signals.next().await;
        } => Err("ended at once by a second signal".into()),
    }
}

/// Brings the schema up to date.
pub(super) async fn migrate(args: DatabaseArgs) -> Result<(), Failure> {
    let url = args.database_url.check()?;
    let store = open_store(&args, None).await?;
    store.prepare().await?;
    store.close().await;
    println!("{url} is up to date");
    Ok(())
}
