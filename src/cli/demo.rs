//! `reel demo`: starts the service, sends it a real recording over gRPC, plays that back in the terminal, and stays up for
//! whoever wants to try more.

mod screen;
mod suggestions;

use std::{
    collections::HashMap,
    io::{self, ErrorKind, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use clap::{Args, Parser};
use indicatif::ProgressBar;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::oneshot, time::sleep};
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use self::screen::Screen;
use super::{
    Failure,
    client::Service,
    import::{Imported, Sending, recording::Recording, send, tally::counted},
    play::playback::Playback,
    signals::Signals,
};
use crate::{
    config::{ClientArgs, GivenUrl, ServiceArgs},
    model::SessionId,
    proto::{Action, PlaySessionRequest},
    server,
    store::Store,
};

/// The recording; `assets/demo/README.md` says how it was made.
const RECORDING: &[u8] = include_bytes!("../../assets/demo/session.jsonl.gz");

/// Where the service listens unless told otherwise: where `reel serve` does.
const DEFAULT_ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 50_051);

/// How fast the recording is played.
const SPEED: f64 = 20.0;

/// The longest pause that is played.
const MAX_IDLE: Duration = Duration::from_secs(2);

/// How long the service may take to be ready, and to answer after that.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// Where and how to run the demo.
#[derive(Args, Clone, Debug)]
pub(super) struct DemoArgs {
    /// End after the playback; succeeds only if everything was stored and played back byte for byte
    #[arg(long)]
    once: bool,
    /// Address and port to listen on [default: 127.0.0.1:50051, or a free port if that is taken]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where the demo's session is kept [default: a temporary SQLite file, removed at the end]
    #[arg(long, value_name = "URL")]
    database_url: Option<GivenUrl>,
}

/// Runs the demo, until it is over or a signal ends it.
pub(super) async fn demo(args: DemoArgs) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let listener = listen(args.listen).await?;
    let address = reachable(listener.local_addr()?);
    // Removed when this function ends: after the service.
    let folder = TempDir::with_prefix("reel-demo-")?;
    let (url, place) = match args.database_url {
        Some(given) => {
            let url = given.check()?;
            (url.clone(), url.to_string())
        }
        None => (format!("sqlite://{}/reel.db", folder.path().display()).parse()?, "a temporary file".to_owned()),
    };
    println!("Reel listens on {address} and keeps its sessions in {place}.");

    let store = Store::open(&url, 8).await?;
    let settings = default_settings()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let mut serving = tokio::spawn(async move {
        let shutdown = async {
            let _ = stopped.await;
        };
        server::run(listener, store, &settings, shutdown).await
    });
    let shown = tokio::select! {
        served = &mut serving => return Ok(served??),
        () = signals.next() => if args.once { Err("ended by a signal before the playback was over".into()) } else { Ok(()) },
        shown = async {
            show(address, args.once).await?;
            if args.once { Ok(()) } else { std::future::pending().await }
        } => shown,
    };
    let _ = stop.send(());
    tokio::select! {
        served = serving => served??,
        () = signals.next() => return Err("ended at once by a second signal".into()),
    }
    shown
}

/// Listens where it was asked for, or where the service usually does, or wherever there is room.
async fn listen(wanted: Option<SocketAddr>) -> Result<TcpListener, Failure> {
    let address = wanted.unwrap_or(DEFAULT_ADDRESS);
    match TcpListener::bind(address).await {
        Err(error) if wanted.is_none() && error.kind() == ErrorKind::AddrInUse => {
            println!("{address} is taken, so another port is used.");
            Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?)
        }
        listener => listener.map_err(|error| format!("cannot listen on {address}: {error}").into()),
    }
}

/// Where a service that listens on this address is reached from here.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// The service's settings as `reel serve` has them without arguments.
fn default_settings() -> Result<ServiceArgs, Failure> {
    #[derive(Parser)]
    struct Defaults {
        #[command(flatten)]
        service: ServiceArgs,
    }
    Ok(Defaults::try_parse_from(["reel"])?.service)
}

