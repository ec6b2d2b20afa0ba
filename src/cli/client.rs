//! What the client subcommands share: the connection to the service, which failures pass by themselves, and how long to try
//! again when they do.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use rand::RngExt as _;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use super::Failure;
use crate::config::ClientArgs;

/// The first pause before trying again. Each is twice the one before, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause before trying again.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// What a client takes in one message: a page of playback may hold an action as large as an action may be, and the service's
/// limits may be raised.
pub(super) const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// The service, as a client subcommand sees it.
#[derive(Clone)]
pub(super) struct Service {
    /// Connects when it is needed, and again after a connection broke.
    pub(super) channel: Channel,
    url: String,
    retry_for: Duration,
}

impl Service {
    /// Makes a client. Nothing is connected yet.
    pub(super) fn new(args: &ClientArgs) -> Result<Self, Failure> {
        let url = args.server.clone();
        if !url.starts_with("http://") {
            return Err(format!("{url} is not a URL of the service; expected http://HOST:PORT").into());
        }
        let endpoint = Endpoint::from_shared(url.clone()).map_err(|error| format!("{url}: {error}"))?;
        let channel = endpoint
            .connect_timeout(Duration::from_secs(5))
            // A server that has gone without a word is noticed within 20 s.
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .tcp_nodelay(true)
            .connect_lazy();
        Ok(Self { channel, url, retry_for: args.retry_for })
    }

    /// The patience for one upload or playback.
    pub(super) fn patience(&self) -> Patience {
        Patience { url: self.url.clone(), retry_for: self.retry_for, failing_since: None, pause: FIRST_PAUSE }
    }
}

/// Tries again as long as that may help.
pub(super) struct Patience {
    url: String,
    retry_for: Duration,
    /// When it began to fail. None while it goes well.
    failing_since: Option<Instant>,
    pause: Duration,
}

impl Patience {
    /// Takes note that something went well.
    pub(super) fn progress(&mut self) {
        self.failing_since = None;
        self.pause = FIRST_PAUSE;
    }

    /// Waits before the next attempt, and tells people once that it does. Fails, with what people should know of it, where
    /// trying again does not help, or did not for too long.
    pub(super) async fn wait(&mut self, status: &Status, tell: impl FnOnce(&str)) -> Result<(), String> {
        let mut reason = describe(status);
        if !is_passing(status) {
            return Err(reason);
        }
        reason = format!("{}: {reason}", self.url);
        let now = Instant::now();
        if self.failing_since.is_none() && !self.retry_for.is_zero() {
            let retry_for = humantime::format_duration(self.retry_for);
            tell(&format!("{reason}; trying again for up to {retry_for}"));
        }
        let failing_for = now - *self.failing_since.get_or_insert(now);
        let left = self.retry_for.saturating_sub(failing_for);
        if left.is_zero() {
            return Err(reason);
        }
        // Many clients that lost the same server do not all come back at the same time.
        let pause = self.pause.mul_f64(rand::rng().random_range(0.5..1.0));
        tokio::time::sleep(pause.min(left)).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

/// Whether the failure may pass by itself: the service said so, or the connection is at fault.
fn is_passing(status: &Status) -> bool {
    // Only a status that was made on this side has a source: the connection's error.
    status.code() == Code::Unavailable || status.source().is_some()
}

/// What a status says, for people.
fn describe(status: &Status) -> String {
    let Some(mut cause) = status.source() else {
        return if status.message().is_empty() { status.code().to_string() } else { status.message().to_owned() };
    };
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    format!("no connection: {cause}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patience(retry_for: Duration) -> Patience {
        Patience { url: "http://reel".to_owned(), retry_for, failing_since: None, pause: FIRST_PAUSE }
    }

    #[tokio::test(start_paused = true)]
    async fn what_passes_is_tried_again_and_told_once() {
        let mut patience = patience(Duration::from_secs(30));
        let mut told = 0;
        for _ in 0..5 {
            let waited = patience.wait(&Status::unavailable("away"), |_| told += 1).await;
            assert!(waited.is_ok());
        }
        assert_eq!(told, 1);
        patience.progress();
        assert!(patience.wait(&Status::unavailable("away"), |_| told += 1).await.is_ok());
        assert_eq!(told, 2);
    }

    #[tokio::test]
    async fn what_does_not_pass_or_takes_too_long_ends_it() {
        let refused = patience(Duration::from_secs(30)).wait(&Status::aborted("gap"), |_| {}).await;
        assert_eq!(refused, Err("gap".to_owned()));
        let given_up = patience(Duration::ZERO).wait(&Status::unavailable("away"), |_| {}).await;
        assert_eq!(given_up, Err("http://reel: away".to_owned()));
    }
}
