//! The demo: a version with a bug that only real text brings out is ramped twice and rolled back twice, on a real
//! Redis with real worker processes, and everything that Switchback promises about it is counted.

mod corpus;
mod ledger;
mod operator;
mod pace;
mod pools;
mod report;
mod script;
mod stage;
mod timeline;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use corpus::Corpus;
use pools::Pools;
use script::Plan;
use stage::Stage;
use switchback_common::{ConnectOptions, Queue, Store, Task as _};
use switchback_tests::RedisServer;
use switchback_worker::examples::index_document::IndexDocument;
use timeline::Timeline;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

const NAMESPACE: &str = "demo";

/// Why the demo cannot go on.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Ramps a bad version twice, rolls it back twice, and counts what happened.
#[derive(Debug, Parser)]
#[command(name = "switchback-demo", version, max_term_width = 110)]
#[command(after_help = "Exit codes: 0 everything holds, 1 something does not, 2 usage, 130 interrupted.")]
struct Args {
    /// Fewer documents, in less than half a minute.
    #[arg(long)]
    quick: bool,
    /// Index every text under this directory. Environment: INPUT. Defaults to the machine's documentation.
    #[arg(long, value_name = "DIR")]
    input: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let mut timeline = Timeline::begin();
    let ended = tokio::select! {
        // Dropped when the other is first: servers, workers and files go with it.
        ended = run(&args, &mut timeline) => ended,
        () = interrupted() => {
            eprintln!("switchback-demo: interrupted");
            return ExitCode::from(130);
        }
    };
    match ended {
        Ok(wrong) if wrong.is_empty() => ExitCode::SUCCESS,
        Ok(wrong) => {
            eprintln!("switchback-demo: this does not hold: {}", wrong.join("; "));
            ExitCode::FAILURE
        }
        Err(failure) => {
            eprintln!("switchback-demo: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// SIGINT or SIGTERM.
async fn interrupted() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// The whole demo; names the claims that do not hold.
async fn run(args: &Args, timeline: &mut Timeline) -> Result<Vec<String>, Failure> {
    let plan = if args.quick { Plan::QUICK } else { Plan::FULL };
    let (worker, switchback) = (binary("switchback-worker")?, binary("switchback")?);
    need_redis_server()?;
    let corpus = load(args, plan, timeline)?;

    let dir = tempfile::Builder::new().prefix("switchback-demo-").tempdir()?;
    let index_dir = dir.path().join("index");
    std::fs::create_dir(&index_dir)?;
    // A task of its own: the harness panics, with the server's log, when it does not start.
    let mut starting = JoinSet::new();
    starting.spawn(RedisServer::start());
    let redis = match starting.join_next().await {
        Some(Ok(redis)) => redis,
        _ => return Err("the Redis server did not start; see above".into()),
    };
    let url = redis.url();
    let store = Store::new(&ConnectOptions::new(&url))?;
    let facts = store.check_server().await?;
    timeline.say(format_args!(
        "{} on port {}. To look in from elsewhere:",
        facts.name,
        redis.port()
    ));
    timeline.note(format_args!(
        "export SWITCHBACK_REDIS_URL={url} SWITCHBACK_NAMESPACE={NAMESPACE}"
    ));

    let pools = Pools::start(&worker, &url, dir.path(), &index_dir)?;
    let stage = Stage {
        plan,
        queue: Queue::new(NAMESPACE.parse()?, IndexDocument::TYPE.parse()?),
        store,
        operator_of: (switchback, url, redis.port()),
        corpus: &corpus,
        index_dir: &index_dir,
    };
    let ended = Box::pin(stage.perform(&pools, timeline)).await;
    timeline.hide_bar();
    match &ended {
        Ok(wrong) if wrong.is_empty() => farewell(timeline),
        _ => pools.show_logs(timeline),
    }
    ended
}

fn load(args: &Args, plan: Plan, timeline: &Timeline) -> Result<Corpus, Failure> {
    let environment = std::env::var_os("INPUT")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from);
    let input = args.input.clone().or(environment);
    let corpus = Corpus::load(input.as_deref(), plan.least, plan.most).map_err(|error| {
        format!(
            "cannot read {}: {error}",
            input.as_deref().unwrap_or_else(|| Path::new("")).display()
        )
    })?;
    let roots = corpus.roots.join(", ");
    let (documents, bad) = (corpus.documents.len(), corpus.treacherous());
    if documents == 0 {
        return Err(format!("there is no text in {roots}").into());
    }
    timeline.say(format_args!(
        "{} texts ({:.1} MB) from {}",
        corpus.texts,
        report::megabytes(corpus.bytes),
        roots
    ));
    if documents > corpus.texts {
        timeline.note(format_args!("repeated under distinct keys: {documents} documents"));
    }
    timeline.note(format_args!(
        "{bad} of {documents} documents ({:.1} %) have a word that ends in a character of several bytes, such as José: \
         v1 takes them, v2 panics",
        100.0 * report::megabytes(bad) / report::megabytes(documents)
    ));
    if bad == 0 {
        return Err("no document would make v2 fail, so there is nothing to roll back; choose another INPUT".into());
    }
    Ok(corpus)
}

/// One of the product's binaries, built beside this one.
fn binary(name: &str) -> Result<PathBuf, Failure> {
    let path = std::env::current_exe()?.with_file_name(name);
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!("{} is not built; `make demo` builds all that is needed", path.display()).into())
    }
}

fn need_redis_server() -> Result<(), Failure> {
    let named = std::env::var_os("REDIS_SERVER").filter(|path| !path.is_empty());
    let found = match &named {
        Some(path) => Path::new(path).is_file(),
        None => ["redis-server", "valkey-server"]
            .into_iter()
            .any(|name| operator::on_path(name).is_some()),
    };
    if found {
        Ok(())
    } else {
        Err("there is no redis-server; `make demo` finds or installs one, or set REDIS_SERVER to its path".into())
    }
}

fn farewell(timeline: &Timeline) {
    timeline.line("");
    timeline.line("try it yourself");
    timeline.line("  make demo INPUT=<directory>                      the same with texts of your own");
    timeline
        .line("  docker compose up --build                        a Redis and both pools, to steer with `switchback`");
    timeline.line("  redis-cli HSET 'sb:gate:{ns:type}' only v1       the rollback that always works");
}
