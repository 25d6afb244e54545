//! W3C trace context: the trace of the caller goes with the task and comes out at the handler.

use std::sync::{Arc, Mutex, Once};

use opentelemetry::trace::TracerProvider as _;
use redis::Value;
use switchback_common::telemetry::current_traceparent;
use switchback_tests::{eventually, patience};
use tracing::Instrument as _;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::fixture::{Fixture, Job};

/// Records traces from now on, in every thread: a subscriber of one thread may lose a race for a span that another
/// thread was first to meet.
fn traced() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::set_global_default(subscriber).expect("the only subscriber");
    });
}

fn trace_id(traceparent: &str) -> String {
    traceparent.split('-').nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn the_trace_of_the_caller_reaches_the_handler() {
    let mut fixture = Fixture::new().await;
    traced();
    let seen = Arc::new(Mutex::new(None));
    let noted = Arc::clone(&seen);
    let config = fixture.config();
    fixture
        .worker(config, |t| {
            t.version("v1", move |_: Job, ctx| {
                let noted = Arc::clone(&noted);
                async move {
                    let here = current_traceparent().unwrap_or_default();
                    *noted.lock().unwrap() = Some((here, ctx.headers["traceparent"].clone()));
                    Ok(())
                }
            })
        })
        .await;
    let job = Job {
        n: 1,
        then: String::new(),
    };
    let checkout = async {
        fixture.producer.enqueue(&job).await.unwrap();
        current_traceparent().unwrap()
    };
    let sent = checkout.instrument(tracing::info_span!("checkout")).await;
    let (here, header) = eventually(
        "the handler has run",
        patience(std::time::Duration::from_secs(5)),
        async || seen.lock().unwrap().clone(),
    )
    .await;
    assert_eq!(header, sent, "carried as it was");
    assert_eq!(
        trace_id(&here),
        trace_id(&sent),
        "the attempt's span belongs to the caller's trace"
    );
    assert_ne!(here, sent, "and is a span of its own");
}

#[tokio::test]
async fn without_a_trace_a_task_carries_no_headers() {
    let fixture = Fixture::new().await;
    fixture.enqueue([1]).await;
    let Value::Array(entries) = fixture.raw(&["XRANGE", "sb:stream:{test:job}", "-", "+"]).await else {
        panic!("an array")
    };
    assert!(!format!("{entries:?}").contains("headers"));
}
