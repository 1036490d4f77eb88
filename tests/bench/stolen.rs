//! CPU time that the host of a virtual machine takes away from its cores.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Samples the CPU time that the host of a virtual machine takes away from its cores. The virtual machine stands still
/// during that time.
pub(crate) struct Stolen {
    ended: Arc<AtomicBool>,
    samples: JoinHandle<Vec<(Instant, f64)>>,
}

impl Stolen {
    /// Starts to sample, every few milliseconds.
    pub(crate) fn watch() -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let until = ended.clone();
        let samples = std::thread::spawn(move || {
            let mut samples = vec![(Instant::now(), stolen_ms())];
            while !until.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
                samples.push((Instant::now(), stolen_ms()));
            }
            samples
        });
        Self { ended, samples }
    }

    /// Returns the time taken away during `time`, in milliseconds summed over all cores, or 0 if the system does not
    /// report it.
    pub(crate) fn during(self, time: &Range<Instant>) -> f64 {
        self.ended.store(true, Ordering::Relaxed);
        let samples = self.samples.join().unwrap();
        let before = samples.iter().rfind(|(at, _)| *at <= time.start).unwrap_or(&samples[0]);
        let after = samples.iter().find(|(at, _)| *at >= time.end).unwrap_or(&samples[samples.len() - 1]);
        after.1 - before.1
    }
}

/// Returns the time taken away from all cores since the machine started. It is the eighth number of proc_stat(5), in
/// hundredths of a second.
fn stolen_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let of_all = stat.lines().next().and_then(|line| line.split_whitespace().nth(8));
    of_all.and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or(0.0) * 10.0
}
