//! Who runs: one thread of a simulation at a time holds the baton, and hands it on at scheduling points.
//!
//! ```text
//!             started            its turn                 returns
//!   (new) ─────────────▶ Ready ──────────────▶ running ─────────────▶ Finished
//!                          ▲                      │
//!                          │ woken, or time is up │ futex wait, sleep, join
//!                          └────── Waiting ◀──────┘
//! ```
//!
//! Only the thread with the baton touches [`State`], so its lock is never contended. What simulated threads call to wait
//! arrives here through `calls.rs`.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::calls;
use crate::random::Random;
use crate::trace::Trace;

/// Monotonic time begins here, in ns: code may compute what was a day ago.
const BEGIN_NS: u64 = 1_000_000 * 1_000_000_000;

/// A scheduling point takes at most this long, in ns of virtual time.
const POINT_NS_MAX: u64 = 20_000;

/// Time jumps no further than this, in ns, while threads could run: as if the machine had stood still for so long.
const JUMP_NS_MAX: u64 = 10 * 1_000_000_000;

/// A run with more scheduling points than this goes round in circles.
const POINTS_MAX: u64 = 20_000_000;

/// How a simulation is run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Decides everything.
    pub seed: u64,
    /// Whether [`Outcome::lines`] has the whole trace.
    pub keep_lines: bool,
}

/// What a run did.
#[derive(Debug)]
pub struct Outcome<T> {
    /// What the function returned, or its panic.
    pub result: std::thread::Result<T>,
    /// A hash of everything that was traced, in order, with threads and times.
    pub trace_hash: u64,
    /// The trace itself, where it was asked for.
    pub lines: Vec<String>,
    /// Scheduling points.
    pub points: u64,
    /// Virtual time from begin to end.
    pub took: Duration,
}

/// One simulation.
pub(crate) struct World {
    state: Mutex<State>,
}

struct State {
    threads: Vec<Thread>,
    now_ns: u64,
    points: u64,
    /// How probable it is that a thread goes on at a point where it could.
    goes_on: f64,
    /// How probable it is that time jumps to the next deadline though others could run.
    time_jumps: f64,
    schedule: Random,
    /// For what the code under test draws: a change of the schedule must not change that.
    drawn: Random,
    trace: Trace,
    seed: u64,
}

struct Thread {
    name: String,
    status: Status,
    baton: Arc<Baton>,
    /// The C library's name of it, once it is known.
    handle: Option<usize>,
    /// Whether the last wait ended because its time was up.
    timed_out: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Ready,
    Waiting { on: Event, until_ns: Option<u64> },
    Finished,
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A wake of the futex at this address.
    Futex(usize),
    /// Time alone.
    Time,
    /// The end of the thread with this number.
    End(usize),
    /// The end of all other threads.
    AllEnd,
}

/// A thread's right to run, on which it waits outside of the simulation.
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
    /// The simulation that this thread belongs to, and its number there.
    static CURRENT: RefCell<Option<(Arc<World>, usize)>> = const { RefCell::new(None) };
    /// Set while the simulator itself runs on this thread: its own calls are real.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `simulated`, and all threads that it starts, as the seed decides; returns when all of them have ended.
///
/// # Panics
/// Where no thread can be started. Where a simulation stands still, every thread waiting for another, or goes round in
/// circles, the process says so with the seed, and aborts.
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
    // A thread of its own: what threads keep for themselves begins anew with each run.
    let thread = std::thread::Builder::new().name("simulated".into()).spawn(first).expect("a thread can be started");
    let result = thread.join().and_then(|result| result);
    let mut state = world.lock();
    let (trace_hash, lines) = std::mem::replace(&mut state.trace, Trace::new(false)).finish();
    Outcome { result, trace_hash, lines, points: state.points, took: Duration::from_nanos(state.now_ns - BEGIN_NS) }
}

/// A scheduling point of the code under test: others may run before this returns. Outside of a simulation it does nothing.
pub fn point() {
    in_world(|world, me| world.point(me));
}

/// Adds a line to the trace. Outside of a simulation it does nothing.
pub fn trace(what: fmt::Arguments<'_>) {
    in_world(|world, me| {
        let state = &mut *world.lock();
        state.trace.add(&state.threads[me].name, state.now_ns - BEGIN_NS, what);
    });
}

/// Calls `act` for a simulated thread. Its own calls of the C library are real.
pub(crate) fn in_world<T>(act: impl FnOnce(&Arc<World>, usize) -> T) -> Option<T> {
    if INSIDE.get() {
        return None;
    }
    // A thread that ends has left the simulation, and its thread-locals may be gone.
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

    /// A new thread, ready to run. Names need not differ: a number makes them so.
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

    /// The thread with this handle that was started last: handles are used again.
    pub(crate) fn by_handle(&self, handle: usize) -> Option<usize> {
        self.lock().threads.iter().rposition(|thread| thread.handle == Some(handle))
    }

    /// A new thread's first turn.
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

    /// Others may run now.
    pub(crate) fn point(&self, me: usize) {
        self.hand_on(me, self.lock());
    }

    /// Waits until the event comes, or until this time; says whether it came.
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

    /// Waits for a futex to be woken, if it still has the value; `None` where it has another.
    pub(crate) fn wait_futex(
        &self,
        me: usize,
        address: usize,
        is_as_expected: bool,
        until_ns: Option<u64>,
    ) -> Option<bool> {
        is_as_expected.then(|| self.wait(me, Event::Futex(address), until_ns))
    }

    /// Wakes up to `most` threads that wait for a futex, and says how many.
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

    /// The thread has ended; another goes on.
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

    /// Decides who goes on, and returns when it is this thread's turn again.
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

    /// Lets a little time pass, and chooses among those who can run.
    fn next(&mut self, me: Option<usize>) -> usize {
        self.points += 1;
        if self.points > POINTS_MAX {
            self.abort("goes round in circles");
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
                self.abort("stands still: every thread waits for another");
            }
        }
    }

    /// Moves time to the next deadline, if there is one so soon.
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

    /// No way on, and no way to tell the code under test, which stands in the middle of a call.
    fn abort(&self, why: &str) -> ! {
        eprintln!("the simulation with seed {} {why}, after {} scheduling points", self.seed, self.points);
        for thread in self.threads.iter().filter(|thread| thread.status != Status::Finished) {
            eprintln!("  {}: {:?}", thread.name, thread.status);
        }
        std::process::abort()
    }
}
