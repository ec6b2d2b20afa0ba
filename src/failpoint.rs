//! What tests do to the process: places at which they kill it, to see what it leaves behind, and a wrong clock. In a release
//! build there is none of it.

/// Ends the process at once, as a kill would, where the variable `REEL_DIE_AT` names this place.
pub fn reach(place: &str) {
    #[cfg(debug_assertions)]
    if std::env::var("REEL_DIE_AT").is_ok_and(|wanted| wanted == place) {
        std::process::abort();
    }
    #[cfg(not(debug_assertions))]
    let _ = place;
}

/// How wrong tests make this process's clock: the variable `REEL_CLOCK_AHEAD`, in seconds. In a release build it is never.
#[must_use]
pub fn clock_ahead() -> chrono::TimeDelta {
    #[cfg(debug_assertions)]
    if let Some(seconds) = std::env::var("REEL_CLOCK_AHEAD").ok().and_then(|seconds| seconds.parse().ok()) {
        return chrono::TimeDelta::seconds(seconds);
    }
    chrono::TimeDelta::zero()
}
