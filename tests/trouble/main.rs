//! Redis in trouble, and networks, disks and handlers with it: nothing is lost, whoever asks is told, and it heals by
//! itself. `docs/reliability.md` has the table of faults.

mod backlog;
mod builds;
mod clocks;
mod disk;
#[allow(dead_code, reason = "shared with tests/system, which uses the rest")]
#[path = "../system/fixture.rs"]
mod fixture;
mod health;
mod links;
mod memory;
mod processes;
mod refusals;
mod restarts;
mod tools;
