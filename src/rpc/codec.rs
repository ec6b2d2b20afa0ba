//! How `PlaySession` writes its messages. See [`PlaybackMessage`] for why.

use tonic::{
    Status,
    codec::{Codec, EncodeBuf, Encoder},
};
use tonic_prost::ProstDecoder;

use crate::{convert::PlaybackMessage, proto::PlaySessionRequest};

/// Takes the requests as always, and gives playback's own messages.
#[derive(Default)]
pub(crate) struct PlaySessionCodec;

impl Codec for PlaySessionCodec {
    type Encode = PlaybackMessage;
    type Decode = PlaySessionRequest;
    type Encoder = PlaySessionEncoder;
    type Decoder = ProstDecoder<PlaySessionRequest>;

    fn encoder(&mut self) -> PlaySessionEncoder {
        PlaySessionEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::default()
    }
}

pub(crate) struct PlaySessionEncoder;

impl Encoder for PlaySessionEncoder {
    type Item = PlaybackMessage;
    type Error = Status;

    fn encode(&mut self, message: PlaybackMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        // At once: a buffer that grows is copied each time.
        buffer.reserve(message.encoded_len());
        message.encode(buffer);
        Ok(())
    }
}
