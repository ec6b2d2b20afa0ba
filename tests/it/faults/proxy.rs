//! A TCP proxy that does to connections what networks do.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::fault::{AtCommit, Direction, Hazards, Kind, Plan};

/// How long to go on reading after a FIN: a socket that is closed with unread bytes in it sends an RST.
const LINGER_FOR: Duration = Duration::from_millis(500);

/// What the proxy does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Faults happen as they are planned.
    Faulty,
    /// Every connection that there is or comes is swallowed.
    Silent,
    /// Nothing happens.
    Healthy,
}

/// The proxy. It ends, and all its connections with it, when it is dropped.
pub struct Proxy {
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    faults: Arc<AtomicUsize>,
    _connections: JoinSet<()>,
}

/// How the relaying of a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// This direction has come to its end by itself.
    Over,
    Cut,
    Reset,
    /// Swallow everything; then reset, unless it is for ever.
    Swallow(Option<Duration>),
}

impl Ending {
    /// What a fatal fault leads to.
    fn of(kind: Kind) -> Self {
        match kind {
            Kind::Cut => Self::Cut,
            Kind::BlackHole(lasting) => Self::Swallow(Some(lasting)),
            Kind::Reset | Kind::Stall(_) | Kind::Drip { .. } => Self::Reset,
        }
    }
}

impl Proxy {
    /// Starts a proxy before a server.
    pub async fn start(upstream: SocketAddr, hazards: Hazards) -> Self {
        Self::start_in(Mode::Faulty, upstream, Some(hazards)).await
    }

    /// Starts one that does nothing until it is told to.
    pub async fn start_healthy(upstream: SocketAddr) -> Self {
        Self::start_in(Mode::Healthy, upstream, None).await
    }

    async fn start_in(mode: Mode, upstream: SocketAddr, hazards: Option<Hazards>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, watched) = watch::channel(mode);
        let faults = Arc::new(AtomicUsize::new(0));
        let mut connections = JoinSet::new();
        let counted = Arc::clone(&faults);
        connections.spawn(async move {
            let mut connections = JoinSet::new();
            for number in 0.. {
                let Ok((client, _)) = listener.accept().await else { return };
                let plan = hazards.map(|hazards| hazards.of_connection(number)).unwrap_or_default();
                let (mode, faults) = (watched.clone(), Arc::clone(&counted));
                connections.spawn(async move { Connection { mode, faults }.relay(client, upstream, &plan).await });
            }
        });
        Self { address, mode, faults, _connections: connections }
    }

    /// How many connections have met their fatal fault.
    pub fn faults(&self) -> usize {
        self.faults.load(Ordering::Relaxed)
    }

    /// Lets everything through from now on. Connections in a planned black hole are reset; those that [`Self::fall_silent`]
    /// has swallowed stay as they are, as behind a firewall that has forgotten them.
    pub fn heal(&self) {
        self.mode.send_replace(Mode::Healthy);
    }

    /// Swallows everything from now on, of every connection that there is or comes, until it is told to heal.
    pub fn fall_silent(&self) {
        self.mode.send_replace(Mode::Silent);
    }
}

/// What a connection knows of the proxy.
struct Connection {
    mode: watch::Receiver<Mode>,
    faults: Arc<AtomicUsize>,
}

impl Connection {
    async fn relay(self, mut client: TcpStream, upstream: SocketAddr, plan: &Plan) {
        let Ok(mut server) = TcpStream::connect(upstream).await else {
            let _ = client.set_zero_linger();
            return;
        };
        // Bytes go on as they come.
        let (_, _) = (client.set_nodelay(true), server.set_nodelay(true));
        let ending = self.carry_both(&mut client, &mut server, plan).await;
        if !matches!(ending, Ending::Over) {
            self.faults.fetch_add(1, Ordering::Relaxed);
        }
        match ending {
            Ending::Over => {}
            Ending::Cut => {
                tokio::join!(finish(&mut client), finish(&mut server));
            }
            Ending::Reset => reset(&client, &server),
            Ending::Swallow(lasting) => {
                let swallow = async {
                    tokio::join!(swallow(&mut client), swallow(&mut server));
                    std::future::pending::<()>().await;
                };
                let over = async {
                    let Some(lasting) = lasting else { return std::future::pending().await };
                    tokio::select! {
                        () = sleep(lasting) => {}
                        () = self.is(Mode::Healthy) => {}
                    }
                };
                tokio::select! {
                    () = swallow => {}
                    () = over => {}
                }
                reset(&client, &server);
            }
        }
    }

