//! The scheduler. One simulated thread at a time holds the baton, and passes it on at scheduling points.
//!
//! ```text
//!             started            its turn                 returns
//!   (new) ─────────────▶ Ready ──────────────▶ running ─────────────▶ Finished
//!                          ▲                      │
//!                          │ woken, or time is up │ futex wait, sleep, join
//!                          └────── Waiting ◀──────┘
//! ```
//!
//! Only the thread with the baton accesses [`State`], so its lock is never contended. The waiting functions that
//! simulated threads call are implemented in `calls.rs`, which calls this module.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::calls;
use crate::random::Random;
use crate::trace::Trace;

/// Monotonic time at the start of a run, in ns. It is not 0, so that code can compute times before the start, such as a
/// day ago.
const BEGIN_NS: u64 = 1_000_000 * 1_000_000_000;

/// Exclusive maximum of the virtual time that a scheduling point takes, in ns.
const POINT_NS_MAX: u64 = 20_000;

/// Maximum jump of time while threads could run, in ns. Such a jump has the effect of a machine that was suspended for
/// this long.
const JUMP_NS_MAX: u64 = 10 * 1_000_000_000;

/// A run with more scheduling points than this is considered to be in an endless loop.
const POINTS_MAX: u64 = 20_000_000;

/// Settings of a simulation.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The seed, which determines the whole run.
    pub seed: u64,
    /// Whether to keep the whole trace in [`Outcome::lines`].
    pub keep_lines: bool,
}

/// The result of a run.
#[derive(Debug)]
pub struct Outcome<T> {
    /// The return value of the function, or its panic.
    pub result: std::thread::Result<T>,
    /// A hash of everything that was traced, in order, with threads and times.
    pub trace_hash: u64,
    /// The trace itself, if it was requested.
    pub lines: Vec<String>,
    /// Number of scheduling points.
    pub points: u64,
    /// Virtual time from start to end.
    pub took: Duration,
}

/// The state of a simulation.
pub(crate) struct World {
    state: Mutex<State>,
}

struct State {
    threads: Vec<Thread>,
    now_ns: u64,
    points: u64,
    /// Probability that a thread that can run continues at a scheduling point.
    goes_on: f64,
    /// Probability that time jumps to the next deadline although threads could run.
    time_jumps: f64,
    schedule: Random,
    /// Generator for the random numbers of the code under test. It is separate, so that a change of the schedule does
    /// not change these numbers.
    drawn: Random,
    trace: Trace,
    seed: u64,
}

struct Thread {
    name: String,
    status: Status,
    baton: Arc<Baton>,
    /// Handle of the thread in the C library, once it is known.
    handle: Option<usize>,
    /// Whether the last wait ended with a timeout.
    timed_out: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Ready,
    Waiting { on: Event, until_ns: Option<u64> },
    Finished,
}

/// The event that a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A wake of the futex at this address.
    Futex(usize),
    /// No event, only the time.
    Time,
    /// The end of the thread with this number.
    End(usize),
    /// The end of all other threads.
    AllEnd,
}

/// A thread's permission to run. The thread waits for it outside of the simulation.
#[derive(Default)]
pub(crate) struct Baton(AtomicU32);

impl Baton {
    fn give(&self) {
        self.0.store(1, Ordering::Release);
        calls::wake_real(&self.0);
    }

    fn take(&self) {
        while self.0.swap(0, Ordering::Acquire) == 0 {
            calls::wait_real(&self.0, 0);
        }
    }
}

thread_local! {
    /// The simulation that this thread belongs to, and the number of the thread in it.
    static CURRENT: RefCell<Option<(Arc<World>, usize)>> = const { RefCell::new(None) };
    /// Set while the simulator itself runs on this thread, so that its own calls are not simulated.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `simulated` and all threads that it starts, in the order that the seed determines, and returns when all of them
/// have ended.
///
/// # Panics
/// Panics if no thread can be started. If the simulation deadlocks or does not end, the process prints the reason and
/// the seed, and aborts.
pub fn run<T: Send + 'static>(settings: Settings, simulated: impl FnOnce() -> T + Send + 'static) -> Outcome<T> {
    let mut schedule = Random::new(settings.seed);
    let goes_on = [0.0, 0.5, 0.8, 0.95, 0.99][schedule.below(5) as usize];
    let time_jumps = [0.0, 0.0, 0.001, 0.02][schedule.below(4) as usize];
    let drawn = Random::new(schedule.number());
    let state = State {
        threads: Vec::new(),
        now_ns: BEGIN_NS,
        points: 0,
        goes_on,
        time_jumps,
        schedule,
        drawn,
        trace: Trace::new(settings.keep_lines),
        seed: settings.seed,
    };
    let world = Arc::new(World { state: Mutex::new(state) });
    let of_thread = world.clone();
    let first = move || {
        let number = of_thread.add_thread("main".into());
        enter(of_thread.clone(), number);
        let result = catch_unwind(AssertUnwindSafe(simulated));
        of_thread.wait(number, Event::AllEnd, None);
        leave();
        result
    };
    // A new thread, so that thread-local state starts fresh in each run.
    let thread = std::thread::Builder::new().name("simulated".into()).spawn(first).expect("failed to start a thread");
    let result = thread.join().and_then(|result| result);
    let mut state = world.lock();
    let (trace_hash, lines) = std::mem::replace(&mut state.trace, Trace::new(false)).finish();
    Outcome { result, trace_hash, lines, points: state.points, took: Duration::from_nanos(state.now_ns - BEGIN_NS) }
}

