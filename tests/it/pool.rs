//! `switchback-worker` as people run it: a pool file, exit codes, a clean stop; never a password.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use redis::Value;
use serde_json::json;
use switchback_common::{ConnectOptions, TaskType};
use switchback_producer::Producer;
use switchback_tests::{Process, RedisServer, eventually};
use tempfile::TempDir;

const NOWHERE: &str = "redis://127.0.0.1:1";

/// A pool file that would work, with `pool` for its `[pool]` table.
fn file(namespace: &str, url: &str, pool: &str, dir: &Path) -> String {
    let index_dir = dir.join("index");
    format!(
        "namespace = {namespace:?}\n[redis]\nurl = {url:?}\n[pool]\n{pool}\n[examples]\nindex_dir = {:?}\n",
        index_dir.display()
    )
}

fn start(dir: &TempDir, toml: &str, args: &[&str], env: &[(&str, &str)], log: &str) -> Process {
    let path = dir.path().join("pool.toml");
    fs::write(&path, toml).unwrap();
    let path = path.display().to_string();
    let args = ["--config", &path].into_iter().chain(args.iter().copied());
    let quiet = [
        ("SWITCHBACK_REDIS_URL", ""),
        ("SWITCHBACK_NAMESPACE", ""),
        ("RUST_LOG", log),
    ];
    Process::start("switchback-worker", args, quiet.into_iter().chain(env.iter().copied()))
}

/// Runs a pool that cannot start: its exit code, and the one line it says.
async fn refused(toml: impl FnOnce(&Path) -> String) -> (i32, String) {
    let dir = tempfile::tempdir().unwrap();
    let process = start(&dir, &toml(dir.path()), &[], &[], "error");
    let code = process.wait().await.code().expect("an exit code");
    let lines = process.lines();
    assert_eq!(lines.len(), 1, "one line: {lines:#?}");
    assert!(lines[0].starts_with("switchback-worker: "), "{}", lines[0]);
    (code, lines[0].clone())
}

const GOOD: &str = "handlers = [\"index_document@v1\"]\npatience_s = 0";

