//! How long after the call the first action comes, beside a query of a first page. One call at a time.

use std::time::Instant;

use rand::{SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use reel::model::SessionId;

use super::library::Library;
use crate::support::{
    Result,
    arguments::Arguments,
    figure::{Figure, Goal},
    progress,
    statistics::{Rounds, percentile_ms},
};

/// Calls that are made before it counts: connections are opened, statements prepared.
const WARM_UP: usize = 50;

pub async fn measure(arguments: &Arguments, library: &mut Library) -> Result<Vec<Figure>> {
    progress(format_args!("first action, {}", library.name));
    let (mut medians, mut tails) = (Rounds::default(), Rounds::default());
    for round in 0..arguments.rounds() {
        let [played, read] = percentiles(arguments, library, round).await?;
        medians.add(played[0], read[0]);
        tails.add(played[1], read[1]);
    }
    let name = library.name;
    Ok(vec![
        Figure::of_rounds(format!("{name}: first action p50"), &medians, "ms"),
        Figure::of_rounds(format!("{name}: first action p99"), &tails, "ms").goal(Goal::RatioAtMost(3.0)),
    ])
}

/// p50 and p99 in milliseconds, of the service and of the query.
pub async fn percentiles(arguments: &Arguments, library: &mut Library, round: usize) -> Result<[[f64; 2]; 2]> {
    let count = arguments.scale(20, 600, 2_000);
    let mut random = StdRng::seed_from_u64(arguments.seed + round as u64);
    let sessions: Vec<SessionId> =
        (0..WARM_UP + count).filter_map(|_| library.small.choose(&mut random)).copied().collect();
    let (mut played, mut read) = (Vec::new(), Vec::new());
    for (number, session) in sessions.into_iter().enumerate() {
        // By turns first: who comes second finds the session in memory.
        let is_first_played = number.is_multiple_of(2);
        for is_played in [is_first_played, !is_first_played] {
            if is_played {
                played.push(library.play(session).await?.1);
            } else {
                let begun = Instant::now();
                library.reader.first_page(session).await?;
                read.push(begun.elapsed());
            }
        }
    }
    let both = |part| {
        [percentile_ms(&mut played[WARM_UP..].to_vec(), part), percentile_ms(&mut read[WARM_UP..].to_vec(), part)]
    };
    let ([played_p50, read_p50], [played_p99, read_p99]) = (both(0.5), both(0.99));
    Ok([[played_p50, played_p99], [read_p50, read_p99]])
}
