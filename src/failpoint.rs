//! Places at which tests kill the process, to see what it leaves behind. In a release build there are none.

/// Ends the process at once, as a kill would, where the variable `REEL_DIE_AT` names this place.
pub fn reach(place: &str) {
    #[cfg(debug_assertions)]
    if std::env::var("REEL_DIE_AT").is_ok_and(|wanted| wanted == place) {
        std::process::abort();
    }
    #[cfg(not(debug_assertions))]
    let _ = place;
}