/// Sends the recording, plays it back, and says what else to try. Fails unless all of it came back as it was sent.
async fn show(address: SocketAddr, once: bool) -> Result<(), Failure> {
    let client = ClientArgs { server: format!("http://{address}"), retry_for: READY_WITHIN };
    let service = Service::new(&client)?;
    until_serving(service.channel.clone()).await?;
    let sending = Sending { max_batch_actions: 500, end_sessions: true };
    let Imported { tally, sessions, failure, .. } =
        send(&service, Recording::embedded("demo", RECORDING), sending, &ProgressBar::hidden()).await;
    if let Some(failure) = failure {
        return Err(format!("the recording could not be stored: {failure}").into());
    }
    let [session] = &sessions[..] else { return Err("the recording is not of one session".into()) };
    let mut output = io::stdout();
    writeln!(
        output,
        "Sent it a visit to a small blog, recorded in a browser (clicks, pages and rrweb) and on its server."
    )?;
    writeln!(output, "{tally}. Now played back at {SPEED} times its speed:\n")?;
    play(&service, session.id, &mut output).await?;
    if tally.rejected_count > 0 {
        return Err(format!("{} rejected", counted(tally.rejected_count, "action")).into());
    }
    if !once {
        suggestions::write(&mut output, address, session.id)?;
    }
    Ok(())
}

async fn until_serving(channel: Channel) -> Result<(), Failure> {
    let mut health = HealthClient::new(channel);
    let begun = Instant::now();
    while begun.elapsed() < READY_WITHIN {
        if let Ok(response) = health.check(HealthCheckRequest::default()).await
            && response.get_ref().status() == ServingStatus::Serving
        {
            return Ok(());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Err("the service is not ready; is its database there?".into())
}

/// Plays the session to the screen. Fails unless it is the recording.
async fn play(service: &Service, session: SessionId, output: &mut impl Write) -> Result<(), Failure> {
    let mut missing = recorded_actions()?;
    let recorded_count = missing.len();
    let request = PlaySessionRequest {
        session_id: session.to_string(),
        speed: SPEED,
        max_idle: Some(MAX_IDLE.try_into()?),
        ..PlaySessionRequest::default()
    };
    let begun = Instant::now();
    let mut playback = Playback::new(service, request);
    let mut screen = Screen::new(session.started_at());
    let mut played_count = 0;
    let mut strange_count = 0;
    while let Some(actions) = playback.next_page(|trouble| eprintln!("reel: {trouble}")).await? {
        for action in actions {
            screen.show(&action, output)?;
            played_count += 1;
            if missing.remove(&(action.source.clone(), action.seq)).is_none_or(|sent| sent != action) {
                strange_count += 1;
            }
        }
    }
    screen.finish(output)?;
    let (seconds, missing_count) = (begun.elapsed().as_secs_f64(), missing.len());
    let played = format!("Played {played_count} of {recorded_count} actions in {seconds:.1} s");
    if missing_count + strange_count > 0 {
        return Err(format!("{played}: {missing_count} missing, {strange_count} not as they were sent").into());
    }
    writeln!(output, "\n{played}, each of them byte for byte as it was sent.")?;
    writeln!(output, "The session's id is {session}.")?;
    Ok(())
}

/// What playback must give, by source and seq.
fn recorded_actions() -> Result<HashMap<(String, i64), Action>, Failure> {
    let mut actions = HashMap::new();
    Recording::embedded("demo", RECORDING).read(&mut |entry, place| {
        let seq = entry.seq.ok_or_else(|| format!("{place}: no seq"))?;
        let source = entry.source.into_owned();
        let (_, action) = entry.action.ok_or_else(|| format!("{place}: no action"))?;
        actions.insert((source.clone(), seq), Action { seq, source, ..action });
        Ok(())
    })?;
    Ok(actions)
}