#[tokio::test]
async fn a_pool_indexes_and_stops_cleanly_on_sigterm() {
    let server = RedisServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let pool = r#"
        handlers = ["index_document@v1", "index_document@v2"]
        concurrency = 4
        build = "test"
        allow_another_build = true
        lease_ms = 5000
        grace_s = 5
        timeout_s = 10
        start_ttl_ms = 200
        pushes = true
        attempts = 3
        backoff_first_ms = 50
        backoff_longest_ms = 100
    "#;
    // The flag wins over the environment, and the environment over the file.
    let process = start(
        &dir,
        &file("from-file", NOWHERE, pool, dir.path()),
        &["--namespace", "shelf"],
        &[
            ("SWITCHBACK_REDIS_URL", &server.url()),
            ("SWITCHBACK_NAMESPACE", "from-env"),
        ],
        "info",
    );
    let options = ConnectOptions::new(server.url());
    let producer = Producer::connect(&options, "shelf".parse().unwrap()).await.unwrap();
    let task_type: TaskType = "index_document".parse().unwrap();
    for n in 0..20 {
        let payload = json!({ "document": format!("doc {n}"), "text": "José and the cat" }).to_string();
        let payload = serde_json::value::RawValue::from_string(payload).unwrap();
        producer
            .enqueue_json(&task_type, &payload)
            .key(format!("shelf/{n}"))
            .await
            .unwrap();
    }
    let index = dir.path().join("index");
    eventually("every document has its record", Duration::from_secs(10), async || {
        let records = fs::read_dir(&index).map_or(0, |files| {
            let names = files.map(|file| file.unwrap().file_name());
            names.filter(|name| name.to_string_lossy().ends_with(".json")).count()
        });
        if records == 20 { Ok(()) } else { Err(records) }
    })
    .await;
    let record = fs::read(index.join("shelf%2F7.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    assert_eq!((&record["document"], &record["words"]), (&json!("doc 7"), &json!(4)));

    process.term();
    assert_eq!(process.wait().await.code(), Some(0), "{:#?}", process.lines());
    let sessions = server.cli(&["EXISTS", "sb:sessions:{shelf:index_document}"]).await;
    assert_eq!(sessions, Value::Int(0), "its session ended with it");
}

#[tokio::test]
async fn a_panic_is_one_line_and_the_pool_goes_on() {
    let server = RedisServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let pool = "handlers = [\"index_document@v2\"]\nattempts = 1";
    let process = start(&dir, &file("shelf", &server.url(), pool, dir.path()), &[], &[], "info");
    let enqueue = |text: &'static str| {
        let payload = json!({ "document": "d", "text": text }).to_string();
        let server = &server;
        async move {
            let stream = "sb:stream:{shelf:index_document}";
            server.cli(&["XADD", stream, "*", "payload", &payload]).await;
        }
    };
    enqueue("José").await;
    process.wait_line("task is a dead letter").await;
    let panics = process.lines();
    let panics: Vec<&String> = panics.iter().filter(|line| line.contains("panic at ")).collect();
    assert_eq!(panics.len(), 1, "{panics:#?}");
    assert!(
        panics[0].contains("index_document") && panics[0].contains('é'),
        "{}",
        panics[0]
    );
    enqueue("cats").await;
    eventually("the next one is indexed", Duration::from_secs(10), async || {
        fs::read_dir(dir.path().join("index")).unwrap().count() == 1
    })
    .await;
    process.term();
    assert_eq!(process.wait().await.code(), Some(0));
}

#[tokio::test]
async fn what_cannot_be_configured_ends_with_2() {
    for (toml, says) in [
        ("[pool]\nhandler = []\n", "unknown field `handler`"),
        ("workers = 3\n", "unknown field `workers`"),
        ("[pool]\nconcurrency = \"many\"\n", "line 2"),
        ("not toml", "line 1"),
        (
            "[pool]\nhandlers = [\"index_documents@v1\"]\n",
            "there are: index_document@v1, index_document@v2",
        ),
        (
            "[pool]\nhandlers = [\"index_document@v1\"]\n",
            "set index_dir under [examples]",
        ),
        ("namespace = \"sh op\"\n", "sh op"),
        ("[redis]\nprefix = \"{}\"\n", "prefix"),
        ("[redis]\nurl_file = \"/nowhere/url\"\n", "/nowhere/url"),
        ("", "no handlers"),
        ("[pool]\nhandlers = []\n", "no handlers"),
        ("[redis]\nurl = \"http://hunter2@127.0.0.1\"\n", "no handlers"),
    ] {
        let (code, line) = refused(|_| toml.to_owned()).await;
        assert!(code == 2 && line.contains(says), "{toml:?}: {code}, {line}");
        assert!(!line.contains("hunter2"), "{line}");
    }
    for (pool, says) in [
        ("concurrency = 0", "concurrency 0"),
        ("lease_ms = 1", "lease"),
        ("start_ttl_ms = 9000", "start_ttl"),
        (
            "breaker = { failures = 2.0, samples = 1, window_s = 1, open_s = 1 }",
            "share of failures",
        ),
    ] {
        let pool = format!("handlers = [\"index_document@v1\"]\n{pool}");
        let (code, line) = refused(|dir| file("shelf", NOWHERE, &pool, dir)).await;
        assert!(code == 2 && line.contains(says), "{pool:?}: {code}, {line}");
    }
    let (code, line) = refused(|dir| file("shelf", "http://u:hunter2@127.0.0.1", GOOD, dir)).await;
    assert!(code == 2 && !line.contains("hunter2"), "{code}, {line}");
}

#[tokio::test]
async fn a_pool_without_its_file_ends_with_2() {
    let process = Process::start("switchback-worker", ["--config", "/nowhere/pool.toml"], [("A", "")]);
    assert_eq!(process.wait().await.code(), Some(2));
    assert!(process.lines().join("\n").contains("cannot read /nowhere/pool.toml"));
}

#[tokio::test]
async fn a_redis_that_cannot_be_used_ends_with_3() {
    let (code, line) = refused(|dir| file("shelf", NOWHERE, GOOD, dir)).await;
    assert!(code == 3 && line.contains("127.0.0.1:1"), "{code}, {line}");

    let server = RedisServer::builder().arg("--requirepass", "open-sesame").start().await;
    let url = format!("redis://:hunter2@127.0.0.1:{}", server.port());
    let (code, line) = refused(|dir| file("shelf", &url, GOOD, dir)).await;
    assert!(code == 3 && line.contains("credentials"), "{code}, {line}");
    assert!(!line.contains("hunter2"), "{line}");

    let url = loading();
    let (code, line) = refused(|dir| file("shelf", &url, GOOD, dir)).await;
    assert!(code == 3 && line.contains("loading"), "{code}, {line}");
}

#[tokio::test]
async fn a_redis_that_may_forget_ends_with_5() {
    let evicting = [("--maxmemory", "100mb"), ("--maxmemory-policy", "allkeys-lru")];
    let builder = RedisServer::builder();
    let server = evicting.iter().fold(builder, |b, (name, value)| b.arg(*name, *value));
    let server = server.start().await;
    let (code, line) = refused(|dir| file("shelf", &server.url(), GOOD, dir)).await;
    assert!(code == 5 && line.contains("allkeys-lru"), "{code}, {line}");
}

#[tokio::test]
async fn the_pools_that_ship_are_valid() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let mut seen = 0;
    for entry in fs::read_dir(deploy).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ending| ending != "toml") {
            continue;
        }
        let toml = fs::read_to_string(path).unwrap();
        assert!(toml.contains("/var/lib/switchback/index") && toml.contains("redis://redis:6379"));
        let toml = toml
            .replace("[pool]", "[pool]\npatience_s = 0")
            .replace("redis://redis:6379", NOWHERE);
        // They get as far as Redis.
        let (code, line) = refused(|dir| toml.replace("/var/lib/switchback", &dir.display().to_string())).await;
        assert_eq!(code, 3, "{line}");
        seen += 1;
    }
    assert_eq!(seen, 2);
}

