//! What a process used, as Linux' `/proc` has it.

use std::time::{Duration, Instant};

/// Ticks of the CPU time in `/proc`, a second: Linux' `USER_HZ`, the same on every platform that we run on.
const TICKS_A_SECOND: f64 = 100.0;

/// A server that uses less than this of one core for [`QUIET_FOR`] has nothing left to do. Ours uses a thousandth, a Kafka
/// broker some hundredths.
const QUIET_CORES_MAX: f64 = 0.1;

/// And writes less than this, in bytes: a Kafka controller writes to its log twice a second whatever happens.
const QUIET_WRITTEN_BYTES_MAX: u64 = 1_000_000;

/// See [`QUIET_CORES_MAX`].
const QUIET_FOR: Duration = Duration::from_secs(1);

/// How long to wait for a server that always has something to do.
const SETTLES_WITHIN: Duration = Duration::from_secs(60);

/// CPU time of a process so far, user and system, in seconds.
///
/// # Panics
/// Where there is no such process.
pub fn cpu_seconds(pid: u32) -> f64 {
    let [user, system, ..] = times(pid);
    user + system
}

/// CPU time, in seconds, of this process' children that ended and were waited for.
///
/// # Panics
/// Where `/proc` is not as Linux has it.
pub fn ended_children_cpu_seconds() -> f64 {
    let [_, _, user, system] = times(std::process::id());
    user + system
}

/// proc_pid_stat(5): utime, stime, cutime, cstime.
fn times(pid: u32) -> [f64; 4] {
    let stat = read(pid, "stat");
    // The name stands in brackets and may have spaces. The fields 14 to 17 are the 12th to 15th after it.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11);
    let ticks: Vec<f64> = fields.take(4).map(|ticks| ticks.parse().expect("a number of ticks")).collect();
    let ticks: [f64; 4] = ticks.try_into().expect("four times");
    ticks.map(|ticks| ticks / TICKS_A_SECOND)
}

/// Resident memory of a process, in bytes.
///
/// # Panics
/// Where there is no such process.
pub fn resident_bytes(pid: u32) -> u64 {
    1024 * field(&read(pid, "status"), "VmRSS:")
}

/// Bytes that a process made the disk read so far: what the page cache had is not among them.
///
/// # Panics
/// Where there is no such process, or it is another user's.
pub fn disk_read_bytes(pid: u32) -> u64 {
    field(&read(pid, "io"), "read_bytes:")
}

/// As [`disk_read_bytes`], of the thread that asks.
///
/// # Panics
/// Where `/proc` is not as Linux has it.
pub fn disk_read_bytes_of_this_thread() -> u64 {
    let io = std::fs::read_to_string("/proc/thread-self/io").expect("Linux tells what a thread reads");
    field(&io, "read_bytes:")
}

fn disk_write_bytes(pid: u32) -> u64 {
    field(&read(pid, "io"), "write_bytes:")
}

/// Waits until a server has done what it puts off (sealing, flushing, compiling): until it hardly uses a core and hardly
/// writes, for a second. Returns whether that came within a minute.
///
/// # Panics
/// Where there is no such process.
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

/// The number after `name`, which begins a line.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("no {name} in {text}"))
}
