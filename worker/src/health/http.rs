//! The two routes over HTTP, and nothing else: GET only, no body read, one answer per connection, few at once, a
//! deadline for each.

use std::{
    convert::Infallible,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::{net::TcpStream, task::JoinSet};

use super::Health;

/// P10: most connections at once; others wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 16;
/// The whole life of a connection, however slowly its client speaks.
const DEADLINE: Duration = Duration::from_secs(5);
/// Longest request head (hyper's own minimum).
const MAX_HEAD: usize = 8 * 1024;
const NAP: Duration = Duration::from_millis(100);

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const GET: HeaderValue = HeaderValue::from_static("GET");

/// The port, bound, and what is told there.
#[derive(Debug)]
pub(crate) struct Door {
    listener: TcpListener,
    health: Arc<Health>,
}

impl Door {
    /// Binds `address`: before anything begins, so that a port that is taken is noticed at once.
    pub(crate) fn open(address: SocketAddr, health: Arc<Health>) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        tracing::info!("health answers on http://{address}/livez and http://{address}/readyz");
        Ok(Self { listener, health })
    }
}

/// Answers until dropped. `silent`: for how long the main runtime has not ticked.
pub(crate) async fn serve(door: Door, silent: impl Fn() -> Duration + Clone + Send + Sync + 'static) {
    let Door { listener, health } = door;
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "health does not answer"),
    };
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                let answer = converse(stream, Arc::clone(&health), silent.clone());
                connections.spawn(tokio::time::timeout(DEADLINE, answer));
            }
            // No descriptors left, most likely: they may come back.
            Err(error) => {
                tracing::warn!(%error, "health cannot take a connection");
                tokio::time::sleep(NAP).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn converse(stream: TcpStream, health: Arc<Health>, silent: impl Fn() -> Duration) {
    let answers = service_fn(|request: Request<Incoming>| {
        std::future::ready(Ok::<_, Infallible>(answer(&request, &health, silent())))
    });
    let ended = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), answers)
        .await;
    if let Err(error) = ended {
        tracing::debug!(%error, "a health request broke off");
    }
}

fn answer(request: &Request<Incoming>, health: &Health, silent: Duration) -> Response<String> {
    let path = request.uri().path();
    match (request.method(), path) {
        (&Method::GET, "/livez") => {
            let live = health.live(silent);
            json(live.alive, &live)
        }
        (&Method::GET, "/readyz") => {
            let ready = health.ready(silent);
            json(ready.ready, &ready)
        }
        (_, "/livez" | "/readyz") => {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
            response.headers_mut().insert(ALLOW, GET);
            response
        }
        _ => plain(StatusCode::NOT_FOUND, "there are /livez and /readyz\n".to_owned()),
    }
}

fn json(good: bool, said: &impl Serialize) -> Response<String> {
    let status = if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut response = plain(status, serde_json::to_string(said).unwrap_or_default());
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

fn plain(status: StatusCode, text: String) -> Response<String> {
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    response.headers_mut().insert(CACHE_CONTROL, NO_STORE);
    response
}
