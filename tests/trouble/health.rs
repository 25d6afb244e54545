//! `/livez` and `/readyz` tell the truth, whatever happens to Redis, to the runtime, or to whoever asks.

use std::time::Duration;

use serde_json::Value;
use switchback_tests::{Process, eventually, patience};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    fixture::Fixture,
    tools::{LONG, PROBES, Pool, enqueue_probe, pool},
};

const GATE: &str = "sb:gate:{test:probe}";

/// A pool that tells how it is, and where.
pub async fn telling(url: &str, extra: &[&str], env: &[(&str, &str)]) -> (Pool, String) {
    let mut args = vec!["--health", "127.0.0.1:0"];
    args.extend(extra);
    let pool = pool(url, &args, env);
    let line = pool.process.wait_line("health answers on http://").await;
    let (_, rest) = line.split_once("http://").unwrap();
    let address = rest.split_once('/').unwrap().0.to_owned();
    (pool, address)
}

/// What comes back for a request, head and body.
async fn talk(address: &str, request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// A GET: status and body.
async fn get(address: &str, path: &str) -> (u16, Value) {
    let answer = talk(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
        .await
        .unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

/// Waits until `/readyz` answers with `status` and with `text` somewhere in its body; gives the body.
pub async fn readyz(address: &str, status: u16, text: &str) -> Value {
    let what = format!("/readyz says {status} and {text:?}");
    eventually(&what, patience(LONG), async || {
        let (got, body) = get(address, "/readyz").await;
        if got == status && body.to_string().contains(text) {
            Ok(body)
        } else {
            Err(format!("{got} {body}"))
        }
    })
    .await
}

// A worker says that it cannot work while Redis is away, and that restarting it would not help.
#[tokio::test(flavor = "multi_thread")]
async fn redis_away_is_alive_and_not_ready() {
    let fixture = Fixture::new().await;
    fixture.server.kill9();
    let url = fixture.server.url();
    let (pool, address) = telling(&url.replace("//", "//:hunter2@"), &[], &[]).await;
    // Before there is any session.
    let body = readyz(&address, 503, "no session: cannot reach Redis").await;
    assert!(!body.to_string().contains("hunter2"), "{body}");
    assert_eq!(get(&address, "/livez").await.0, 200);
    drop(pool);
    fixture.server.restart().await;

    let (pool, address) = telling(&url, &[], &[]).await;
    let body = readyz(&address, 200, "test/probe").await;
    let queue = &body["queues"][0];
    assert_eq!(
        (queue["revision"].as_u64(), queue["paused"].as_bool()),
        (Some(1), Some(false)),
        "{body}"
    );
    assert!(queue["lease_left_ms"].as_u64().unwrap() > 0, "{body}");
    enqueue_probe(&fixture, "{\"n\":1,\"work_ms\":600000}").await;
    readyz(&address, 200, "\"running\":{\"v1\":1}").await;

    fixture.server.kill9();
    let body = readyz(&address, 503, "cannot reach Redis").await;
    assert_eq!(body["ready"], false, "{body}");
    let (status, live) = get(&address, "/livez").await;
    assert_eq!((status, live["alive"].as_bool()), (200, Some(true)), "{live}");
    fixture.server.restart().await;
    readyz(&address, 200, "test/probe").await;
    // A freeze instead of a crash: connections stay open.
    fixture.server.stop();
    readyz(&address, 503, "Redis has not answered lately").await;
    assert_eq!(get(&address, "/livez").await.0, 200);
    fixture.server.cont();
    readyz(&address, 200, "test/probe").await;
    drop(pool);
}

// A paused queue is ready: a person wants it so. A queue that is held for want of its group or its gate is not.
#[tokio::test(flavor = "multi_thread")]
async fn paused_is_ready_and_held_is_not() {
    let fixture = Fixture::new().await;
    let (pool, address) = telling(&fixture.server.url(), &["--grace-ms", "60000"], &[]).await;
    readyz(&address, 200, "\"paused\":false").await;
    fixture.raw(&["HSET", GATE, "paused", "1"]).await;
    let body = readyz(&address, 200, "\"paused\":true").await;
    assert!(
        body["queues"][0]["note"]
            .as_str()
            .unwrap()
            .contains("until a person resumes it"),
        "{body}"
    );
    fixture.raw(&["HSET", GATE, "paused", "0"]).await;
    readyz(&address, 200, "\"paused\":false").await;

    fixture
        .raw(&["RENAME", "sb:gatestate:{test:probe}", "{test:probe}aside"])
        .await;
    readyz(&address, 503, "no sealed gate is known").await;
    fixture
        .raw(&["RENAME", "{test:probe}aside", "sb:gatestate:{test:probe}"])
        .await;
    readyz(&address, 200, "test/probe").await;

    enqueue_probe(&fixture, "{\"n\":1}").await;
    eventually("it has run", patience(LONG), async || pool.witness.ends() == [1]).await;
    fixture.raw(&["XGROUP", "DESTROY", PROBES, "workers"]).await;
    enqueue_probe(&fixture, "{\"n\":2,\"work_ms\":600000}").await;
    readyz(&address, 503, "XGROUP CREATE").await;
    fixture.raw(&["XGROUP", "CREATE", PROBES, "workers", "$"]).await;
    readyz(&address, 200, "test/probe").await;

    // The last to stop: somebody says "stopping" for as long as something runs.
    enqueue_probe(&fixture, "{\"n\":3,\"work_ms\":600000}").await;
    readyz(&address, 200, "\"running\":{\"v1\":1}").await;
    pool.process.term();
    readyz(&address, 503, "stopping").await;
    assert_eq!(get(&address, "/livez").await.0, 200);
    pool.process.term();
    assert!(pool.process.wait().await.success());
    assert!(TcpStream::connect(&address).await.is_err());
}

// A runtime that stands still is told by the thread that does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_runtime_is_told() {
    let fixture = Fixture::new().await;
    let one_thread = [("TOKIO_WORKER_THREADS", "1")];
    let (pool, address) = telling(&fixture.server.url(), &["--lease-ms", "3000"], &one_thread).await;
    readyz(&address, 200, "test/probe").await;
    enqueue_probe(&fixture, "{\"n\":1,\"work_ms\":12000,\"then\":\"block\"}").await;
    readyz(&address, 503, "a handler has blocked the runtime").await;
    let dead = eventually("/livez says it", patience(LONG), async || {
        let (status, body) = get(&address, "/livez").await;
        if status == 503 { Ok(body) } else { Err(body) }
    })
    .await;
    // Longer than the lease, in whole milliseconds: 3,000 when it is 3.0002 s.
    assert!(dead["runtime_silent_ms"].as_u64().unwrap() >= 3_000, "{dead}");
    readyz(&address, 200, "test/probe").await;
    assert_eq!(get(&address, "/livez").await.0, 200);
    assert_eq!(pool.witness.ends(), [1], "and the lease was kept");
}

// P10: two routes, GET, and clients that take their time are bounded.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_else_is_answered() {
    let fixture = Fixture::new().await;
    let (_pool, address) = telling(&fixture.server.url(), &[], &[]).await;
    for (request, status) in [
        (
            "POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc".to_owned(),
            "405",
        ),
        ("DELETE /readyz HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "405"),
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "404"),
        ("GET /livez/../readyz HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "404"),
        ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "404"),
        (
            format!(
                "GET /livez HTTP/1.1\r\nHost: x\r\nLong: {}\r\n\r\n",
                "x".repeat(100_000)
            ),
            "431",
        ),
        ("nonsense\r\n\r\n".to_owned(), "400"),
    ] {
        let answer = talk(&address, &request).await;
        // A long head may be cut off before its answer is read.
        let cut = answer.is_err() && status == "431";
        let said = answer.unwrap_or_default();
        assert!(
            cut || said.starts_with(&format!("HTTP/1.1 {status} ")),
            "{status}: {said}"
        );
    }
    // More slow clients than are served at once: each is cut off, and then others are answered.
    let mut slow = Vec::new();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
        slow.push(stream);
    }
    let answer = tokio::time::timeout(patience(Duration::from_secs(60)), get(&address, "/livez")).await;
    assert_eq!(answer.expect("an answer").0, 200);
}