/// A scheduling point of the code under test: other threads may run before this returns. Outside of a simulation, this
/// does nothing.
pub fn point() {
    in_world(|world, me| world.point(me));
}

/// Adds a line to the trace. Outside of a simulation, this does nothing.
pub fn trace(what: fmt::Arguments<'_>) {
    in_world(|world, me| {
        let state = &mut *world.lock();
        state.trace.add(&state.threads[me].name, state.now_ns - BEGIN_NS, what);
    });
}

/// Calls `act` if this is a simulated thread. Calls of the C library by `act` are not simulated.
pub(crate) fn in_world<T>(act: impl FnOnce(&Arc<World>, usize) -> T) -> Option<T> {
    if INSIDE.get() {
        return None;
    }
    // A thread that is ending has left the simulation, and its thread-locals may already be destroyed.
    let (world, me) = CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()?;
    INSIDE.set(true);
    let done = act(&world, me);
    INSIDE.set(false);
    Some(done)
}

pub(crate) fn enter(world: Arc<World>, number: usize) {
    CURRENT.with(|current| *current.borrow_mut() = Some((world, number)));
}

pub(crate) fn leave() {
    INSIDE.set(true);
    let left = CURRENT.with(|current| current.borrow_mut().take());
    drop(left);
    INSIDE.set(false);
}

impl World {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a thread that is ready to run and returns its number. The number makes the name unique.
    pub(crate) fn add_thread(&self, name: String) -> usize {
        let threads = &mut self.lock().threads;
        let number = threads.len();
        let name = format!("{name}#{number}");
        threads.push(Thread { name, status: Status::Ready, baton: Arc::default(), handle: None, timed_out: false });
        number
    }

    pub(crate) fn name_thread(&self, number: usize, name: &str) {
        self.lock().threads[number].name = format!("{name}#{number}");
    }

    pub(crate) fn set_handle(&self, number: usize, handle: usize) {
        self.lock().threads[number].handle = Some(handle);
    }

    /// Returns the most recently started thread with this handle, because handles are reused.
    pub(crate) fn by_handle(&self, handle: usize) -> Option<usize> {
        self.lock().threads.iter().rposition(|thread| thread.handle == Some(handle))
    }

    /// Waits for the first turn of a new thread.
    pub(crate) fn await_turn(&self, number: usize) {
        let baton = self.lock().threads[number].baton.clone();
        baton.take();
    }

    pub(crate) fn monotonic_ns(&self) -> u64 {
        self.lock().now_ns
    }

    pub(crate) fn fill_random(&self, bytes: &mut [u8]) {
        self.lock().drawn.fill(bytes);
    }

    /// Lets other threads run.
    pub(crate) fn point(&self, me: usize) {
        self.hand_on(me, self.lock());
    }

    /// Waits until the event occurs or the given time is reached. Returns whether the event occurred.
    pub(crate) fn wait(&self, me: usize, on: Event, until_ns: Option<u64>) -> bool {
        let mut state = self.lock();
        let is_there = match on {
            Event::End(thread) => state.threads[thread].status == Status::Finished,
            Event::AllEnd => state.others_have_ended(me),
            Event::Futex(_) | Event::Time => false,
        };
        if !is_there {
            state.threads[me].status = Status::Waiting { on, until_ns };
            state.threads[me].timed_out = false;
        }
        self.hand_on(me, state);
        !self.lock().threads[me].timed_out
    }

    /// Waits until a futex is woken, if it still has the expected value. Returns `None` if it has not.
    pub(crate) fn wait_futex(
        &self,
        me: usize,
        address: usize,
        is_as_expected: bool,
        until_ns: Option<u64>,
    ) -> Option<bool> {
        is_as_expected.then(|| self.wait(me, Event::Futex(address), until_ns))
    }

