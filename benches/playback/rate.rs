//! Actions a second of one playback as fast as it goes, beside the query alone, and what they cost.

use std::time::Instant;

use super::{library::Library, reader::Amount};
use crate::support::{
    Result,
    accounting::{Cpu, cpu, peak_memory_mib},
    arguments::Arguments,
    figure::{Figure, Goal},
    progress,
    statistics::{Rounds, mean},
};

/// What one way of reading a session took.
struct Measured {
    amount: Amount,
    rate: f64,
    /// Microseconds an action.
    cpu: [f64; 3],
}

pub async fn measure(arguments: &Arguments, library: &mut Library) -> Result<Vec<Figure>> {
    progress(format_args!("rate, {}", library.name));
    let mut rates = Rounds::default();
    let (mut played_cpu, mut read_cpu) = (Vec::new(), Vec::new());
    // Once unmeasured: it all lies in memory then.
    measure_way(library, true).await?;
    for round in 0..arguments.rounds() * 2 {
        let is_first_played = round.is_multiple_of(2);
        let first = measure_way(library, is_first_played).await?;
        let second = measure_way(library, !is_first_played).await?;
        if first.amount != second.amount {
            return Err(format!("{:?} is not {:?}", first.amount, second.amount).into());
        }
        let (played, read) = if is_first_played { (first, second) } else { (second, first) };
        rates.add(played.rate, read.rate);
        played_cpu.push(played.cpu);
        read_cpu.push(read.cpu);
    }
    let name = library.name;
    let side = |all: &[[f64; 3]], side: usize| mean(&all.iter().map(|cpu| cpu[side]).collect::<Vec<_>>());
    let beside = |what: &str, index: usize| {
        Figure::new(format!("{name}: {what}"), side(&played_cpu, index), "µs").beside(side(&read_cpu, index))
    };
    let rate = Figure::of_rounds(format!("{name}: rate"), &rates, "actions/s").goal(Goal::RatioAtLeast(0.8));
    let server = Figure::new(format!("{name}: server CPU"), side(&played_cpu, 1), "µs");
    let memory = Figure::new(format!("{name}: peak memory"), peak_memory_mib(library.reel.pid()?)?, "MiB");
    let mut figures = vec![rate, beside("client CPU", 0), server];
    if library.postmaster.is_some() {
        figures.push(beside("database CPU", 2));
    }
    figures.push(memory);
    Ok(figures)
}

async fn measure_way(library: &mut Library, is_played: bool) -> Result<Measured> {
    let (server, session) = (library.reel.pid()?, library.large);
    let before = cpu(server, library.postmaster)?;
    let begun = Instant::now();
    let amount = if is_played { library.play(session).await?.0 } else { library.reader.drain(session).await? };
    let took = begun.elapsed().as_secs_f64();
    let Cpu { client, server, database } = cpu(server, library.postmaster)? - before;
    let actions = amount.actions as f64;
    let cpu = [client, server, database].map(|seconds| seconds * 1e6 / actions);
    Ok(Measured { amount, rate: actions / took, cpu })
}
