//! The system as a whole, from outside.

mod architecture;
mod cancel;
mod cli;
mod connect;
mod enqueue;
mod gate_change;
mod gate_seal;
mod moves;
mod pool;
mod queue;
mod sessions;
mod settle;
