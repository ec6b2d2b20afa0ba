//! How long a receipt takes when the service is not driven to its limit.
//!
//! Open loop: batches come at random times (Poisson), whether or not those before them have their receipts. A receipt's latency
//! counts from when its batch was due, so that a service that holds up its senders cannot hide it; only the clock of timers,
//! which ticks once a millisecond, is forgiven.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use reel::{
    model::SessionId,
    proto::{StreamActionsRequest, ingest_service_client::IngestServiceClient},
};
use tokio::{
    sync::mpsc::unbounded_channel,
    time::{Instant, sleep_until},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;

use crate::{
    ingest::lab::{Lab, workload},
    support::{
        Result,
        arguments::Arguments,
        figure::{Figure, print},
        messages::streamed,
        postgres::Postgres,
        progress,
        sender::{Expected, check_stored, expected, start_sessions},
        statistics::{median, percentile_ms},
        workload::Workload,
    },
};

/// How late a timer may be by itself.
const TIMER: Duration = Duration::from_millis(1);

pub async fn measure(arguments: &Arguments, postgres: &Postgres) -> Result<()> {
    let mut lab = Lab::open(postgres, "latency").await?;
    let seconds = arguments.scale(0.1, 4.0, 20.0);
    let mut figures = Vec::new();
    for (senders, batch) in [(64, 20), (8, 200)] {
        let limit = limit(&mut lab, arguments, senders, batch).await?;
        for part in [0.1, 0.5] {
            let percent = part * 100.0;
            let name = format!("{senders} senders, batches of {batch}, at {percent} % of COPY");
            progress(format_args!("latency, {name}"));
            lab.empty().await?;
            let rate = limit * part;
            let workload = workload(arguments.seed, senders, batch, (rate * seconds) as usize);
            let (mut latencies, _) =
                offer(&mut lab, &workload, batch as f64 * senders as f64 / rate, arguments.seed).await?;
            for (label, part) in [("p50", 0.5), ("p99", 0.99)] {
                figures.push(Figure::new(format!("{name}: {label}"), percentile_ms(&mut latencies, part), "ms"));
            }
        }
    }
    print("receipt latency", &figures, arguments.json);
    lab.reel.stop().await
}

/// What COPY stores in a second, in such batches.
async fn limit(lab: &mut Lab, arguments: &Arguments, senders: usize, batch: usize) -> Result<f64> {
    let workload = workload(arguments.seed, senders, batch, arguments.scale(2_000, 100_000, 200_000));
    let mut rates = Vec::new();
    for _ in 0..arguments.rounds() {
        lab.empty().await?;
        rates.push(lab.copy(&workload).await?.rate());
    }
    Ok(median(&rates))
}

/// Sends a workload, each sender a batch every so many seconds on average. Gives the latencies of all receipts
/// and the ids of the sessions.
pub async fn offer(
    lab: &mut Lab,
    workload: &Workload,
    interval: f64,
    seed: u64,
) -> Result<(Vec<Duration>, Vec<SessionId>)> {
    let ids = workload.mint();
    start_sessions(&lab.channels, &ids).await?;
    let channels = lab.channels.iter().cycle().cloned();
    let each = streamed(workload, &ids).into_iter().zip(expected(workload)).zip(channels);
    let sending: Vec<_> = each
        .enumerate()
        .map(|(number, ((messages, expected), channel))| {
            let random = StdRng::seed_from_u64(seed + number as u64);
            tokio::spawn(offer_as_one(channel, messages, expected, interval, random))
        })
        .collect();
    let mut latencies = Vec::new();
    for sender in sending {
        latencies.extend(sender.await??);
    }
    check_stored(&mut lab.connection, &ids, workload.actions()).await?;
    Ok((latencies, ids))
}

async fn offer_as_one(
    channel: Channel,
    messages: Vec<StreamActionsRequest>,
    expected: Vec<Expected>,
    interval: f64,
    mut random: StdRng,
) -> Result<Vec<Duration>> {
    let (requests, offered) = unbounded_channel();
    let (times, mut begun) = unbounded_channel();
    let pacing = tokio::spawn(async move {
        let mut due = Instant::now();
        for message in messages {
            let share: f64 = random.random();
            due += Duration::from_secs_f64(-(1.0 - share).ln() * interval);
            sleep_until(due).await;
            // Whoever reads them has failed if they are not wanted any more.
            let _ = times.send(Instant::now().min(due + TIMER));
            let _ = requests.send(message);
        }
    });
    let offered = UnboundedReceiverStream::new(offered);
    let mut receipts = IngestServiceClient::new(channel).stream_actions(offered).await?.into_inner();
    let mut latencies = Vec::with_capacity(expected.len());
    for expected in expected {
        let response = receipts.message().await?;
        let now = Instant::now();
        expected.check(response)?;
        let begun = begun.recv().await.ok_or("a receipt came before its message")?;
        latencies.push(now - begun);
    }
    pacing.await?;
    Ok(latencies)
}