    /// Carries bytes in both directions until something ends that.
    async fn carry_both(&self, client: &mut TcpStream, server: &mut TcpStream, plan: &Plan) -> Ending {
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        let up = self.carry(from_client, to_server, Direction::Up, plan);
        let down = self.carry(from_server, to_client, Direction::Down, plan);
        tokio::pin!(up, down);
        tokio::select! {
            () = self.is(Mode::Silent) => Ending::Swallow(None),
            ending = &mut up => if ending == Ending::Over { down.await } else { ending },
            ending = &mut down => if ending == Ending::Over { up.await } else { ending },
        }
    }

    /// Carries bytes in one direction, up to a fault that is fatal or to the end.
    async fn carry(&self, from: ReadHalf<'_>, to: WriteHalf<'_>, direction: Direction, plan: &Plan) -> Ending {
        let at_commit = plan.at_commit.filter(|_| direction == Direction::Up);
        let mut pipe = Pipe { from, to, mode: &self.mode, at_commit };
        let mut carried = 0;
        for fault in plan.faults.iter().filter(|fault| fault.direction == direction) {
            if let Err(ending) = pipe.carry(fault.after.saturating_sub(carried), usize::MAX, Duration::ZERO).await {
                return ending;
            }
            carried = fault.after.max(carried);
            if *self.mode.borrow() == Mode::Healthy {
                continue;
            }
            match fault.kind {
                Kind::Stall(lasting) => {
                    tokio::select! {
                        () = sleep(lasting) => {}
                        () = self.is(Mode::Healthy) => {}
                    }
                }
                Kind::Drip { bytes, at_once } => {
                    if let Err(ending) = pipe.carry(bytes, at_once, Duration::from_millis(1)).await {
                        return ending;
                    }
                    carried += bytes;
                }
                fatal => return Ending::of(fatal),
            }
        }
        pipe.carry(u64::MAX, usize::MAX, Duration::ZERO).await.err().unwrap_or(Ending::Over)
    }

    /// Waits until the proxy is in this mode.
    async fn is(&self, wanted: Mode) {
        let mut mode = self.mode.clone();
        if mode.wait_for(|mode| *mode == wanted).await.is_err() {
            // The proxy is gone, and this task is about to be.
            std::future::pending::<()>().await;
        }
    }
}

/// One direction of a connection.
struct Pipe<'a> {
    from: ReadHalf<'a>,
    to: WriteHalf<'a>,
    mode: &'a watch::Receiver<Mode>,
    at_commit: Option<AtCommit>,
}

impl Pipe<'_> {
    /// Carries so many bytes, or says how the connection ended before.
    async fn carry(&mut self, mut bytes: u64, at_once: usize, pause: Duration) -> Result<(), Ending> {
        let mut buffer = vec![0; at_once.min(16 << 10)];
        while bytes > 0 {
            let wanted = buffer.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
            // One side is gone; the other is told.
            let gone = |_: io::Error| Ending::Reset;
            let count = self.from.read(&mut buffer[..wanted]).await.map_err(gone)?;
            if count == 0 {
                let _ = self.to.shutdown().await;
                return Err(Ending::Over);
            }
            let fault = self.fault_at(&buffer[..count]);
            if fault.is_none_or(|fault| fault.is_delivered) {
                self.to.write_all(&buffer[..count]).await.map_err(gone)?;
            }
            if let Some(fault) = fault {
                return Err(Ending::of(fault.kind));
            }
            bytes -= count as u64;
            if !pause.is_zero() {
                sleep(pause).await;
            }
        }
        Ok(())
    }

    /// What happens at the COMMIT that may be in these bytes: it is a message of its own.
    fn fault_at(&mut self, bytes: &[u8]) -> Option<AtCommit> {
        let fault = self.at_commit.as_mut()?;
        if !bytes.windows(7).any(|window| window == b"COMMIT\0") || *self.mode.borrow() == Mode::Healthy {
            return None;
        }
        let left = fault.well.checked_sub(1);
        fault.well = left.unwrap_or(0);
        if left.is_none() { self.at_commit.take() } else { None }
    }
}

/// Ends a connection in good order.
async fn finish(stream: &mut TcpStream) {
    let _ = stream.shutdown().await;
    let _ = timeout(LINGER_FOR, swallow(stream)).await;
}

/// Reads until nothing comes any more.
async fn swallow(stream: &mut TcpStream) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(1..) = stream.read(&mut buffer).await {}
}

/// Makes both end with an RST when they are dropped.
fn reset(client: &TcpStream, server: &TcpStream) {
    for stream in [client, server] {
        let _ = stream.set_zero_linger();
    }
}
