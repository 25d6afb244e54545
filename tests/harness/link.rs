//! A network cable with a switch: a TCP proxy between clients and a server that can fail in the ways
//! networks do.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::port::free_port;

/// Replies count as complete after this much silence; see [`Mode::DropReplies`].
const SILENCE: Duration = Duration::from_millis(10);
const CHUNK: usize = 64 * 1024;
const CHUNKS_IN_FLIGHT: usize = 64;

/// What the link does with connections and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Forwards everything.
    Pass,
    /// The server's host is up, the server is not: open connections are reset, new ones refused.
    Refuse,
    /// The network is partitioned: connections are accepted and stay open, but no byte moves. What was sent
    /// arrives when the mode changes, as TCP's retransmissions would have it.
    Blackhole,
    /// Every byte takes this long, each way.
    Delay(Duration),
    /// Requests arrive and are executed; their replies are swallowed, and then the connection is closed. The client cannot
    /// know whether its command was executed.
    DropReplies,
}

/// How much has gone through a [`Link`] since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkCounters {
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now.
    pub open: u64,
    /// Bytes delivered to the server.
    pub request_bytes: u64,
    /// Bytes delivered to clients.
    pub reply_bytes: u64,
    /// Bytes of replies swallowed by [`Mode::DropReplies`].
    pub swallowed_bytes: u64,
}

/// A proxy on a loopback port of its own. Dropping it closes the port and every connection.
#[derive(Debug)]
pub struct Link {
    port: u16,
    control: watch::Sender<Control>,
    applied: watch::Receiver<u64>,
    counters: Arc<Counters>,
    _supervisor: JoinSet<()>,
}

#[derive(Debug, Clone, Copy)]
struct Control {
    revision: u64,
    mode: Mode,
    /// Connections of an older generation are cut.
    generation: u64,
}

#[derive(Debug, Default)]
struct Counters {
    connections: AtomicU64,
    open: AtomicU64,
    request_bytes: AtomicU64,
    reply_bytes: AtomicU64,
    swallowed_bytes: AtomicU64,
}

impl Link {
    /// A link to a server on a loopback port. It passes everything until told otherwise.
    pub async fn to(server: u16) -> Self {
        let (port, listener) = loop {
            let port = free_port();
            if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
                break (port, listener);
            }
        };
        let (control, orders) = watch::channel(Control {
            revision: 0,
            mode: Mode::Pass,
            generation: 0,
        });
        let (done, applied) = watch::channel(0);
        let counters = Arc::new(Counters::default());
        let mut supervisor = JoinSet::new();
        supervisor.spawn(supervise(
            Some(listener),
            port,
            server,
            orders,
            done,
            Arc::clone(&counters),
        ));
        Self {
            port,
            control,
            applied,
            counters,
            _supervisor: supervisor,
        }
    }

    /// The port for clients.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL for clients; for a server with a password see [`RedisServer::url_through`](crate::RedisServer::url_through).
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Changes the mode, and returns when it is in force.
    pub async fn set(&self, mode: Mode) {
        self.order(|control| {
            control.mode = mode;
            control.generation += u64::from(mode == Mode::Refuse);
        })
        .await;
    }

    /// Resets every open connection, and returns when all are gone. New ones fare as the mode says.
    pub async fn cut(&self) {
        self.order(|control| control.generation += 1).await;
    }

    /// What has gone through so far.
    pub fn counters(&self) -> LinkCounters {
        LinkCounters {
            connections: self.counters.connections.load(Relaxed),
            open: self.counters.open.load(Relaxed),
            request_bytes: self.counters.request_bytes.load(Relaxed),
            reply_bytes: self.counters.reply_bytes.load(Relaxed),
            swallowed_bytes: self.counters.swallowed_bytes.load(Relaxed),
        }
    }

    async fn order(&self, change: impl FnOnce(&mut Control)) {
        let mut revision = 0;
        self.control.send_modify(|control| {
            change(control);
            control.revision += 1;
            revision = control.revision;
        });
        self.applied
            .clone()
            .wait_for(|applied| *applied >= revision)
            .await
            .expect("the link is running");
    }
}

