//! The client subcommands, as people run them.

use std::{io::Write as _, path::Path, process::Output};

use flate2::{Compression, write::GzEncoder};
use reel::proto::{ListSessionsRequest, Session};
use tempfile::TempDir;
use tokio::process::Command;

use crate::{
    harness::{Backend, NOON_MS, Reel, session_id},
    on_both_databases,
};

on_both_databases!(
    importing_twice_stores_nothing_twice_and_play_gives_every_byte_back,
    an_rrweb_recording_is_imported_event_by_event,
    a_malformed_line_is_named_and_what_comes_before_it_stays,
);

/// The recording that the demo shows.
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo/session.jsonl.gz");

pub async fn run(reel: &Reel, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reel"));
    command.args(arguments).arg("--server").arg(format!("http://{}", reel.address));
    command.output().await.unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

pub async fn succeed(reel: &Reel, arguments: &[&str]) -> String {
    let output = run(reel, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout).to_owned()
}

async fn sessions(reel: &Reel) -> Vec<Session> {
    reel.sessions().list_sessions(ListSessionsRequest::default()).await.unwrap().into_inner().sessions
}

/// The lines of a recording by source and seq, each with its data as it stands there.
fn contents(lines: &str) -> Vec<(String, i64, String, String)> {
    #[derive(serde::Deserialize)]
    struct Line<'a> {
        source: String,
        seq: i64,
        timestamp: serde_json::Number,
        #[serde(borrow)]
        data: Option<&'a serde_json::value::RawValue>,
    }
    let read = |line| {
        let line: Line<'_> = serde_json::from_str(line).unwrap();
        (
            line.source,
            line.seq,
            line.timestamp.to_string(),
            line.data.map_or(String::new(), |data| data.get().to_owned()),
        )
    };
    let mut contents: Vec<_> = lines.lines().map(read).collect();
    contents.sort();
    contents
}

async fn importing_twice_stores_nothing_twice_and_play_gives_every_byte_back(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let first = succeed(&reel, &["import", DEMO]).await;
    assert!(first.contains("1 session, 235 actions: 235 new, 0 already stored, 0 rejected"), "{first}");
    let again = succeed(&reel, &["import", DEMO, "--batch", "7"]).await;
    assert!(again.contains("1 session, 235 actions: 0 new, 235 already stored, 0 rejected"), "{again}");

    let stored = sessions(&reel).await;
    assert_eq!(stored.len(), 1);
    assert_eq!((stored[0].attributes["name"].as_str(), stored[0].user_id.as_str()), ("demo", "ada"));
    assert!(stored[0].end_time.is_some());
    let played = succeed(&reel, &["play", &stored[0].id]).await;
    let recording = std::fs::File::open(DEMO).unwrap();
    let recording = std::io::read_to_string(flate2::read::GzDecoder::new(recording)).unwrap();
    assert_eq!(contents(&played), contents(&recording));

    // What play prints is a recording too, and of the same session.
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("played.jsonl");
    std::fs::write(&file, &played).unwrap();
    let file = file.to_str().unwrap();
    let back = succeed(&reel, &["import", file]).await;
    assert!(back.contains("235 actions: 0 new, 235 already stored"), "{back}");
    let (other, _other_database) = Reel::start(backend).await;
    succeed(&other, &["import", file]).await;
    assert_eq!(succeed(&other, &["play", &stored[0].id]).await, played);

    let clicks = succeed(&reel, &["play", &stored[0].id, "--type", "click", "--from", "10s", "--until", "20s"]).await;
    let targets: Vec<_> = clicks.lines().filter(|line| line.contains("\"type\":\"click\"")).collect();
    assert_eq!((targets.len(), clicks.lines().count()), (3, 3), "{clicks}");
}

async fn an_rrweb_recording_is_imported_event_by_event(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let events: Vec<String> = (0..300)
        .map(|number| {
            let padding = "é😀\\u0000".repeat(usize::try_from(number).unwrap());
            format!(r#"{{ "type":3, "data":{{"text":"{padding}"}},"timestamp":{}}}"#, NOON_MS + number)
        })
        .collect();
    let folder = TempDir::new().unwrap();
    let plain = folder.path().join("visit.json");
    std::fs::write(&plain, format!(" [\n{}\n]\n", events.join(" ,\n"))).unwrap();
    let compressed = folder.path().join("the same.json.gz");
    let mut encoder = GzEncoder::new(std::fs::File::create(&compressed).unwrap(), Compression::fast());
    encoder.write_all(&std::fs::read(&plain).unwrap()).unwrap();
    encoder.finish().unwrap();

    let first = succeed(&reel, &["import", plain.to_str().unwrap()]).await;
    assert!(first.contains("300 actions: 300 new"), "{first}");
    let again = succeed(&reel, &["import", compressed.to_str().unwrap()]).await;
    assert!(again.contains("300 actions: 0 new, 300 already stored"), "{again}");
    let stored = sessions(&reel).await;
    assert_eq!(stored.len(), 1);
    let played = reel.play_all(&stored[0].id).await;
    assert!(played.iter().all(|action| action.r#type == "rrweb"));
    assert_eq!(played.into_iter().map(|action| action.data).collect::<Vec<_>>(), events);
}

async fn a_malformed_line_is_named_and_what_comes_before_it_stays(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let line = |seq: i64| {
        format!(
            r#"{{"session":"s","seq":{seq},"timestamp":{},"type":"click","target":"x","data":{{}}}}"#,
            NOON_MS + seq
        )
    };
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("broken.jsonl");
    let write =
        |third: &str| std::fs::write(&file, [&line(1), &line(2), third, &line(4)].map(|l| format!("{l}\n")).concat());
    write("{\"session\":").unwrap();
    let path = file.to_str().unwrap();
    let output = run(&reel, &["import", path]).await;
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("broken.jsonl:3"), "{}", text(&output.stderr));
    assert_eq!(sessions(&reel).await[0].action_count, 2);

    write(&line(3)).unwrap();
    let mended = succeed(&reel, &["import", path]).await;
    assert!(mended.contains("4 actions: 2 new, 2 already stored"), "{mended}");

    let missing = run(&reel, &["import", "no such file"]).await;
    assert!(!missing.status.success());
    let unknown = run(&reel, &["play", &session_id(NOON_MS)]).await;
    assert!(!unknown.status.success() && text(&unknown.stderr).contains("no such session"));
}

#[tokio::test]
async fn the_demo_plays_back_what_it_recorded() {
    let output = Command::new(env!("CARGO_BIN_EXE_reel"))
        .args(["demo", "--once", "--listen", "127.0.0.1:0"])
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    assert!(shown.contains("Played 235 of 235 actions"), "{shown}");
    assert!(!Path::new("reel.db").exists(), "the demo leaves no database behind");
}
