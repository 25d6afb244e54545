//! What Redis says about itself.

use std::collections::BTreeMap;

use redis::aio::MultiplexedConnection;

use crate::Result;

/// One section of INFO, by field.
pub(crate) type Info = BTreeMap<String, String>;

pub(crate) async fn info(connection: &mut MultiplexedConnection, section: &str) -> Result<Info> {
    let text: String = redis::cmd("INFO").arg(section).query_async(connection).await?;
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    Ok(lines
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect())
}

pub(crate) fn text<'a>(info: &'a Info, field: &str) -> &'a str {
    info.get(field).map_or("", String::as_str)
}

/// Valkey says `redis_version:7.2.4` whatever its own version is.
pub(crate) fn name(info: &Info) -> String {
    match text(info, "valkey_version") {
        "" => format!("Redis {}", text(info, "redis_version")),
        own => format!("Valkey {own}"),
    }
}

fn figure(info: &Info, field: &str) -> Result<f64> {
    Ok(text(info, field)
        .parse()
        .map_err(|e| format!("INFO has no {field}: {e}"))?)
}

/// Processor time that the server has used, in seconds.
pub(crate) async fn cpu(connection: &mut MultiplexedConnection) -> Result<f64> {
    let info = info(connection, "cpu").await?;
    Ok(figure(&info, "used_cpu_user")? + figure(&info, "used_cpu_sys")?)
}

/// Bytes in use.
pub(crate) async fn memory(connection: &mut MultiplexedConnection) -> Result<f64> {
    figure(&info(connection, "memory").await?, "used_memory")
}

/// Starts to count commands anew.
pub(crate) async fn forget_commands(connection: &mut MultiplexedConnection) -> Result<()> {
    Ok(redis::cmd("CONFIG").arg("RESETSTAT").exec_async(connection).await?)
}

/// Calls by command since then, those that scripts made included, ours of INFO and CONFIG left out.
pub(crate) async fn commands(connection: &mut MultiplexedConnection) -> Result<BTreeMap<String, f64>> {
    let mut calls = BTreeMap::new();
    for (name, value) in info(connection, "commandstats").await? {
        let Some(name) = name.strip_prefix("cmdstat_") else {
            continue;
        };
        if name == "info" || name.starts_with("config") {
            continue;
        }
        let count = value
            .split(',')
            .find_map(|part| part.strip_prefix("calls=")?.parse().ok());
        calls.insert(name.to_owned(), count.unwrap_or(0.0));
    }
    Ok(calls)
}

/// Empties the server.
pub(crate) async fn flush(connection: &mut MultiplexedConnection) -> Result<()> {
    Ok(redis::cmd("FLUSHALL").arg("SYNC").exec_async(connection).await?)
}
