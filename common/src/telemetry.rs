//! Traces across the queue, and the binaries' logs.
//!
//! The producer writes the W3C `traceparent` of the current span into the task's headers; the worker's span
//! for the attempt takes it as its parent. Without a tracer nothing is written.

use std::collections::BTreeMap;

use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The header that carries the trace.
pub const TRACEPARENT: &str = "traceparent";

/// The current span as a `traceparent`, if it is part of a trace.
#[must_use]
pub fn current_traceparent() -> Option<String> {
    let context = Span::current().context();
    let span = context.span();
    let span = span.span_context();
    span.is_valid().then(|| {
        format!(
            "00-{}-{}-{:02x}",
            span.trace_id(),
            span.span_id(),
            span.trace_flags().to_u8()
        )
    })
}

/// Makes `span` a child of the span that the headers name. Without one, or with nonsense, `span` stays a root.
pub fn adopt_parent(span: &Span, headers: &BTreeMap<String, String>) {
    if let Some(parent) = headers.get(TRACEPARENT).and_then(|text| parse_traceparent(text)) {
        // Fails only when the span is not recorded at all, and then there is nothing to link.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}

/// Reads a `traceparent` (version 00 and whatever later versions keep of it).
#[must_use]
pub fn parse_traceparent(text: &str) -> Option<SpanContext> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let lengths_fit = (version.len(), trace.len(), span.len(), flags.len()) == (2, 32, 16, 2);
    if !lengths_fit || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let flags = u8::from_str_radix(flags, 16).ok()?;
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(flags & 1),
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

/// Logs of a binary: to stderr, `RUST_LOG` decides how much, `info` if it is silent.
pub fn init_logs() {
    use tracing_subscriber::{EnvFilter, fmt};

    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
    let _ = fmt()
        .with_env_filter(filter)
        .with_ansi(colour)
        .with_writer(std::io::stderr)
        .try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_no_parent() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let parsed = parse_traceparent(good).unwrap();
        assert_eq!(parsed.span_id().to_string(), "b7ad6b7169203331");
        for bad in [
            "",
            "00",
            &good[1..],
            &good.replace("00-", "ff-"),
            &good.replace('0', "g"),
            &format!("{good}-x"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        ] {
            assert!(parse_traceparent(bad).is_none(), "{bad}");
        }
    }
}
