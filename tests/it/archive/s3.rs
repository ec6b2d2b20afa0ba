//! An archive in a bucket, on an S3-compatible server.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::Stdio,
    sync::Arc,
};

use object_store::{ClientOptions, RetryConfig, aws::AmazonS3Builder, path::Path};
use rand::{RngExt as _, distr::Alphanumeric};
use reel::{
    archive::Archive,
    proto::{DeleteSessionRequest, SessionEnd, SessionStart},
    store::Store,
};
use tokio::process::{Child, Command};

use super::{archive_all, play_each, record_sessions, tidy};
use crate::{
    crash::process::{free_port, reel as reel_command},
    exact::wait_until_indexed,
    harness::{
        Backend, NOON_MS, Reel, TestDatabase, action, batch, end, eventually, play, reason, service_args, session_id,
        start,
    },
    on_both_databases,
};

on_both_databases!(a_bucket_is_as_good_as_a_folder);

const BUCKET: &str = "reel-test";

/// Killed when it is dropped.
struct Server {
    port: u16,
    child: Child,
}

impl Server {
    async fn start() -> Self {
        let port = free_port();
        let installed = std::env::var("REEL_TEST_S3_SERVER").expect("tests/run says where the server is");
        let mut command = Command::new("python3");
        command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()]).env("PYTHONPATH", installed);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
        let server = Self { port, child };
        eventually("the bucket is made", async || server.put_bucket().unwrap_or(false)).await;
        server
    }

    fn put_bucket(&self) -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        write!(stream, "PUT /{BUCKET} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.lines().next().is_some_and(|line| line.contains(" 200 ")))
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn archive(&self) -> Archive {
        // As `Archive::open` does it, with what it takes from the environment said here.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let retry = RetryConfig { max_retries: 1, ..RetryConfig::default() };
        let storage = AmazonS3Builder::new()
            .with_bucket_name(BUCKET)
            .with_endpoint(self.url())
            .with_region("us-east-1")
            .with_access_key_id("key")
            .with_secret_access_key("secret")
            .with_client_options(ClientOptions::new().with_allow_http(true))
            .with_retry(retry)
            .build()
            .unwrap();
        Archive::new(Arc::new(storage), Path::from("some/prefix"))
    }
}

async fn a_bucket_is_as_good_as_a_folder(backend: Backend) {
    let (database, mut server) = (TestDatabase::new(backend).await, Server::start().await);
    let store = Store::open(&database.url.parse().unwrap(), 4).await.unwrap();
    let reel = Reel::start_with(store.with_archive(Some(server.archive())), service_args(&[])).await;
    reel.wait_until_serving().await;
    let mut ids = record_sessions(&reel, &database, 3).await;
    // One so large, and so hard to compress, that its segment is sent in parts.
    let large = session_id(NOON_MS);
    let mut requests = vec![start(&large, SessionStart::default())];
    for seq in 1..=24 {
        let noise: String = rand::rng().sample_iter(Alphanumeric).take(700_000).map(char::from).collect();
        let mut action = action(seq, "snapshot", "");
        action.data = format!("\"{noise}\"");
        requests.push(batch("", "", seq, vec![action]));
    }
    requests.push(end("", SessionEnd::default()));
    reel.record(requests).await.unwrap();
    ids.push(large);
    wait_until_indexed(&database).await;
    let mut before = play_each(&reel, &ids).await;
    archive_all(&reel).await;
    assert_eq!(database.number("SELECT count(*) FROM actions").await, 0);
    assert!(database.number("SELECT bytes FROM segments").await > 10 << 20);
    assert_eq!(play_each(&reel, &ids).await, before);

    // As an operator says where it is.
    let arguments =
        ["archive", "--verify", "--archive", &format!("s3://{BUCKET}/some/prefix"), "--database-url", &database.url];
    let mut verify = reel_command(&arguments);
    verify.env("AWS_ENDPOINT_URL", server.url()).env("AWS_ALLOW_HTTP", "true").env("AWS_REGION", "us-east-1");
    verify.env("AWS_ACCESS_KEY_ID", "key").env("AWS_SECRET_ACCESS_KEY", "s3cr3t");
    let output = verify.output().await.unwrap();
    let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 segments"), "{said}{told}");
    assert!(!told.contains("s3cr3t"));

    let request = DeleteSessionRequest { session_id: ids.remove(3) };
    reel.sessions().delete_session(request).await.unwrap();
    before.remove(3);
    tidy(&reel).await;
    assert!(database.number("SELECT bytes FROM segments").await < 1 << 20);
    assert_eq!(play_each(&reel, &ids).await, before);
    server.child.kill().await.unwrap();
    let status = reel.play(play(&ids[0])).await.err().unwrap();
    assert_eq!((status.code(), reason(&status).as_str()), (tonic::Code::Unavailable, "ARCHIVE_UNAVAILABLE"));
    reel.stop().await;
}
