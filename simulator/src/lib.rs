//! A deterministic simulator of threads and time.
//!
//! [`run`] calls a function whose threads, and all that they start, take turns: one runs, all others stand still. At every
//! point where a thread could be interrupted in a way that matters to others, the seed decides who goes on: where a thread
//! waits for a lock, a queue or a condition, wakes another, sleeps, yields, starts or joins a thread, and wherever the code
//! under test calls [`point`], as a simulated disk does on each call. Time is virtual: it moves a little at each such point,
//! and jumps to the next deadline when everybody waits. So the same seed gives the same run, and a run takes no longer than
//! its work.
//!
//! The code under test is not changed for this, nor are the libraries that it uses: the simulator stands in for the few
//! functions of the C library through which every Rust thread waits, sleeps, tells the time and draws random numbers
//! (`calls.rs`). It works on Linux, and only where the program that links this crate is started for simulations: threads
//! outside of a simulation must not contend for the same locks as those inside, so one process runs one simulation at a
//! time.

mod calls;
mod random;
mod scheduler;
mod trace;

pub use scheduler::{Outcome, Settings, point, run, trace};
