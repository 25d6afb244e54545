//! What the tests of Switchback stand on: a real Redis for each test, a network that can fail,
//! processes that can be stopped and killed, and waiting without sleeping.
//!
//! ```no_run
//! # async fn example() {
//! use std::time::Duration;
//! use switchback_tests::{Link, Mode, RedisServer, eventually};
//!
//! let server = RedisServer::start().await;
//! let link = Link::to(server.port()).await;
//! // … start the thing under test on link.url() …
//! link.set(Mode::Blackhole).await;
//! eventually("the stream is drained", Duration::from_secs(5), async || {
//!     server.cli(&["XLEN", "s"]).await == redis::Value::Int(0)
//! })
//! .await;
//! # }
//! ```
//!
//! # Layout
//!
//! * `redis` — where is my Redis, and what happens when it dies?
//! * `link` — what if the network between me and Redis fails?
//! * `process` — what if a worker process is stopped, ended or killed?
//! * `eventually` — has it happened yet?
//! * `witness` — did anything start that a flip had forbidden?
//! * `history` — what happened to every task, and were the promises kept?
//! * `pretend` — who has this version, if no worker runs?
//! * `port` — which port is safe to hand to a server?
//! * `words` — what would a shell make of this line of a document?

mod eventually;
pub mod history;
mod link;
mod port;
mod pretend;
mod process;
mod redis;
mod witness;
mod words;

pub use self::eventually::{Observed, eventually, patience};
pub use self::link::{Link, LinkCounters, Mode};
pub use self::pretend::pretend;
pub use self::process::Process;
pub use self::redis::{RedisServer, RedisServerBuilder};
pub use self::witness::{Flip, Late, Start, Witness};
pub use self::words::words;

/// The guide's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../../docs/guide.md")]
struct Guide;

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