/// Accepts connections and carries out orders, one at a time: an order is reported as applied only when
/// the port and the old connections are as it says.
async fn supervise(
    mut listener: Option<TcpListener>,
    port: u16,
    server: u16,
    mut orders: watch::Receiver<Control>,
    done: watch::Sender<u64>,
    counters: Arc<Counters>,
) {
    let mut generation = 0;
    let mut connections = JoinSet::new();
    loop {
        let order = *orders.borrow_and_update();
        if order.mode == Mode::Refuse {
            listener = None;
        } else if listener.is_none() {
            listener = Some(bind_again(port).await);
        }
        if order.generation != generation {
            generation = order.generation;
            while connections.join_next().await.is_some() {} // each sees the new generation and ends
        }
        done.send_replace(order.revision);

        tokio::select! {
            changed = orders.changed() => {
                if changed.is_err() {
                    return; // the Link was dropped
                }
            }
            Some(client) = accept(listener.as_ref()) => {
                counters.connections.fetch_add(1, Relaxed);
                let connection = Connection { generation, orders: orders.clone(), counters: Arc::clone(&counters) };
                connections.spawn(connection.run(client, server));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> Option<TcpStream> {
    listener?.accept().await.ok().map(|(client, _)| client)
}

async fn bind_again(port: u16) -> TcpListener {
    loop {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            Ok(listener) => return listener,
            Err(_) => sleep(Duration::from_millis(1)).await,
        }
    }
}

struct Connection {
    generation: u64,
    orders: watch::Receiver<Control>,
    counters: Arc<Counters>,
}

impl Connection {
    async fn run(mut self, mut client: TcpStream, server: u16) {
        let _open = Open::count(&self.counters);
        let mut cut = self.orders.clone();
        let born = self.generation;
        tokio::select! {
            biased; // or what a blackhole held would get through in the moment in which it becomes a cut
            _ = cut.wait_for(|control| control.generation != born) => {
                client.set_zero_linger().ok(); // closing now resets
            }
            _ = self.carry(&mut client, server) => {}
        }
    }

    async fn carry(&mut self, client: &mut TcpStream, server: u16) -> io::Result<()> {
        let mut upstream = match TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await {
            Ok(upstream) => upstream,
            Err(error) => {
                client.set_zero_linger()?;
                return Err(error);
            }
        };
        client.set_nodelay(true)?;
        upstream.set_nodelay(true)?;

        let ended = {
            let (from_client, to_client) = client.split();
            let (from_server, to_server) = upstream.split();
            let requests = Pump {
                orders: self.orders.clone(),
                delivered: &self.counters.request_bytes,
                swallowed: None,
            };
            let replies = Pump {
                orders: self.orders.clone(),
                delivered: &self.counters.reply_bytes,
                swallowed: Some(&self.counters.swallowed_bytes),
            };
            tokio::try_join!(
                requests.run(from_client, to_server),
                replies.run(from_server, to_client)
            )
            .map(drop)
        };
        let Err(end) = ended else { return Ok(()) };

        client.set_zero_linger()?;
        if end == End::Swallowed {
            // The server must execute what it was sent: it reads all of it before the end of the stream, if the stream
            // ends in an orderly way and somebody takes its replies.
            client.shutdown().await.ok();
            upstream.shutdown().await?;
            let mut rest = Vec::new();
            upstream.read_to_end(&mut rest).await?;
            self.counters.swallowed_bytes.fetch_add(rest.len() as u64, Relaxed);
        }
        Ok(())
    }
}

/// Why a connection ended before both sides had closed it.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Broken,
    Swallowed,
}

/// One direction of one connection.
struct Pump<'a> {
    orders: watch::Receiver<Control>,
    delivered: &'a AtomicU64,
    /// Set for the direction of the replies.
    swallowed: Option<&'a AtomicU64>,
}

impl Pump<'_> {
    /// Reading and writing are apart so that a delay is latency, not a limit on throughput.
    async fn run(&self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> Result<(), End> {
        let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_IN_FLIGHT);
        let read = async move {
            let mut buffer = vec![0; CHUNK];
            loop {
                let count = from.read(&mut buffer).await.map_err(|_| End::Broken)?;
                if count == 0 {
                    return Ok(()); // drops the sender: the writer finishes
                }
                let mode = self.orders.borrow().mode;
                let delay = match mode {
                    Mode::Delay(delay) => delay,
                    Mode::DropReplies if self.swallowed.is_some() => {
                        return self.swallow(count, &mut from, &mut buffer).await;
                    }
                    _ => Duration::ZERO,
                };
                if sender
                    .send((Instant::now() + delay, buffer[..count].to_vec()))
                    .await
                    .is_err()
                {
                    return Ok(()); // the writer failed, and says so itself
                }
            }
        };
        let write = async {
            let mut orders = self.orders.clone();
            while let Some((due, bytes)) = receiver.recv().await {
                sleep_until(due).await;
                orders
                    .wait_for(|control| control.mode != Mode::Blackhole)
                    .await
                    .map_err(|_| End::Broken)?;
                to.write_all(&bytes).await.map_err(|_| End::Broken)?;
                self.delivered.fetch_add(bytes.len() as u64, Relaxed);
            }
            orders
                .wait_for(|control| control.mode != Mode::Blackhole)
                .await
                .map_err(|_| End::Broken)?;
            to.shutdown().await.map_err(|_| End::Broken)
        };
        tokio::try_join!(read, write).map(drop)
    }

    /// Takes replies until they pause: a pipeline is answered in pieces, and all of it is to be executed.
    async fn swallow(&self, mut count: usize, from: &mut ReadHalf<'_>, buffer: &mut [u8]) -> Result<(), End> {
        let swallowed = self.swallowed.expect("a pump of replies");
        loop {
            swallowed.fetch_add(count as u64, Relaxed);
            match timeout(SILENCE, from.read(buffer)).await {
                Ok(Ok(more)) if more > 0 => count = more,
                _ => return Err(End::Swallowed),
            }
        }
    }
}

/// Counts a connection as open for as long as it lives, however it ends.
struct Open(Arc<Counters>);

impl Open {
    fn count(counters: &Arc<Counters>) -> Self {
        counters.open.fetch_add(1, Relaxed);
        Self(Arc::clone(counters))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests;