/// A server that is loading its data set for as long as anybody asks.
fn loading() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            std::thread::spawn(move || {
                let mut asked = [0; 4096];
                while matches!(stream.read(&mut asked), Ok(n) if n > 0) {
                    // One refusal per command: each begins with its number of parts.
                    let commands = asked.iter().filter(|byte| **byte == b'*').count();
                    let refusals = "-LOADING Redis is loading the dataset in memory\r\n".repeat(commands);
                    if stream.write_all(refusals.as_bytes()).is_err() {
                        break;
                    }
                    asked.fill(0);
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn the_environment_lets_another_build_in() {
    let server = RedisServer::start().await;
    let record = || async {
        let Value::BulkString(json) = server.cli(&["HGET", "sb:versions:{shelf:index_document}", "v1"]).await else {
            return json!(null);
        };
        serde_json::from_slice::<serde_json::Value>(&json).unwrap()["builds"].clone()
    };
    let dir = tempfile::tempdir().unwrap();
    let pool = |build: &str| {
        let pool = format!("handlers = [\"index_document@v1\"]\nbuild = {build:?}\nallow_another_build = false");
        file("shelf", &server.url(), &pool, dir.path())
    };
    let first = start(&dir, &pool("b1"), &[], &[], "info");
    first.wait_line("session begun").await;
    let refused = start(&dir, &pool("b2"), &[], &[], "info");
    let line = refused.wait_line("v1 is known as build").await;
    assert!(line.contains("b1") && line.contains("b2"), "{line}");
    // It waits for a person, and ends when it is told to.
    refused.term();
    assert_eq!(refused.wait().await.code(), Some(0));
    let allow = "SWITCHBACK_ALLOW_ANOTHER_BUILD";
    let wrong = start(&dir, &pool("b2"), &[], &[(allow, "perhaps")], "error");
    assert_eq!(wrong.wait().await.code(), Some(2));
    assert!(wrong.lines()[0].contains(allow), "{:?}", wrong.lines());
    let allowed = start(&dir, &pool("b2"), &[], &[(allow, "true")], "info");
    allowed.wait_line("session begun").await;
    assert_eq!(record().await, json!(["b1", "b2"]));
}
