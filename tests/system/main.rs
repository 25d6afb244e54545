//! Workers, producers and gates together, on a real Redis.

mod attacks;
mod attempts;
mod bad_input;
mod cancel;
mod claims;
mod documents;
mod fixture;
mod fleet;
mod footprint;
mod inflight;
mod limits;
mod options;
mod poison;
mod policy;
mod producers;
mod recovery;
mod results;
mod retention;
mod rolling;
mod rollout;
mod rollout_targets;
mod routing;
mod schedules;
mod seams;
mod throttle;
mod traces;
