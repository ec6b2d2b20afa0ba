//! Actions a second by the service beside COPY, what CPU and WAL they cost, and the service's memory.

use crate::{
    ingest::lab::{Lab, Measured, workload},
    support::{
        Result,
        accounting::peak_memory_mib,
        arguments::Arguments,
        figure::{Figure, Goal, print},
        postgres::Postgres,
        progress,
        sender::Rpc,
        statistics::{Rounds, mean},
    },
};

/// One way of sending.
struct Cell {
    rpc: Rpc,
    senders: usize,
    batch: usize,
    /// How many actions take about as long as a measurement should.
    actions: usize,
    rates: Rounds,
    sent: Vec<Measured>,
    copied: Vec<Measured>,
}

impl Cell {
    fn new(rpc: Rpc, senders: usize, batch: usize) -> Self {
        Self { rpc, senders, batch, actions: 0, rates: Rounds::default(), sent: Vec::new(), copied: Vec::new() }
    }

    fn name(&self) -> String {
        let rpc = if self.rpc == Rpc::StreamActions { "bidi" } else { "client-streaming" };
        format!("{rpc}, {} senders, batches of {}", self.senders, self.batch)
    }

    /// Every sender sends at least twice.
    fn least_actions(&self) -> usize {
        self.senders * self.batch * 2
    }

    fn goal(&self) -> Option<Goal> {
        match (self.senders, self.batch) {
            (8.., 200..) => Some(Goal::RatioAtLeast(0.9)),
            (64.., 20..) => Some(Goal::RatioAtLeast(0.75)),
            _ => None,
        }
    }

    fn figure(&self) -> Figure {
        let figure = Figure::of_rounds(self.name(), &self.rates, "actions/s");
        self.goal().map_or(figure.clone(), |goal| figure.goal(goal))
    }
}

/// All combinations with StreamActions; with RecordActions only some, unless all were asked for.
fn cells(arguments: &Arguments) -> Vec<Cell> {
    let all = [1, 8, 64].into_iter().flat_map(|senders| [20, 200, 1_000].map(|batch| (senders, batch)));
    let some = [(1, 1_000), (8, 200), (64, 20)];
    let recorded = all.clone().filter(|cell| arguments.full || some.contains(cell));
    let streamed = all.map(|(senders, batch)| Cell::new(Rpc::StreamActions, senders, batch));
    streamed.chain(recorded.map(|(senders, batch)| Cell::new(Rpc::RecordActions, senders, batch))).collect()
}

pub async fn measure(arguments: &Arguments, postgres: &Postgres) -> Result<()> {
    let mut lab = Lab::open(postgres, "throughput").await?;
    let mut cells = cells(arguments);
    for cell in &mut cells {
        let actions = cell.least_actions().max(if arguments.smoke { 0 } else { 10_000 });
        lab.empty().await?;
        let (tried, _) = lab.send(cell.rpc, &workload(arguments.seed, cell.senders, cell.batch, actions)).await?;
        cell.actions = ((tried.rate() * arguments.measurement().as_secs_f64()) as usize).max(cell.least_actions());
    }
    for round in 0..arguments.rounds() {
        progress(format_args!("throughput, round {} of {}", round + 1, arguments.rounds()));
        for (number, cell) in cells.iter_mut().enumerate() {
            let seed = arguments.seed + round as u64;
            // By turns first: neither always finds the machine as the other left it.
            measure_cell(&mut lab, cell, seed, (round + number).is_multiple_of(2)).await?;
        }
    }
    let figures: Vec<_> = cells.iter().map(Cell::figure).collect();
    print("ingest ÷ two-connection COPY BINARY", &figures, arguments.json);
    let costs: Vec<_> = cells
        .iter()
        .filter(|cell| [(8, 200), (64, 20)].contains(&(cell.senders, cell.batch)))
        .flat_map(cell_costs)
        .collect();
    print("cost an action, beside COPY", &costs, arguments.json);
    let memory = peak_memory_mib(lab.reel.pid()?)?;
    print("the service after all of this", &[Figure::new("peak memory", memory, "MiB")], arguments.json);
    lab.reel.stop().await
}

async fn measure_cell(lab: &mut Lab, cell: &mut Cell, seed: u64, copy_first: bool) -> Result<()> {
    let workload = workload(seed, cell.senders, cell.batch, cell.actions);
    let (mut sent, mut copied) = (None, None);
    for is_copy in [copy_first, !copy_first] {
        lab.empty().await?;
        if is_copy {
            copied = Some(lab.copy(&workload).await?);
        } else {
            sent = Some(lab.send(cell.rpc, &workload).await?.0);
        }
    }
    if let (Some(sent), Some(copied)) = (sent, copied) {
        cell.rates.add(sent.rate(), copied.rate());
        cell.sent.push(sent);
        cell.copied.push(copied);
    }
    Ok(())
}

/// Means over the rounds, which all have as many actions.
fn cell_costs(cell: &Cell) -> Vec<Figure> {
    let mean_of =
        |measured: &[Measured], what: &dyn Fn(&Measured) -> f64| mean(&measured.iter().map(what).collect::<Vec<_>>());
    let figure = |what: &str, unit, of: &dyn Fn(&Measured) -> f64| {
        Figure::new(format!("{}: {what}", cell.name()), mean_of(&cell.sent, of), unit)
    };
    let beside_copy =
        |what: &str, unit, of: &dyn Fn(&Measured) -> f64| figure(what, unit, of).beside(mean_of(&cell.copied, of));
    let server = figure("server CPU", "µs", &|measured| measured.cpu_us_an_action(|cpu| cpu.server));
    vec![
        beside_copy("client CPU", "µs", &|measured| measured.cpu_us_an_action(|cpu| cpu.client)),
        if cell.batch >= 200 { server.goal(Goal::ValueAtMost(1.5)) } else { server },
        beside_copy("database CPU", "µs", &|measured| measured.cpu_us_an_action(|cpu| cpu.database)),
        beside_copy("WAL", "bytes", &Measured::wal_bytes_an_action),
    ]
}
