//! The process that is looked at, by its HTTP endpoint. Whatever answers there: how long it may take and
//! how much it may say has a limit.

use std::{io, str::FromStr, time::Duration};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    client::conn::http1::{self, SendRequest},
    header::HOST,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};
use tokio_util::task::AbortOnDropHandle;

use super::samples::{InvalidSample, Samples};
use crate::http::report::Report;

/// How long both answers may take together.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// The most bytes of an answer: some ten times what a process can have to tell.
const ANSWER_MAX: usize = 4 * 1024 * 1024;

/// The most bytes of an answer's head.
const HEAD_MAX: usize = 16 * 1024;

/// Where a process tells of itself, as `HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source(String);

/// What a process has told at one time.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) report: Report,
    pub(super) samples: Samples,
}

/// Why there is no answer that makes sense.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourceError {
    #[error("nobody can be reached there")]
    Unreachable(#[source] io::Error),
    #[error("no answer came within {} s", ANSWER_TIME.as_secs())]
    TooLate,
    #[error("the answer breaks off")]
    BrokenOff(#[source] hyper::Error),
    #[error("{path} is answered with {status}: that is no cairn, or one of another version")]
    Refused { path: &'static str, status: StatusCode },
    #[error("the answer to {path} has more than {} bytes", ANSWER_MAX)]
    TooLong { path: &'static str },
    #[error("what is told of operations is none of cairn's reports")]
    Report(#[source] serde_json::Error),
    #[error("what is told as metrics is none")]
    Metrics(#[source] InvalidSample),
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.strip_prefix("http://").unwrap_or(text);
        let address = address.strip_suffix('/').unwrap_or(address);
        let is_host = |host: &str| {
            !host.is_empty() && !host.contains(|c: char| "/?#@".contains(c) || c.is_whitespace())
        };
        let parts = address.rsplit_once(':');
        match parts.and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?))) {
            Some((host, 1..)) if is_host(host) => Ok(Self(address.to_owned())),
            _ => Err(format!("{text:?} is no address to look at: expected HOST:PORT")),
        }
    }
}

impl Source {
    /// The URL.
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.0)
    }

    /// What the process tells now.
    pub(super) async fn ask(&self) -> Result<Told, SourceError> {
        timeout(ANSWER_TIME, self.ask_both()).await.map_err(|_| SourceError::TooLate)?
    }

    async fn ask_both(&self) -> Result<Told, SourceError> {
        let stream = TcpStream::connect(&self.0).await.map_err(SourceError::Unreachable)?;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(SourceError::BrokenOff)?;
        // What goes wrong with it is told to who asks.
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let report = self.get(&mut sender, "/operations").await?;
        let report = serde_json::from_slice(&report).map_err(SourceError::Report)?;
        let samples = self.get(&mut sender, "/metrics").await?;
        let samples = String::from_utf8_lossy(&samples);
        let samples = Samples::parse(&samples).map_err(SourceError::Metrics)?;
        Ok(Told { report, samples })
    }

    async fn get(
        &self,
        sender: &mut SendRequest<Empty<Bytes>>,
        path: &'static str,
    ) -> Result<Bytes, SourceError> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = path.parse().expect("it is a path");
        if let Ok(host) = self.0.parse() {
            request.headers_mut().insert(HOST, host);
        }
        sender.ready().await.map_err(SourceError::BrokenOff)?;
        let answer = sender.send_request(request).await.map_err(SourceError::BrokenOff)?;
        let status = answer.status();
        if status != StatusCode::OK {
            return Err(SourceError::Refused { path, status });
        }
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
        let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => SourceError::BrokenOff(*error),
            Err(_) => SourceError::TooLong { path },
        })?;
        Ok(body.to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    #[test]
    fn an_address_may_be_a_url() {
        for text in ["127.0.0.1:9090", "http://127.0.0.1:9090", "http://127.0.0.1:9090/"] {
            assert_eq!(text.parse::<Source>().unwrap().url(), "http://127.0.0.1:9090");
        }
        assert_eq!("[::1]:80".parse(), Ok(Source("[::1]:80".to_owned())));
        for text in ["", "host", "host:", ":80", "host:0", "host:99999", "https://host:1", "a/b:1"]
        {
            let error = text.parse::<Source>().unwrap_err();
            assert!(error.contains("HOST:PORT"), "{error}");
        }
    }

    /// What comes of a peer that answers each connection with these bytes.
    async fn asked(answer: Vec<u8>) -> SourceError {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let source = Source(listener.local_addr().unwrap().to_string());
        let peer = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(&answer).await;
        });
        let error = source.ask().await.unwrap_err();
        peer.abort();
        error
    }

    #[tokio::test]
    async fn whatever_answers_there_is_an_error_at_the_worst() {
        let ok = |body: &[u8]| [b"HTTP/1.1 200 OK\r\n\r\n", body].concat();
        assert!(matches!(asked(Vec::new()).await, SourceError::BrokenOff(_)));
        assert!(matches!(asked(b"SSH-2.0-x\r\n".to_vec()).await, SourceError::BrokenOff(_)));
        let long = b"HTTP/1.1 200 OK\r\nx: ".iter().copied().chain([b'x'; 100_000]).collect();
        assert!(matches!(asked(long).await, SourceError::BrokenOff(_)));
        let refused = asked(b"HTTP/1.1 404 Not Found\r\n\r\n".to_vec()).await;
        assert!(matches!(refused, SourceError::Refused { path: "/operations", .. }));
        assert!(matches!(asked(ok(b"{}")).await, SourceError::Report(_)));
        let endless = asked(ok(&vec![b' '; ANSWER_MAX + 1])).await;
        assert!(matches!(endless, SourceError::TooLong { .. }), "{endless}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let source = Source(listener.local_addr().unwrap().to_string());
        assert!(matches!(source.ask().await, Err(SourceError::TooLate)));
    }
}
