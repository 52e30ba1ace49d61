//! A server of bytes: it hears one request a connection and answers with whatever the test wants.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// Stops when it is dropped.
pub(crate) struct Raw {
    port: u16,
    heard: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Raw {
    /// Answers each request with what this function makes of it.
    pub(crate) async fn new<F, T>(answer: F) -> Self
    where
        F: Fn(String, TcpStream) -> T + Send + Sync + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&heard);
        let answer = Arc::new(answer);
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                tokio::spawn(async move {
                    let request = request(&mut stream).await;
                    log.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
                    answer(request, stream).await;
                });
            }
        });
        Self { port, heard, task }
    }

    /// Answers every request with these bytes and ends the connection.
    pub(crate) async fn bytes(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = Arc::new(bytes.into());
        Self::new(move |_, mut stream| {
            let bytes = Arc::clone(&bytes);
            async move {
                // The other side may have heard enough before we have said all.
                drop(stream.write_all(&bytes).await);
                drop(stream.shutdown().await);
            }
        })
        .await
    }

    /// Answers every request with this status, these header lines and this body.
    pub(crate) async fn page(status: &str, headers: &str, body: &str) -> Self {
        Self::bytes(page(status, headers, body)).await
    }

    /// A server that begins a good answer and says a byte of it every now and then, for ever.
    pub(crate) async fn drip() -> Self {
        Self::new(|_, mut stream| async move {
            let mut next = "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n".to_owned();
            while stream.write_all(next.as_bytes()).await.is_ok() {
                next = " ".into();
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Every request, whole, in order of arrival.
    pub(crate) fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Raw({})", self.port)
    }
}

/// An answer of HTTP/1.1 that closes.
pub(crate) fn page(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

/// A URL at which nobody listens.
pub(crate) async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    format!("http://{}/", listener.local_addr().expect("it is bound"))
}

/// Head and body; what came, when the other side gives up before.
async fn request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        // A hello of TLS, which has no end that we know.
        if bytes.first() == Some(&0x16) {
            return text;
        }
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
            });
            if body.len() >= length.unwrap_or(0) {
                return text;
            }
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return text,
            Ok(read) => bytes.extend_from_slice(&buffer[..read]),
        }
    }
}
