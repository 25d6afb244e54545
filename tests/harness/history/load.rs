//! Reading what the sources have written down. Redis is read with plain commands, past the product's own store.

use std::{
    collections::{HashMap, HashSet},
    io::{BufRead as _, Write as _},
    path::Path,
    str::FromStr,
};

use redis::{Value, aio::MultiplexedConnection};
use switchback_common::{StreamId, TaskId, id::stream_salt};

use super::event::{Event, LogLine, Place, Remains, Revision, Start, What};
use crate::RedisServer;

const PAGE: usize = 1_000;

/// Reads the files of the test workers: witnesses, and the ledger. Lines of other kinds are skipped.
///
/// # Panics
/// When a line is torn or makes no sense.
#[must_use]
pub fn load_files<'a>(files: impl IntoIterator<Item = &'a Path>) -> Vec<Event> {
    let mut out = Vec::new();
    for file in files {
        // A worker that never got to open its file has nothing to say.
        let text = std::fs::read_to_string(file).unwrap_or_default();
        out.extend(text.lines().filter_map(line));
    }
    out
}

fn line(text: &str) -> Option<Event> {
    fn number<T: FromStr>(text: &str) -> T {
        text.parse().unwrap_or_else(|_| panic!("not a number: {text:?}"))
    }
    let place = |stream: &str, entry: &str| Place {
        stream: stream.to_owned(),
        entry: entry.to_owned(),
    };
    let parts: Vec<&str> = text.split(' ').collect();
    match *parts.as_slice() {
        [
            "start",
            n,
            version,
            at,
            attempt,
            rev,
            id,
            deaths,
            read_us,
            session,
            stream,
            entry,
        ] => Some(Event::Start(Start {
            n: number(n),
            id: id.to_owned(),
            version: version.to_owned(),
            at: number(at),
            attempt: number(attempt),
            deaths: number(deaths),
            rev: number(rev),
            read_us: number(read_us),
            session: session.to_owned(),
            place: place(stream, entry),
        })),
        ["fail", _, _, stream, entry] => Some(Event::Fail(place(stream, entry))),
        ["effect", n, id, _, stream, entry] => Some(Event::Effect {
            n: number(n),
            id: id.to_owned(),
            place: place(stream, entry),
        }),
        ["end", ..] => None,
        _ => panic!("a witness wrote {text:?}"),
    }
}

/// Reads the queue's log, the gate's history, and what is left in the queue `queue` (`namespace:type`).
///
/// # Panics
/// When Redis does not answer.
pub async fn load_redis(server: &RedisServer, queue: &str) -> Vec<Event> {
    let mut redis = server.connection().await;
    let key = |kind: &str| format!("sb:{kind}:{{{queue}}}");
    let mut out = Vec::new();
    for (id, fields) in entries(&mut redis, &key("log")).await {
        out.push(Event::Log(log_line(id, &fields)));
    }
    for (_, fields) in entries(&mut redis, &key("history")).await {
        out.push(Event::Revision(revision(&fields)));
    }
    let mut streams: Vec<String> = scan(&mut redis, "stream").await;
    streams.sort();
    for stream in streams {
        remains(&mut redis, &stream, &mut out).await;
    }
    let packed: HashMap<String, Vec<u8>> = query(&mut redis, &["HGETALL", &key("envelope")]).await;
    let delayed: Vec<String> = query(&mut redis, &["ZRANGE", &key("delayed"), "0", "-1"]).await;
    out.extend(delayed.into_iter().map(|id| {
        let fields = packed.get(&id).map(|text| unpack(text)).unwrap_or_default();
        Event::Remains(remain("delayed", id, &fields))
    }));
    out
}

type Fields = HashMap<String, String>;

async fn query<T: redis::FromRedisValue>(redis: &mut MultiplexedConnection, command: &[&str]) -> T {
    let answer = redis::cmd(command[0]).arg(&command[1..]).query_async(redis).await;
    answer.unwrap_or_else(|error| panic!("{}: {error}", command.join(" ")))
}

async fn scan(redis: &mut MultiplexedConnection, kind: &str) -> Vec<String> {
    let (mut cursor, mut found) = ("0".to_owned(), HashSet::new());
    loop {
        let page: (String, Vec<String>) = query(redis, &["SCAN", &cursor, "COUNT", "1000", "TYPE", kind]).await;
        found.extend(page.1);
        cursor = page.0;
        if cursor == "0" {
            return found.into_iter().collect();
        }
    }
}

async fn entries(redis: &mut MultiplexedConnection, stream: &str) -> Vec<(StreamId, Fields)> {
    let (mut from, mut out) = ("-".to_owned(), Vec::new());
    loop {
        let command = ["XRANGE", stream, &from, "+", "COUNT", &PAGE.to_string()];
        let page: Vec<(String, Vec<Vec<u8>>)> = query(redis, &command).await;
        let Some((last, _)) = page.last() else { return out };
        from = format!("({last}");
        out.extend(page.into_iter().map(|(id, flat)| {
            let id = StreamId::parse(id.as_bytes()).expect("an entry id");
            (id, fields(&flat))
        }));
    }
}

