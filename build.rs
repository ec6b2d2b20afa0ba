//! Compiles the protos with protox, so that nobody needs a protoc.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;
use tonic_prost_build::manual;

const FILES: [&str; 8] = [
    "reel/v1/action.proto",
    "reel/v1/analytics.proto",
    "reel/v1/filter.proto",
    "reel/v1/ingest.proto",
    "reel/v1/playback.proto",
    "reel/v1/retention.proto",
    "reel/v1/session.proto",
    "reel/v1/user.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("reel_descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // What users did must not end up in a log because somebody printed a message.
        .skip_debug(["reel.v1.Action", "reel.v1.User"])
        .compile_fds(descriptors)?;
    generate_servers();
    Ok(())
}

/// Two servers once more, which `src/rpc` uses: playback's with a codec that writes pages straight from rows, and ingest's with
/// messages from which actions need not be copied.
fn generate_servers() {
    let play_session = manual::Method::builder()
        .name("play_session")
        .route_name("PlaySession")
        .input_type("crate::proto::PlaySessionRequest")
        .output_type("crate::convert::PlaybackMessage")
        .codec_path("crate::rpc::codec::PlaySessionCodec")
        .server_streaming()
        .build();
    let service = manual::Service::builder().name("PlaybackService").package("reel.v1").method(play_session).build();
    let method = |name: &str, route_name: &str, input: &str, output: &str| {
        manual::Method::builder()
            .name(name)
            .route_name(route_name)
            .input_type(input)
            .output_type(format!("crate::proto::{output}"))
            .codec_path("tonic_prost::ProstCodec")
    };
    let upload = "crate::convert::UploadMessage";
    let ingest = manual::Service::builder()
        .name("IngestService")
        .package("reel.v1")
        .method(method("record_actions", "RecordActions", upload, "RecordActionsResponse").client_streaming().build())
        .method(
            method("stream_actions", "StreamActions", upload, "StreamActionsResponse")
                .client_streaming()
                .server_streaming()
                .build(),
        )
        .method(
            method(
                "get_ingest_cursor",
                "GetIngestCursor",
                "crate::proto::GetIngestCursorRequest",
                "GetIngestCursorResponse",
            )
            .build(),
        )
        .build();
    manual::Builder::new().build_client(false).compile(&[service, ingest]);
}