    /// Wakes up to `most` threads that wait on a futex, and returns how many were woken.
    pub(crate) fn wake_futex(&self, me: usize, address: usize, most: usize) -> usize {
        let mut state = self.lock();
        let mut woken = 0;
        while woken < most {
            let waits = |thread: &Thread| matches!(thread.status, Status::Waiting { on: Event::Futex(at), .. } if at == address);
            let waiting: Vec<usize> = (0..state.threads.len()).filter(|at| waits(&state.threads[*at])).collect();
            if waiting.is_empty() {
                break;
            }
            let next = waiting[state.schedule.below(waiting.len() as u64) as usize];
            state.threads[next].status = Status::Ready;
            woken += 1;
        }
        self.hand_on(me, state);
        woken
    }

    /// Ends the thread and lets another one continue.
    pub(crate) fn finish(&self, me: usize) {
        let mut state = self.lock();
        state.threads[me].status = Status::Finished;
        for number in 0..state.threads.len() {
            let ended = match state.threads[number].status {
                Status::Waiting { on: Event::End(thread), .. } => thread == me,
                Status::Waiting { on: Event::AllEnd, .. } => state.others_have_ended(number),
                _ => false,
            };
            if ended {
                state.threads[number].status = Status::Ready;
            }
        }
        let next = state.next(None);
        let baton = state.threads[next].baton.clone();
        drop(state);
        baton.give();
    }

    /// Chooses the thread that continues, and returns when it is this thread's turn again.
    fn hand_on(&self, me: usize, mut state: MutexGuard<'_, State>) {
        let next = state.next(Some(me));
        if next == me {
            return;
        }
        let theirs = state.threads[next].baton.clone();
        let mine = state.threads[me].baton.clone();
        drop(state);
        theirs.give();
        mine.take();
    }
}

impl State {
    fn others_have_ended(&self, me: usize) -> bool {
        let mut others = self.threads.iter().enumerate().filter(|(number, _)| *number != me);
        others.all(|(_, thread)| thread.status == Status::Finished)
    }

    /// Advances time a little, and chooses one of the threads that can run.
    fn next(&mut self, me: Option<usize>) -> usize {
        self.points += 1;
        if self.points > POINTS_MAX {
            self.abort("is in an endless loop");
        }
        self.now_ns += self.schedule.below(POINT_NS_MAX);
        if self.time_jumps > 0.0 && self.schedule.happens(self.time_jumps) {
            self.jump(JUMP_NS_MAX);
        }
        loop {
            self.wake_due();
            let is_ready = |thread: &Thread| thread.status == Status::Ready;
            if let Some(me) = me
                && is_ready(&self.threads[me])
                && self.goes_on > 0.0
                && self.schedule.happens(self.goes_on)
            {
                return me;
            }
            let ready: Vec<usize> = (0..self.threads.len()).filter(|at| is_ready(&self.threads[*at])).collect();
            if !ready.is_empty() {
                return ready[self.schedule.below(ready.len() as u64) as usize];
            }
            if !self.jump(u64::MAX) {
                self.abort("is deadlocked: every thread waits for another");
            }
        }
    }

    /// Advances time to the next deadline, if there is one within this time.
    fn jump(&mut self, within_ns: u64) -> bool {
        let deadline = |thread: &Thread| match thread.status {
            Status::Waiting { until_ns, .. } => until_ns,
            Status::Ready | Status::Finished => None,
        };
        let next_ns = self.threads.iter().filter_map(deadline).min();
        let Some(next_ns) = next_ns.filter(|next_ns| *next_ns <= self.now_ns.saturating_add(within_ns)) else {
            return false;
        };
        self.now_ns = self.now_ns.max(next_ns);
        true
    }

    fn wake_due(&mut self) {
        for thread in &mut self.threads {
            if let Status::Waiting { until_ns: Some(until_ns), .. } = thread.status
                && until_ns <= self.now_ns
            {
                thread.status = Status::Ready;
                thread.timed_out = true;
            }
        }
    }

    /// Aborts the process: the simulation cannot continue, and the code under test cannot be told, because it is in the
    /// middle of a call.
    fn abort(&self, why: &str) -> ! {
        eprintln!("the simulation with seed {} {why}, after {} scheduling points", self.seed, self.points);
        for thread in self.threads.iter().filter(|thread| thread.status != Status::Finished) {
            eprintln!("  {}: {:?}", thread.name, thread.status);
        }
        std::process::abort()
    }
}
