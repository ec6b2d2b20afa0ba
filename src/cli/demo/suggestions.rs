//! What to try against the demo's service: commands that work as they stand.

use std::{
    io::{self, Write},
    net::SocketAddr,
};

use chrono::{SecondsFormat, TimeDelta, Utc};

use crate::model::SessionId;

/// Says what to try with the service on this address, which has this session.
pub(super) fn write(output: &mut impl Write, address: SocketAddr, session: SessionId) -> io::Result<()> {
    let now = Utc::now();
    let [start, first, second] =
        [0, 1, 2].map(|seconds| (now + TimeDelta::seconds(seconds)).to_rfc3339_opts(SecondsFormat::Millis, true));
    write!(
        output,
        r#"
The service stays up until Ctrl-C. Try it from another terminal:

  # What it offers, and what an action is
  grpcurl -plaintext {address} list
  grpcurl -plaintext {address} describe reel.v1.Action

  # Which visits did she make?
  grpcurl -plaintext -d '{{"filter": {{"email": "ada@example.com"}}}}' {address} reel.v1.SessionService/ListSessions

  # What did she click, and what went wrong?
  grpcurl -plaintext -d '{{"session_id": "{session}", "types": ["click", "error"]}}' {address} reel.v1.PlaybackService/PlaySession

  # Record a visit by hand
  grpcurl -plaintext -d @ {address} reel.v1.IngestService/RecordActions <<'END'
  {{"start": {{"user": {{"id": "grace", "email": "grace@example.com"}}, "start_time": "{start}"}}}}
  {{"batch": {{"first_seq": 1, "actions": [
    {{"timestamp": "{first}", "type": "navigation", "target": "/posts/new"}},
    {{"timestamp": "{second}", "type": "click", "target": "Create Post", "data": "{{\"x\": 808, \"y\": 37}}"}}]}}}}
  {{"end": {{"reason": "logout"}}}}
END

  # As lines of JSON, at the speed at which it happened
  reel play --server http://{address} --speed 1 --type click {session}

  # Erase the visit and everything in it
  grpcurl -plaintext -d '{{"session_id": "{session}"}}' {address} reel.v1.SessionService/DeleteSession
"#
    )
}
