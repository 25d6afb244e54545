//! Waiting for something to become true, without sleeping for a guessed time.

use std::fmt::Display;
use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

/// The shortest limit there is. A limit is for what never comes: a machine that is busy with other things for seconds has
/// then shown nothing. What must come within a certain time is measured by its test.
const SHORTEST: Duration = Duration::from_secs(30);

/// What one look at the world yields: the awaited value, or what was seen in its place.
pub trait Observed {
    /// What [`eventually`] returns.
    type Value;

    /// The value, or a line for the panic message.
    fn observed(self) -> Result<Self::Value, String>;
}

impl Observed for bool {
    type Value = ();

    fn observed(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("false".to_owned()) }
    }
}

impl<T> Observed for Option<T> {
    type Value = T;

    fn observed(self) -> Result<T, String> {
        self.ok_or_else(|| "None".to_owned())
    }
}

/// The kindest to whoever reads the failure: `Err` says what there was instead.
impl<T, E: Display> Observed for Result<T, E> {
    type Value = T;

    fn observed(self) -> Result<T, String> {
        self.map_err(|seen| seen.to_string())
    }
}

/// Looks again and again, at growing intervals of 1 to 50 ms, until `probe` yields `true`, `Some` or `Ok`.
///
/// The deadline is at least 30 s, is stretched by [`patience`], and also ends a look that hangs.
///
/// # Panics
///
/// After the deadline, with `what` and what the last finished look saw.
#[track_caller]
pub fn eventually<R: Observed>(
    what: &str,
    deadline: Duration,
    mut probe: impl AsyncFnMut() -> R,
) -> impl Future<Output = R::Value> {
    let caller = std::panic::Location::caller(); // an async fn would report this file
    async move {
        let limit = patience(deadline.max(SHORTEST));
        let end = Instant::now() + limit;
        let mut seen = "nothing: the first look did not return".to_owned();
        let mut pause = Duration::from_millis(1);
        loop {
            match timeout_at(end, probe()).await.map(Observed::observed) {
                Ok(Ok(value)) => return value,
                Ok(Err(state)) => seen = state,
                Err(_elapsed) => {}
            }
            if Instant::now() >= end {
                panic!("{caller}: not within {limit:?}: {what}; last seen: {seen}");
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

/// `duration`, stretched by the environment's `SB_PATIENCE` (a factor, 1 when unset) for slow machines.
///
/// For upper limits only; a test that measures must not use it.
pub fn patience(duration: Duration) -> Duration {
    static FACTOR: LazyLock<f64> = LazyLock::new(|| match std::env::var("SB_PATIENCE") {
        Ok(text) => match text.parse() {
            Ok(factor) if factor > 0.0 && factor <= 1_000.0 => factor,
            _ => panic!("SB_PATIENCE={text}: expected a factor between 0 and 1000"),
        },
        Err(_) => 1.0,
    });
    duration.mul_f64(*FACTOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn returns_the_value_once_it_is_there() {
        let mut looks = 0;
        let value = eventually("seven looks", Duration::from_secs(1), async || {
            looks += 1;
            (looks == 7).then_some(looks)
        })
        .await;
        assert_eq!(value, 7);
        eventually("true", Duration::ZERO, async || true).await;
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "the queue is empty; last seen: 3 waiting")]
    async fn says_what_it_saw_last() {
        eventually("the queue is empty", Duration::from_secs(1), async || {
            Err::<(), _>("3 waiting")
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "an answer; last seen: nothing")]
    async fn gives_up_on_a_look_that_hangs() {
        eventually("an answer", Duration::from_secs(1), async || {
            std::future::pending::<bool>().await
        })
        .await;
    }
}
