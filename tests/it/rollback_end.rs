//! An automatic rollback from one end to the other, as an operator meets it: what the log says, and what the commands that it
//! names do then. With attempts that are revoked.

use std::time::Duration;

use redis::AsyncCommands as _;
use serde_json::{Value, json};
use switchback_tests::{Process, RedisServer, eventually, patience};
use tokio::task::JoinSet;

use crate::cli::{OK, Shell};

const LONG: Duration = Duration::from_secs(60);
/// Small enough for a test; the statistics are those of a real one.
const SPEC: &str = "to = 'v2'\nsteps = [20, 100]\nbake = '20s'\nmin_samples = 30\nextend = 100\ninflight = 'revoke'\n\
    [guard]\nblock_secs = 1\nalpha = 0.05\nbaseline_min = 50\nburn = { active_min = 20 }\n";

/// About 250 tasks per second, of which 30 % fail on v2, and two that take `slow`, with the key that is pinned to v2: by a
/// clock of their own, so that some run there whenever it is rolled back.
fn traffic(server: &RedisServer, slow: &str) -> JoinSet<()> {
    let (mut tasks, url) = (JoinSet::new(), server.url());
    let (slow, client) = (slow.to_owned(), redis::Client::open(server.url()).unwrap());
    tasks.spawn(async move {
        let mut raw = client.get_multiplexed_async_connection().await.unwrap();
        let task = [("payload", slow.as_str()), ("key", "slow")];
        loop {
            let _: redis::RedisResult<String> = raw.xadd("sb:stream:{shop:probe}", "*", &task).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    tasks.spawn(async move {
        let client = redis::Client::open(url).unwrap();
        let mut raw = client.get_multiplexed_async_connection().await.unwrap();
        for n in 0u64.. {
            let then = if n * 37 % 100 < 30 { "fail" } else { "" };
            let payload = json!({"n": n, "then": then, "on": "v2"}).to_string();
            let _: redis::RedisResult<String> = raw.xadd("sb:stream:{shop:probe}", "*", &[("payload", payload)]).await;
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
    });
    tasks
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_automatic_rollback_did_is_told_proven_and_given_back() {
    let server = RedisServer::start().await;
    crate::blast::aged(&server).await;
    let shell = Shell::new(server.url());
    let file = shell.dir.path().join("starts");
    std::fs::write(shell.dir.path().join("r.toml"), SPEC).unwrap();
    let (url, witness) = (server.url(), file.display().to_string());
    let args = [
        "--redis",
        &url,
        "--namespace",
        "shop",
        "--versions",
        "v1,v2",
        "--witness",
        &witness,
        "--backoff-ms",
        "600000",
    ];
    let _pool = Process::start("switchback-test-pool", args, [("RUST_LOG", "warn")]);
    eventually("the worker has joined", patience(LONG), async || {
        let ran = shell.run("worker ls probe -o json");
        ran.code == OK && ran.json().as_array().unwrap().iter().any(|row| row["rev"].is_u64())
    })
    .await;
    shell.run("rollout start probe --file r.toml --why INC-9").exits(OK);
    // A person's pin is adopted: the slow ones run on v2, always some, until they are revoked.
    shell.run("gate set probe pins=slow=v2 --wait").exits(OK);
    // Less than the grace of what a flip stops: its result comes, and is refused.
    let payload = json!({"n": 77_777, "work_ms": 4_000}).to_string();
    let line = ["task", "enqueue", "probe", "--key", "slow", "--payload", &payload];
    shell.args(&line).exits(OK);
    eventually("a slow one runs on v2", patience(LONG), async || {
        std::fs::read_to_string(&file)
            .unwrap_or_default()
            .contains("start 77777 v2 ")
    })
    .await;
    let traffic = traffic(&server, &payload);
    let status = eventually("the guard rolled back", patience(LONG), async || {
        let view = shell.run("rollout status probe -o json").exits(OK).json();
        if view["status"] == "rolled_back" {
            Ok(view)
        } else {
            Err(format!("{view:#}"))
        }
    })
    .await;
    drop(traffic);

    // When, on which evidence, what it touched, and how to look further: in the log and in the status.
    let logged = shell.run("queue log probe --kind rollout -o json").exits(OK).json()[0].clone();
    let text = logged["text"].as_str().unwrap();
    for part in [
        "rolled back from v2 at 20 % to v1: ",
        "touched ",
        " failed (",
        "switchback gate blast probe --version v2 --certificate",
        "switchback dead requeue probe --version v2 --since-flip --refund --dry-run",
    ] {
        assert!(text.contains(part), "no {part:?}: {text}");
    }
    assert!(logged["at_us"].as_u64() > status["began_at_us"].as_u64(), "{logged:#}");
    let evidence = &logged["evidence"];
    assert_eq!(evidence["evidence"], status["evidence"], "{logged:#}");
    assert!(evidence["evidence"]["failed_candidate"].as_u64() > Some(0));
    assert!(evidence["touched"]["failed"].as_u64() > Some(0));
    assert_eq!(
        (&evidence["from"], &evidence["to"], &evidence["percent"]),
        (&json!("v1"), &json!("v2"), &json!(20.0))
    );
    shell
        .run("queue log probe")
        .exits(OK)
        .says("--since-flip --refund --dry-run");
    shell
        .run("rollout status probe")
        .exits(OK)
        .says("gate blast probe --version v2 --certificate");
    // The history agrees: who, and what becomes of what ran.
    let newest = shell.json("gate history probe")[0].clone();
    assert_eq!(
        (&newest["source"], &newest["inflight"]),
        (&json!("guard"), &json!("revoke"))
    );
    assert_eq!(newest["rev"], logged["rev"]);

    // P3: what ran on v2 was revoked, counts for nothing, and runs again on v1.
    let blast = eventually("slow ones run on v1", patience(LONG), async || {
        let view = shell.run("gate blast probe --version v2 -o json").exits(OK).json();
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        if text.contains("start 77777 v1 ") && view["attempts"]["by_outcome"]["revoked"].as_u64() >= Some(1) {
            Ok(view)
        } else {
            Err(format!("{view:#}"))
        }
    })
    .await;
    assert_eq!(blast["withdrawn"]["rev"], newest["rev"], "{blast:#}");
    let proof = eventually("nothing runs on v2 any more", patience(LONG), async || {
        let ran = shell.run("gate blast probe --version v2 --certificate -o json");
        if ran.code == OK {
            Ok(ran.json()["certificate"].clone())
        } else {
            Err(ran.stderr)
        }
    })
    .await;
    assert_eq!(
        (&proof["verdict"], &proof["late"]),
        (&json!("none"), &json!(0)),
        "{proof:#}"
    );
    let rows = shell.run("gate blast probe --version v2 -o jsonl").exits(OK).stdout;
    let rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let revoked = rows.iter().filter_map(|row| {
        let attempts = row["attempts"].as_array()?;
        let at = attempts.iter().position(|attempt| attempt["outcome"] == "revoked")?;
        Some((&attempts[at], attempts.get(at + 1)?))
    });
    for (was, next) in revoked {
        assert_eq!(next["version"], "v1", "{next:#}");
        // P6: it does not count. Of one that runs the log does not say yet.
        assert!(
            next["attempt"].is_null() || next["attempt"] == was["attempt"],
            "{next:#}"
        );
    }

    // Whoever was woken by it and rolls back by hand is told that it is done.
    shell
        .run("gate rollback probe")
        .exits(OK)
        .tells("already rolled back to v1");
    // The window is that of the rollout: what failed on it is given back.
    let blast = shell.run("gate blast probe --version v2 -o json").exits(OK).json();
    let failed = blast["attempts"]["by_outcome"]["retried"].as_u64().unwrap();
    let preview = shell
        .run("dead requeue probe --version v2 --since-flip --refund --dry-run -o json")
        .exits(OK)
        .tells("became reachable: revision 2");
    let groups = preview.json()["groups"].clone();
    assert_eq!(
        (&groups[0]["count"], &groups[0]["refund"]),
        (&json!(failed), &json!(failed)),
        "{groups:#}"
    );
    shell
        .run("dead requeue probe --version v2 --since-flip --refund --yes")
        .exits(OK);
    eventually("all are done on v1", patience(LONG), async || {
        let view = shell.run("gate blast probe --version v2 -o json").exits(OK).json();
        match view["tasks"]["by_fate"]["waiting"].as_u64().unwrap_or(0) {
            0 => Ok(()),
            _ => Err(format!("{view:#}")),
        }
    })
    .await;
}
