//! Handlers that `switchback-worker` brings along.
