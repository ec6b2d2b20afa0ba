//! Playback with more and more stored already. The databases stand side by side and are measured by turns.

use std::time::Instant;

use super::{first_action::percentiles, library::Library};
use crate::support::{
    Result,
    arguments::Arguments,
    figure::{Figure, Goal, print},
    growth::preload,
    postgres::Postgres,
    progress,
    statistics::Rounds,
};

/// The figures of a database: the rate, and p50 and p99 of the first action.
type Figures = [f64; 3];

pub async fn measure(arguments: &Arguments, postgres: &Postgres) -> Result<()> {
    let sizes = if arguments.smoke { vec![10_000, 20_000] } else { arguments.growth_sizes() };
    let mut libraries = Vec::new();
    for size in &sizes {
        progress(format_args!("growth: storing {size} actions"));
        let (mut library, url) = Library::empty_on_postgres(postgres, &format!("growth_{size}")).await?;
        library.small = preload(&library.reel, &url, *size, arguments.seed).await?;
        library.record_large(arguments).await?;
        library.settle(&url).await?;
        libraries.push(library);
    }
    let mut compared: Vec<[Rounds; 3]> = vec![Default::default(); sizes.len() - 1];
    for round in 0..arguments.rounds() {
        progress(format_args!("growth, round {} of {}", round + 1, arguments.rounds()));
        let mut order: Vec<_> = (0..libraries.len()).collect();
        if !round.is_multiple_of(2) {
            order.reverse();
        }
        let mut measured = vec![Figures::default(); libraries.len()];
        for number in order {
            measured[number] = measure_one(arguments, &mut libraries[number], round).await?;
        }
        for (rounds, figures) in compared.iter_mut().zip(&measured[1..]) {
            for (index, rounds) in rounds.iter_mut().enumerate() {
                rounds.add(figures[index], measured[0][index]);
            }
        }
    }
    let mut figures = Vec::new();
    for (size, [rates, medians, tails]) in sizes[1..].iter().zip(&compared) {
        let name = format!("{size} actions stored");
        figures.extend([
            Figure::of_rounds(format!("{name}: rate"), rates, "actions/s").goal(Goal::RatioAtLeast(0.85)),
            Figure::of_rounds(format!("{name}: first action p50"), medians, "ms").goal(Goal::RatioAtMost(1.15)),
            Figure::of_rounds(format!("{name}: first action p99"), tails, "ms").goal(Goal::RatioAtMost(1.15)),
        ]);
    }
    print(&format!("playback ÷ with {} actions stored", sizes[0]), &figures, arguments.json);
    for library in libraries {
        library.reel.stop().await?;
    }
    Ok(())
}

async fn measure_one(arguments: &Arguments, library: &mut Library, round: usize) -> Result<Figures> {
    let begun = Instant::now();
    let (amount, _) = library.play(library.large).await?;
    let rate = amount.actions as f64 / begun.elapsed().as_secs_f64();
    let [[p50, p99], _] = percentiles(arguments, library, round).await?;
    Ok([rate, p50, p99])
}
