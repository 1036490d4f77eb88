//! The worker threads that run stages. By default there is one per core, regardless of the number of tasks. Each thread
//! has its own guests, which is possible because guests keep nothing between calls.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use millstream_broker::hash::HashMap;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::deploy::Stage;
use crate::host::{Engine, Guest};

/// Stack size of a worker: half a megabyte for the guest, and the rest for the host.
const STACK_BYTES: usize = 4 << 20;

type Job = Box<dyn FnOnce(&mut Guests) + Send>;

/// Runs jobs on a fixed number of threads, in the order in which they arrive.
#[derive(Debug)]
pub struct WorkerPool {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Queue {
    jobs: Mutex<Jobs>,
    changed: Condvar,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Queue")
    }
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    /// Incremented when stages are removed, so that workers drop the guests of these stages.
    retired: u64,
    stop: bool,
}

impl WorkerPool {
    /// Starts `threads` workers.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start(engine: &Engine, threads: usize) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let start = |index: usize| {
            let (queue, engine) = (queue.clone(), engine.clone());
            std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .stack_size(STACK_BYTES)
                .spawn(move || queue.work(&mut Guests { engine, of_stage: HashMap::default() }))
        };
        let threads = (0..threads.max(1)).map(start).collect::<Result<_, _>>()?;
        Ok(Self { queue, threads })
    }

    /// Runs `job` on a worker. Returns `None` if the job panics or the pool stops.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce(&mut Guests) -> T + Send + 'static) -> Option<T> {
        let (answer, done) = oneshot::channel();
        let job = Box::new(move |guests: &mut Guests| {
            // The requester may have stopped waiting.
            let _ = answer.send(job(guests));
        });
        self.queue.jobs.lock().waiting.push_back(job);
        self.queue.changed.notify_one();
        done.await.ok()
    }

    /// Makes workers drop the guests of stages that no longer exist.
    pub fn retire_guests(&self) {
        self.queue.jobs.lock().retired += 1;
        self.queue.changed.notify_all();
    }
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        self.queue.jobs.lock().stop = true;
        self.queue.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A pool that is dropped by one of its own workers cannot join that thread.
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
    }
}

impl Queue {
    fn work(&self, guests: &mut Guests) {
        let mut retired = 0;
        loop {
            let job = {
                let mut jobs = self.jobs.lock();
                loop {
                    if jobs.stop {
                        return;
                    }
                    if jobs.retired != retired {
                        retired = jobs.retired;
                        guests.drop_retired();
                    }
                    match jobs.waiting.pop_front() {
                        Some(job) => break job,
                        None => self.changed.wait(&mut jobs),
                    }
                }
            };
            // A panic is a defect in our code. It ends the task that submitted the job, but not the server.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(guests))).is_err() {
                guests.of_stage.clear();
            }
        }
    }
}

/// The guests of one worker thread.
#[derive(Debug)]
pub struct Guests {
    engine: Engine,
    of_stage: HashMap<u64, (Weak<Stage>, Guest)>,
}

impl Guests {
    /// Returns this thread's guest of a stage, and creates it if there is none.
    pub fn of(&mut self, stage: &Arc<Stage>) -> &mut Guest {
        let engine = &self.engine;
        let make = || (Arc::downgrade(stage), stage.guest(engine));
        &mut self.of_stage.entry(stage.id()).or_insert_with(make).1
    }

    fn drop_retired(&mut self) {
        self.of_stage.retain(|_, (stage, _)| stage.strong_count() > 0);
    }
}
