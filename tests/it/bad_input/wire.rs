//! HTTP/2 by hand: what no client library would send can be sent, and every answer is seen as it is.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::{RecvStream, SendStream, client::SendRequest};
use http::{HeaderMap, StatusCode};
use tokio::net::TcpStream;
use tonic::Status;

/// A connection.
#[derive(Clone)]
pub struct Wire {
    sender: SendRequest<Bytes>,
    address: SocketAddr,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub http_status: StatusCode,
    pub headers: HeaderMap,
    /// All messages, uncompressed.
    pub messages: Vec<Bytes>,
    /// What the trailers say, or the headers where there is nothing else. None where the answer is not gRPC's.
    pub status: Option<Status>,
}

/// The head of a request. What is not said is as gRPC wants it.
#[derive(Clone, Debug)]
pub struct Head {
    pub path: String,
    pub content_type: &'static str,
    pub headers: Vec<(&'static str, String)>,
}

impl Head {
    pub fn of(path: &str) -> Self {
        let path = path.to_owned();
        Self { path, content_type: "application/grpc", headers: Vec::new() }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

impl Wire {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        Self { sender, address }
    }

    /// Sends a whole request, and gives the whole answer.
    pub async fn call(&self, head: Head, body: impl Into<Bytes>) -> Result<Answer, h2::Error> {
        let (response, mut sending) = self.begin(head).await?;
        // Whoever is refused early need not be able to say everything.
        let _ = sending.send_data(body.into(), true);
        let response = response.await?;
        let (http_status, headers) = (response.status(), response.headers().clone());
        let mut body = response.into_body();
        let data = read_to_end(&mut body).await?;
        let trailers = body.trailers().await?;
        let status = trailers.as_ref().and_then(Status::from_header_map).or_else(|| Status::from_header_map(&headers));
        Ok(Answer { http_status, headers, messages: messages(&data), status })
    }

    /// Sends a head, and leaves it to the caller what comes after it.
    pub async fn begin(&self, head: Head) -> Result<(h2::client::ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut request = http::Request::builder()
            .method(http::Method::POST)
            .uri(format!("http://{}{}", self.address, head.path))
            .header("te", "trailers")
            .header("content-type", head.content_type);
        for (name, value) in head.headers {
            request = request.header(name, value);
        }
        let mut sender = self.sender.clone().ready().await?;
        sender.send_request(request.body(()).unwrap(), false)
    }
}

async fn read_to_end(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        all.extend_from_slice(&data);
        body.flow_control().release_capacity(data.len())?;
    }
    Ok(all)
}

/// A message with gRPC's header before it: a flag, which is 1 where the message is compressed, and its length.
pub fn frame(flag: u8, message: &[u8]) -> Vec<u8> {
    let mut framed = frame_header(flag, message.len());
    framed.extend_from_slice(message);
    framed
}

/// The header of a message of this length.
pub fn frame_header(flag: u8, length: usize) -> Vec<u8> {
    let mut header = vec![flag];
    header.extend(u32::try_from(length).unwrap().to_be_bytes());
    header
}

fn messages(mut data: &[u8]) -> Vec<Bytes> {
    let mut messages = Vec::new();
    while let Some((header, rest)) = data.split_first_chunk::<5>() {
        let [flag, length @ ..] = *header;
        assert_eq!(flag, 0, "nobody asked for compression");
        let (message, rest) = rest.split_at(usize::try_from(u32::from_be_bytes(length)).unwrap());
        messages.push(Bytes::copy_from_slice(message));
        data = rest;
    }
    assert!(data.is_empty(), "the answer ends with a whole message");
    messages
}
