//! Just enough HTTP/1.1, written by hand: the tests must see it break at exact bytes, which no server library allows.

use std::io::{Error, ErrorKind, Result};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::Instant;

/// More than Kong sends: its own limit is four buffers of 8 KiB.
const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_BODY_BYTES: usize = 256 << 20;

/// Between two pieces of a split write. Long enough for the reader to be woken in between, now and then.
const SPLIT_PAUSE: Duration = Duration::from_micros(200);

/// A request as it came.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: String,
    /// Path and query.
    pub(super) target: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// HTTP/1.1, so that chunked answers are understood.
    pub(super) takes_chunks: bool,
    pub(super) keep_alive: bool,
}

impl Request {
    /// The first header of that name.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// The target without its query.
    pub(super) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }
}

pub(super) fn header<'h>(headers: &'h [(String, String)], name: &str) -> Option<&'h str> {
    headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// A client's connection.
#[derive(Debug)]
pub(super) struct Connection {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// Writes go out in pieces of this size.
    pub(super) split: Option<usize>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> Result<Self> {
        // Every event leaves when it is due, not when the one before was acknowledged.
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        Ok(Self { reader: BufReader::with_capacity(64 << 10, reader), writer, split: None })
    }

    /// The next request; `None` when the client closed in between.
    pub(super) async fn read_request(&mut self) -> Result<Option<Request>> {
        let Some(head) = self.read_head().await? else { return Ok(None) };
        let mut request = parse_head(&head)?;
        let expects = request.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"));
        let length = request.header("content-length").map(str::parse::<usize>).transpose().map_err(|_| bad("content-length"))?;
        let chunked = request.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
        if expects {
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        if chunked {
            request.body = self.read_chunks().await?;
        } else if let Some(length) = length.filter(|length| *length > 0) {
            if length > MAX_BODY_BYTES {
                return Err(bad("body too large"));
            }
            request.body.resize(length, 0);
            self.reader.read_exact(&mut request.body).await?;
        }
        Ok(Some(request))
    }

    async fn read_head(&mut self) -> Result<Option<Vec<u8>>> {
        let mut head = Vec::new();
        loop {
            let before = head.len();
            if self.reader.read_until(b'\n', &mut head).await? == 0 {
                return if head.is_empty() { Ok(None) } else { Err(ErrorKind::UnexpectedEof.into()) };
            }
            if head.len() - before <= 2 && head.ends_with(b"\n") && before > 0 {
                return Ok(Some(head));
            }
            if head.len() > MAX_HEAD_BYTES {
                return Err(bad("head too large"));
            }
        }
    }

    async fn read_chunks(&mut self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line).await?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| bad("chunk size"))?;
            if body.len() + size > MAX_BODY_BYTES {
                return Err(bad("body too large"));
            }
            let start = body.len();
            body.resize(start + size, 0);
            self.reader.read_exact(&mut body[start..]).await?;
            line.clear();
            // The line break behind the data; behind the last chunk, trailers and an empty line.
            while self.reader.read_line(&mut line).await? > 0 && size == 0 && !line.trim().is_empty() {
                line.clear();
            }
            if size == 0 {
                return Ok(body);
            }
        }
    }

    /// Writes all of it now.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(split) = self.split else { return self.writer.write_all(bytes).await };
        for piece in bytes.chunks(split.max(1)) {
            self.writer.write_all(piece).await?;
            tokio::time::sleep(SPLIT_PAUSE).await;
        }
        Ok(())
    }

    /// Waits; an error when the client goes away meanwhile.
    pub(super) async fn wait_until(&mut self, due: Instant) -> Result<()> {
        if due <= Instant::now() {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep_until(due) => return Ok(()),
            ahead = self.reader.fill_buf() => {
                if ahead?.is_empty() {
                    return Err(ErrorKind::ConnectionAborted.into());
                }
            }
        }
        // The next request is here already, so the client is too.
        tokio::time::sleep_until(due).await;
        Ok(())
    }

    /// Ends the connection with a reset: what the client has not read yet is lost.
    pub(super) fn reset(self) -> Result<()> {
        self.writer.as_ref().set_zero_linger()
    }
}

fn bad(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what.to_owned())
}

fn parse_head(head: &[u8]) -> Result<Request> {
    let mut headers = [httparse::EMPTY_HEADER; 128];
    let mut parsed = httparse::Request::new(&mut headers);
    if !parsed.parse(head).map_err(|error| bad(&error.to_string()))?.is_complete() {
        return Err(bad("incomplete head"));
    }
    let takes_chunks = parsed.version == Some(1);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers: Vec<(String, String)> =
        parsed.headers.iter().map(|header| (header.name.to_owned(), text(header.value))).collect();
    let keep_alive = match header(&headers, "connection") {
        Some(value) => value.eq_ignore_ascii_case("keep-alive") || (takes_chunks && !value.eq_ignore_ascii_case("close")),
        None => takes_chunks,
    };
    Ok(Request {
        method: parsed.method.unwrap_or_default().to_owned(),
        target: parsed.path.unwrap_or_default().to_owned(),
        headers,
        body: Vec::new(),
        takes_chunks,
        keep_alive,
    })
}
