//! A deterministic simulator of threads and time.
//!
//! [`run`] calls a function whose threads, including all threads that they start, take turns: one runs while all others
//! are stopped. The seed decides which thread continues at every point where an interruption may matter to other
//! threads: when a thread waits for a lock, a queue or a condition, wakes another thread, sleeps, yields, or starts or
//! joins a thread, and wherever the code under test calls [`point`], as a simulated disk does on each call. Time is
//! virtual: it advances a little at each of these points, and jumps to the next deadline when all threads wait. The
//! same seed therefore gives the same run, and a run takes only as long as its computations.
//!
//! Neither the code under test nor its libraries are changed for this: the simulator replaces the few functions of the
//! C library through which every Rust thread waits, sleeps, reads the clock and draws random numbers (`calls.rs`). It
//! works on Linux, and only in programs that are dedicated to simulations, because threads outside of a simulation must
//! not contend for the same locks as those inside. For the same reason, a process runs one simulation at a time.

mod calls;
mod random;
mod scheduler;
mod trace;

pub use scheduler::{Outcome, Settings, point, run, trace};
