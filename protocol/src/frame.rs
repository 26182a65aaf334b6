//! Framing on a byte stream: a little-endian `u32` length, then that many bytes of postcard.

use serde::{Serialize, de::DeserializeOwned};

/// Longest payload accepted, in bytes. A config.json may hold megabytes of environment and mounts;
/// beyond 16 MiB it is an attack or a mistake, and the receiver must not allocate it.
pub const MAX_PAYLOAD: usize = 16 << 20;

const HEADER: usize = 4;

/// Why a frame could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The sender wants to send, or the peer announces, more than [`MAX_PAYLOAD`].
    #[error("a message of {length} bytes exceeds the limit of {MAX_PAYLOAD} bytes")]
    TooLong {
        /// Length in question.
        length: usize,
    },
    /// The message has no encoding.
    #[error("cannot encode a message")]
    Encode(#[source] postcard::Error),
    /// The payload is not a message of the expected type.
    #[error("cannot decode a message of {length} bytes")]
    Decode {
        /// Length of the payload.
        length: usize,
        /// What the decoder says.
        #[source]
        source: postcard::Error,
    },
}

/// One message as a frame, ready to be written.
///
/// # Errors
/// When the message exceeds [`MAX_PAYLOAD`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = postcard::to_extend(message, vec![0; HEADER]).map_err(FrameError::Encode)?;
    let length = frame.len() - HEADER;
    let header = u32::try_from(length)
        .ok()
        .filter(|_| length <= MAX_PAYLOAD)
        .ok_or(FrameError::TooLong { length })?;
    frame[..HEADER].copy_from_slice(&header.to_le_bytes());
    Ok(frame)
}

/// Collects bytes as they arrive and gives back whole messages.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    /// An empty decoder.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Adds bytes in the order of their arrival.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message, `None` when more bytes are needed.
    ///
    /// # Errors
    /// When the announced length is too long or the payload is no `T`. The stream is then of no
    /// further use, since its framing can no longer be trusted.
    pub fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some(header) = self.bytes.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_le_bytes(*header)).unwrap_or(usize::MAX);
        if length > MAX_PAYLOAD {
            return Err(FrameError::TooLong { length });
        }
        let Some(payload) = self.bytes.get(HEADER..HEADER + length) else {
            return Ok(None);
        };
        let message =
            postcard::from_bytes(payload).map_err(|source| FrameError::Decode { length, source })?;
        self.bytes.drain(..HEADER + length);
        Ok(Some(message))
    }

    /// How many bytes the next message lacks at least: what a reader that must not read past a frame
    /// (raw bytes follow a stream header) may ask for. Zero when a whole frame is there.
    pub fn missing(&self) -> usize {
        let Some(header) = self.bytes.first_chunk::<HEADER>() else {
            return HEADER - self.bytes.len();
        };
        let length = usize::try_from(u32::from_le_bytes(*header)).unwrap_or(usize::MAX);
        HEADER.saturating_add(length).saturating_sub(self.bytes.len())
    }

    /// Whether bytes of an unfinished message are waiting.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{GuestMessage, ProcessId};

    #[test]
    fn a_message_split_at_every_byte_arrives_whole() {
        let message = GuestMessage::Failed {
            process: ProcessId(7),
            message: "no such file".into(),
        };
        let frame = encode(&message).unwrap();
        let mut decoder = Decoder::new();
        for (sent, byte) in frame.iter().enumerate() {
            assert_eq!(
                decoder.next_message::<GuestMessage>().unwrap(),
                None,
                "after {sent} bytes"
            );
            assert!(decoder.missing() > 0);
            decoder.push(&[*byte]);
        }
        assert_eq!(decoder.missing(), 0);
        assert_eq!(decoder.next_message::<GuestMessage>().unwrap(), Some(message));
        assert!(decoder.is_empty());
    }

    #[test]
    fn an_announced_length_beyond_the_limit_is_refused_before_it_arrives() {
        let mut decoder = Decoder::new();
        decoder.push(&u32::MAX.to_le_bytes());
        assert!(matches!(
            decoder.next_message::<GuestMessage>(),
            Err(FrameError::TooLong { .. })
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let mut decoder = Decoder::new();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_message::<GuestMessage>() {}
        }

        #[test]
        fn every_payload_makes_the_round_trip(text in ".*", id in any::<u32>()) {
            let message = GuestMessage::Failed { process: ProcessId(id), message: text };
            let mut decoder = Decoder::new();
            decoder.push(&encode(&message).unwrap());
            prop_assert_eq!(decoder.next_message::<GuestMessage>().unwrap(), Some(message));
        }
    }
}