// A port that is taken is noticed before anything runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_ends_the_worker_at_once() {
    let fixture = Fixture::new().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let pool = pool(&fixture.server.url(), &["--health", &address], &[]);
    assert!(!pool.process.wait().await.success());
    let said = pool.process.lines().join("\n");
    assert!(
        said.contains(&format!("cannot listen on {address}")) && !said.contains("session begun"),
        "{said}"
    );
}

// The pool that ships tells it too: as its file says, or its flag.
#[tokio::test(flavor = "multi_thread")]
async fn a_pool_file_and_a_flag_name_the_address() {
    let fixture = Fixture::new().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pool.toml");
    let toml = format!(
        "[redis]\nurl = \"{}\"\n[pool]\nhealth = \"127.0.0.1:0\"\nhandlers = [\"index_document@v1\"]\n[examples]\nindex_dir = \"{}\"\n",
        fixture.server.url(),
        dir.path().display()
    );
    std::fs::write(&file, toml).unwrap();
    for (extra, host) in [(vec![], "127.0.0.1:"), (vec!["--health", "[::1]:0"], "[::1]:")] {
        let file = file.display().to_string();
        let args = ["--config", &file].into_iter().chain(extra);
        let process = Process::start("switchback-worker", args, [("RUST_LOG", "info")]);
        let line = process.wait_line("health answers on http://").await;
        let address = line
            .split_once("http://")
            .unwrap()
            .1
            .split_once("/livez")
            .unwrap()
            .0
            .to_owned();
        assert!(address.starts_with(host), "{line}");
        readyz(&address, 200, "default/index_document").await;
    }
}
