//! Resource usage of a process, as reported by Linux's `/proc`.

use std::time::{Duration, Instant};

/// CPU time ticks per second in `/proc`: Linux's `USER_HZ`, which has this value on every platform that we run on.
const TICKS_A_SECOND: f64 = 100.0;

/// Maximum CPU usage of an idle server, in cores, measured over [`QUIET_FOR`]. Our server uses a thousandth of a core
/// when idle, and a Kafka broker some hundredths.
const QUIET_CORES_MAX: f64 = 0.1;

/// Maximum that an idle server writes during [`QUIET_FOR`], in bytes. A Kafka controller writes to its log twice a
/// second even when idle.
const QUIET_WRITTEN_BYTES_MAX: u64 = 1_000_000;

/// The time over which idleness is measured. See [`QUIET_CORES_MAX`].
const QUIET_FOR: Duration = Duration::from_secs(1);

/// How long to wait for a server that does not become idle.
const SETTLES_WITHIN: Duration = Duration::from_secs(60);

/// Returns the CPU time of a process so far, user and system, in seconds.
///
/// # Panics
/// Panics if there is no such process.
pub fn cpu_seconds(pid: u32) -> f64 {
    let [user, system, ..] = times(pid);
    user + system
}

/// Returns the CPU time of this process's children that ended and were waited for, in seconds.
///
/// # Panics
/// Panics if `/proc` does not have Linux's format.
pub fn ended_children_cpu_seconds() -> f64 {
    let [_, _, user, system] = times(std::process::id());
    user + system
}

/// Returns utime, stime, cutime and cstime of proc_pid_stat(5), in seconds.
fn times(pid: u32) -> [f64; 4] {
    let stat = read(pid, "stat");
    // The process's name is in parentheses and may contain spaces. Fields 14 to 17 are the 12th to 15th after it.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11);
    let ticks: Vec<f64> = fields.take(4).map(|ticks| ticks.parse().expect("a CPU time is a number of ticks")).collect();
    let ticks: [f64; 4] = ticks.try_into().expect("/proc/PID/stat contains four CPU times");
    ticks.map(|ticks| ticks / TICKS_A_SECOND)
}

/// Returns the resident memory of a process, in bytes.
///
/// # Panics
/// Panics if there is no such process.
pub fn resident_bytes(pid: u32) -> u64 {
    1024 * field(&read(pid, "status"), "VmRSS:")
}

/// Returns the largest resident memory that a process has had, in bytes.
///
/// # Panics
/// Panics if there is no such process.
pub fn largest_resident_bytes(pid: u32) -> u64 {
    1024 * field(&read(pid, "status"), "VmHWM:")
}

/// Returns how many bytes a process has read from the disk so far. Reads from the page cache are not counted.
///
/// # Panics
/// Panics if there is no such process, or if it belongs to another user.
pub fn disk_read_bytes(pid: u32) -> u64 {
    field(&read(pid, "io"), "read_bytes:")
}

/// Like [`disk_read_bytes`], for the current thread.
///
/// # Panics
/// Panics if `/proc` does not have Linux's format.
pub fn disk_read_bytes_of_this_thread() -> u64 {
    let io = std::fs::read_to_string("/proc/thread-self/io").expect("/proc/thread-self/io can be read");
    field(&io, "read_bytes:")
}

fn disk_write_bytes(pid: u32) -> u64 {
    field(&read(pid, "io"), "write_bytes:")
}

/// Waits until a server has finished its deferred work (sealing, flushing, compiling), which is when it hardly uses the
/// CPU and hardly writes for one second. Returns whether this happened within a minute.
///
/// # Panics
/// Panics if there is no such process.
pub async fn settled(pid: u32) -> bool {
    let until = Instant::now() + SETTLES_WITHIN;
    while Instant::now() < until {
        let (cpu, written, begun) = (cpu_seconds(pid), disk_write_bytes(pid), Instant::now());
        tokio::time::sleep(QUIET_FOR).await;
        let cores = (cpu_seconds(pid) - cpu) / begun.elapsed().as_secs_f64();
        if cores < QUIET_CORES_MAX && disk_write_bytes(pid) - written < QUIET_WRITTEN_BYTES_MAX {
            return true;
        }
    }
    false
}

fn read(pid: u32, file: &str) -> String {
    let path = format!("/proc/{pid}/{file}");
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns the number after `name` in the line that begins with `name`.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("there is no {name} in {text}"))
}
