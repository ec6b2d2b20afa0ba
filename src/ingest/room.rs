//! The room that messages take while they arrive and are written, and when it is taken back from one that does not arrive.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::sync::PollSemaphore;

use super::Intake;

/// While others wait for the room that a message has taken, this many of its bytes must come in this time.
const BYTES_A_TICK: usize = 64 << 10;
pub(super) const TICK: Duration = Duration::from_secs(2);

/// Room for messages.
#[derive(Debug)]
pub(super) struct Room {
    units: Arc<Semaphore>,
    capacity_units: u32,
    /// How many messages wait for it.
    waiting: AtomicUsize,
}

impl Room {
    pub(super) fn new(capacity_units: u32) -> Arc<Self> {
        let permits = usize::try_from(capacity_units).unwrap_or(Semaphore::MAX_PERMITS);
        let units = Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self { units, capacity_units, waiting: AtomicUsize::new(0) })
    }

    fn units_for(&self, bytes: usize) -> u32 {
        u32::try_from(bytes / Intake::UNIT_BYTES + 1).unwrap_or(u32::MAX).min(self.capacity_units)
    }
}

/// A message that waits for room.
#[derive(Debug)]
pub(super) struct Entering {
    pub(super) room: Arc<Room>,
    units: PollSemaphore,
}

impl Entering {
    pub(super) fn new(room: &Arc<Room>) -> Self {
        room.waiting.fetch_add(1, Ordering::Relaxed);
        Self { room: Arc::clone(room), units: PollSemaphore::new(Arc::clone(&room.units)) }
    }
}

impl Entering {
    /// Completes when there is room for so many bytes.
    pub(super) fn poll_enter(&mut self, cx: &mut Context<'_>, bytes: usize) -> Poll<Option<OwnedSemaphorePermit>> {
        self.units.poll_acquire_many(cx, self.room.units_for(bytes))
    }
}

impl Drop for Entering {
    fn drop(&mut self) {
        self.room.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A message that was let in and is not complete.
#[derive(Debug)]
pub(super) struct Arriving {
    room: Arc<Room>,
    timer: Pin<Box<Sleep>>,
    deadline: Instant,
    /// Bytes that have come since the timer was set.
    pub(super) bytes: usize,
}

impl Arriving {
    pub(super) fn new(room: &Arc<Room>, stall_timeout: Duration) -> Self {
        let now = Instant::now();
        let deadline = now + stall_timeout;
        Self { room: Arc::clone(room), timer: Box::pin(sleep_until(deadline.min(now + TICK))), deadline, bytes: 0 }
    }

    /// Completes when the message is to be given up.
    pub(super) fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            let is_in_the_way = self.bytes < BYTES_A_TICK && self.room.waiting.load(Ordering::Relaxed) > 0;
            if now >= self.deadline || is_in_the_way {
                return Poll::Ready(());
            }
            self.bytes = 0;
            self.timer.as_mut().reset(self.deadline.min(now + TICK));
        }
    }
}
