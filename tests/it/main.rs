//! The system as a whole, from outside.

mod architecture;
mod audit;
mod cancel;
mod cli;
mod connect;
mod dead;
mod dead_cli;
mod enqueue;
mod gate_change;
mod gate_seal;
mod guide;
mod limits;
mod moves;
mod pool;
mod queue;
mod schedule_cli;
mod schedules;
mod sessions;
mod settle;
mod suspects;
mod targets;
mod task_cli;
mod throttle;
mod throttle_cli;
