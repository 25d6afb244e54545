//! The system as a whole, from outside.

mod architecture;
