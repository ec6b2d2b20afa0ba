//! The same with more and more stored already. The databases stand side by side, each with a service of its own, and are
//! measured by turns; what was measured with is removed again.

use crate::{
    ingest::{
        lab::{Lab, workload},
        latency::offer,
    },
    support::{
        Result,
        arguments::Arguments,
        figure::{Figure, Goal, print},
        growth::preload,
        postgres::Postgres,
        progress,
        sender::Rpc,
        statistics::{Rounds, percentile_ms},
    },
};

/// Senders and batches of the two loads that the goals speak of.
const CELLS: [(usize, usize); 2] = [(8, 200), (64, 20)];

/// Actions of a measurement: a second's at the rates that are wanted.
const ACTIONS: usize = 150_000;

/// Actions a second, where latency is measured.
const OFFERED: f64 = 15_000.0;

/// What is compared with the smallest database.
struct Compared {
    name: String,
    rates: Vec<Rounds>,
    latencies: [Rounds; 2],
}

pub async fn measure(arguments: &Arguments, postgres: &Postgres) -> Result<()> {
    let sizes = if arguments.smoke { vec![10_000, 20_000] } else { arguments.growth_sizes() };
    let actions = arguments.scale(4_000, ACTIONS, ACTIONS);
    let mut labs = Vec::new();
    for size in &sizes {
        progress(format_args!("growth: storing {size} actions"));
        let lab = Lab::open(postgres, &format!("growth_{size}")).await?;
        preload(&lab.reel, &lab.url, *size, arguments.seed).await?;
        labs.push(lab);
    }
    let mut compared: Vec<_> = sizes[1..]
        .iter()
        .map(|size| Compared {
            name: format!("{size} actions stored"),
            rates: vec![Rounds::default(); CELLS.len()],
            latencies: Default::default(),
        })
        .collect();
    for round in 0..arguments.rounds() {
        progress(format_args!("growth, round {} of {}", round + 1, arguments.rounds()));
        for (index, (senders, batch)) in CELLS.into_iter().enumerate() {
            let mut rates = vec![0.0; labs.len()];
            for number in in_turn(labs.len(), round) {
                rates[number] = rate(&mut labs[number], arguments.seed, (senders, batch, actions)).await?;
            }
            for (compared, rate) in compared.iter_mut().zip(&rates[1..]) {
                compared.rates[index].add(*rate, rates[0]);
            }
        }
        let mut latencies = vec![[0.0; 2]; labs.len()];
        for number in in_turn(labs.len(), round) {
            latencies[number] = latency(&mut labs[number], arguments.seed, actions / 2).await?;
        }
        for (compared, latencies_here) in compared.iter_mut().zip(&latencies[1..]) {
            for (part, rounds) in compared.latencies.iter_mut().enumerate() {
                rounds.add(latencies_here[part], latencies[0][part]);
            }
        }
    }
    print(&format!("ingest ÷ with {} actions stored", sizes[0]), &figures(&compared), arguments.json);
    for lab in labs {
        lab.reel.stop().await?;
    }
    Ok(())
}

/// All of them, each round in the other direction.
fn in_turn(count: usize, round: usize) -> Vec<usize> {
    let mut order: Vec<_> = (0..count).collect();
    if !round.is_multiple_of(2) {
        order.reverse();
    }
    order
}

async fn rate(lab: &mut Lab, seed: u64, (senders, batch, actions): (usize, usize, usize)) -> Result<f64> {
    let (measured, ids) = lab.send(Rpc::StreamActions, &workload(seed, senders, batch, actions)).await?;
    lab.forget(&ids).await?;
    Ok(measured.rate())
}

/// p50 and p99 in milliseconds.
async fn latency(lab: &mut Lab, seed: u64, actions: usize) -> Result<[f64; 2]> {
    let (senders, batch) = (64, 20);
    let workload = workload(seed, senders, batch, actions);
    let (mut latencies, ids) = offer(lab, &workload, (senders * batch) as f64 / OFFERED, seed).await?;
    lab.forget(&ids).await?;
    Ok([percentile_ms(&mut latencies, 0.5), percentile_ms(&mut latencies, 0.99)])
}

fn figures(compared: &[Compared]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for compared in compared {
        let name = &compared.name;
        for ((senders, batch), rates) in CELLS.into_iter().zip(&compared.rates) {
            let name = format!("{name}: bidi, {senders} senders, batches of {batch}");
            figures.push(Figure::of_rounds(name, rates, "actions/s").goal(Goal::RatioAtLeast(0.85)));
        }
        for (label, latencies) in ["p50", "p99"].into_iter().zip(&compared.latencies) {
            let name = format!("{name}: receipt latency {label} at {OFFERED} actions/s");
            figures.push(Figure::of_rounds(name, latencies, "ms").goal(Goal::RatioAtMost(1.15)));
        }
    }
    figures
}