fn fields(flat: &[Vec<u8>]) -> Fields {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    flat.chunks_exact(2)
        .map(|pair| (text(&pair[0]), text(&pair[1])))
        .collect()
}

/// `<length>:<bytes>`, over and over.
fn unpack(mut packed: &[u8]) -> Fields {
    let mut flat = Vec::new();
    while let Some(colon) = packed.iter().position(|b| *b == b':') {
        let length: usize = std::str::from_utf8(&packed[..colon])
            .unwrap()
            .parse()
            .expect("a length");
        flat.push(packed[colon + 1..][..length].to_vec());
        packed = &packed[colon + 1 + length..];
    }
    fields(&flat)
}

fn text(fields: &Fields, name: &str) -> String {
    fields.get(name).cloned().unwrap_or_default()
}

fn number<T: FromStr + Default>(fields: &Fields, name: &str) -> T {
    fields.get(name).and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn log_line(id: StreamId, fields: &Fields) -> LogLine {
    let what = match fields["kind"].as_str() {
        "joined" => What::Joined,
        "left" => What::Left,
        "reaping" => What::Reaping {
            at_us: number(fields, "at"),
        },
        "settled" => What::Settled {
            groups: serde_json::from_str(&fields["attempts"]).expect("attempts that this release can read"),
            whole: fields["acked"] == "all",
        },
        "recovered" | "poison" => What::Recovered {
            stream: label(&fields["stream"]),
            tasks: fields["tasks"]
                .split(' ')
                .filter_map(|pair| pair.split_once('='))
                .map(|(task, entry)| (task.to_owned(), entry.to_owned()))
                .collect(),
        },
        kind => What::Other {
            kind: kind.to_owned(),
            text: text(fields, "text"),
        },
    };
    LogLine {
        order: (id.ms, id.seq),
        session: text(fields, "session"),
        what,
    }
}

fn revision(fields: &Fields) -> Revision {
    Revision {
        kind: text(fields, "kind"),
        rev: number(fields, "rev"),
        at_us: number(fields, "at"),
        source: text(fields, "source"),
        why: text(fields, "why"),
        before: text(fields, "before"),
        after: text(fields, "after"),
        inflight: text(fields, "inflight"),
    }
}

/// The log's name of a stream: `sb:stream:{q}` is `main`, `sb:lane:{q}:v1` is `lane:v1`.
fn label(key: &str) -> String {
    let kind = key.split(':').nth(1).unwrap_or_default();
    let part = key.rsplit_once("}:").map(|(_, part)| part);
    match (kind, part) {
        ("stream", None) => "main".to_owned(),
        ("stream", Some(part)) => part.to_owned(),
        (kind, Some(part)) => format!("{kind}:{part}"),
        (kind, None) => kind.to_owned(),
    }
}

/// What of a stream is not settled: what is pending, and what nobody has been given. Dead letters have no group: all.
async fn remains(redis: &mut MultiplexedConnection, stream: &str, out: &mut Vec<Event>) {
    let kind = stream.split(':').nth(1).unwrap_or_default();
    if matches!(kind, "log" | "history") {
        return;
    }
    let groups: Vec<HashMap<String, Value>> = query(redis, &["XINFO", "GROUPS", stream]).await;
    let delivered = groups.first().and_then(|group| {
        let id: String = redis::from_redis_value(group["last-delivered-id"].clone()).ok()?;
        StreamId::parse(id.as_bytes())
    });
    let mut pending = HashSet::new();
    let mut from = "-".to_owned();
    while delivered.is_some() {
        let command = ["XPENDING", stream, "workers", &from, "+", &PAGE.to_string()];
        let page: Vec<(String, String, u64, u64)> = query(redis, &command).await;
        let Some((last, ..)) = page.last() else { break };
        from = format!("({last}");
        pending.extend(page.iter().filter_map(|p| StreamId::parse(p.0.as_bytes())));
    }
    for (id, fields) in entries(redis, stream).await {
        if delivered.is_none_or(|delivered| id > delivered) || pending.contains(&id) {
            let derived = || TaskId::of_entry(stream_salt(stream), id).to_string();
            let task = fields.get("id").cloned().unwrap_or_else(derived);
            out.push(Event::Remains(remain(&label(stream), task, &fields)));
        }
    }
}

fn remain(stream: &str, id: String, fields: &Fields) -> Remains {
    let payload: Option<serde_json::Value> = serde_json::from_str(&text(fields, "payload")).ok();
    Remains {
        stream: stream.to_owned(),
        id,
        n: payload.and_then(|p| p.get("n")?.as_u64()),
        reason: text(fields, "dead_reason"),
        attempt: number(fields, "attempt"),
    }
}

/// Writes events, one line each.
///
/// # Errors
/// When the file cannot be written.
pub fn write_jsonl(path: &Path, events: &[Event]) -> std::io::Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    for event in events {
        serde_json::to_writer(&mut file, event)?;
        file.write_all(b"\n")?;
    }
    file.flush()
}

/// Reads events that [`write_jsonl`] wrote.
///
/// # Errors
/// When the file cannot be read, or a line is no event.
pub fn read_jsonl(path: &Path) -> std::io::Result<Vec<Event>> {
    let file = std::io::BufReader::new(std::fs::File::open(path)?);
    file.lines().map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}
