//! `gate check`.

use switchback_common::{Queue, Version};
use switchback_gates::{
    Share,
    readiness::{Level, Objection},
};

use crate::{
    context::Context,
    exit::Failure,
    output::{Output, sheet},
    readiness::{self, LISTEN, Readiness},
    text::{count, plain},
};

pub(super) async fn check(
    context: &Context,
    out: &mut Output,
    queue: &Queue,
    version: &Version,
    percent: Share,
) -> Result<(), Failure> {
    // An edit by hand that is pending is sealed, as any worker would; and a queue that is not there is said to be so.
    context.gate(queue).await?;
    let share = f64::from(percent.thousandths()) / f64::from(Share::ALL.thousandths());
    let found = readiness::look(context, queue, version, share, LISTEN).await?;
    out.value(&found, |out| {
        let mut text = sheet(&rows(&found));
        for objection in &found.objections {
            text.push_str(&line(out, objection));
        }
        text
    })?;
    let blocking = found.objections.iter().filter(|o| o.level == Level::Blocks).count();
    match found.ready {
        true => Ok(()),
        false => Err(Failure::Refused(format!(
            "{version} is not ready for {queue}: {}",
            count(blocking, "objection")
        ))),
    }
}

fn line(out: &Output, objection: &Objection) -> String {
    let mark = match objection.level {
        Level::Blocks => "!!",
        Level::Warns => "!",
    };
    format!("{} {}\n", out.loud(mark), plain(&objection.text))
}

fn rows(found: &Readiness) -> Vec<(&'static str, String)> {
    let capacity = &found.capacity;
    let needed = match (capacity.needed, capacity.mean_ms) {
        (Some(needed), Some(mean)) => format!(
            ", about {:.1} needed ({:.1} tasks/s of {mean:.1} ms)",
            needed, capacity.rate_per_sec
        ),
        _ => String::new(),
    };
    let drain = match found.backlog.drain_secs {
        Some(0) => String::new(),
        Some(secs) => format!(", about {secs} s for its workers"),
        None => ", nobody can say for how long".to_owned(),
    };
    let sample = &found.sample;
    let left_out = match sample.left_out {
        0 => String::new(),
        n => format!(", {n} too large to look at"),
    };
    vec![
        (
            "VERSION",
            format!(
                "{} for {} % of {}: {}",
                found.version,
                found.percent,
                found.queue,
                if found.ready { "ready" } else { "NOT READY" }
            ),
        ),
        (
            "WORKERS",
            format!(
                "{}, {}{needed}",
                count(capacity.sessions, "live worker"),
                count(capacity.slots, "slot")
            ),
        ),
        ("BACKLOG", format!("{} waiting{drain}", found.backlog.waiting)),
        (
            "SAMPLE",
            format!("{} looked at, {} readable{left_out}", sample.looked_at, sample.readable),
        ),
    ]
}
