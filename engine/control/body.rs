//! Reads the bodies of requests, within bounds.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::{Request, StatusCode, header};
use operators::config::format_size;

use super::predict::discard;
use super::routes::Refusal;

/// A body that has not come completely in this time is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long what is too large is read on and thrown away, so that its sender gets to reading the answer.
const REFUSED_TIME: Duration = Duration::from_secs(5);

/// The whole body, of at most `most` bytes.
pub(super) async fn read(body: &mut Incoming, most: u64) -> Result<Bytes, Refusal> {
    let read = if body.size_hint().lower() > most {
        Err(too_large(most))
    } else {
        tokio::time::timeout(PATIENCE, collect(body, most)).await.unwrap_or_else(|_| {
            Err(Refusal::new(
                StatusCode::REQUEST_TIMEOUT,
                format!("the body did not come within {PATIENCE:?}"),
                "send it faster",
            ))
        })
    };
    if read.as_ref().is_err_and(|refusal| refusal.status == StatusCode::PAYLOAD_TOO_LARGE) {
        let _ = tokio::time::timeout(REFUSED_TIME, discard(body)).await;
    }
    read
}

async fn collect(body: &mut Incoming, most: u64) -> Result<Bytes, Refusal> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Refusal::new(StatusCode::BAD_REQUEST, format!("the body broke off: {error}"), "send all of it")
        })?;
        if let Ok(data) = frame.into_data() {
            if (bytes.len() + data.len()) as u64 > most {
                return Err(too_large(most));
            }
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes.freeze())
}

/// How much of the body of somebody who may not ask is read and thrown away, and how long that may take.
const UNWANTED_BYTES: usize = 256 << 10;
const UNWANTED_TIME: Duration = Duration::from_secs(1);

/// Reads on a little where the body is of no use: whoever writes before they read would never see the answer.
pub(super) async fn throw_away(request: &mut Request<Incoming>) {
    // Whoever asks before they write is told right now.
    if request.body().is_end_stream() || request.headers().contains_key(header::EXPECT) {
        return;
    }
    let reading = async {
        let mut read = 0;
        while let Some(Ok(frame)) = request.body_mut().frame().await {
            read += frame.data_ref().map_or(0, Bytes::len);
            if read > UNWANTED_BYTES {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(UNWANTED_TIME, reading).await;
}

fn too_large(most: u64) -> Refusal {
    let message = format!("the body has more than {}", format_size(most));
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, message, "make it smaller")
}
