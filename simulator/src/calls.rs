//! The functions of the C library through which a thread waits, sleeps, reads the clock, draws random numbers, and
//! starts and joins threads. Calls by simulated threads are handled by the scheduler; all others are passed to the C
//! library.
//!
//! Rust's standard library and parking_lot wait with `syscall(SYS_futex)`; everything else that blocks, including
//! channels and tokio's timers, is built on these. The linker prefers a function of the program to a function of a
//! shared library with the same name, so the whole program calls the functions in this file. Calls that the C library
//! makes internally, for example for the lock of its allocator, do not use them.
//!
//! The signatures are those of the C library (`man 2 futex`, `man 3 clock_gettime`). As there, errors are reported by
//! returning -1 and setting `errno`, or by returning the error number. The C function `syscall` is variadic; on Linux,
//! its arguments are passed like those of a function with seven integer parameters.

use std::ffi::{CStr, c_int, c_long, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use crate::scheduler::{Event, World, enter, in_world, leave};

/// Wall-clock time at the start of a run, in seconds since the epoch.
const WALL_CLOCK_BEGIN_S: u64 = 1_700_000_000;

const NS_PER_S: u64 = 1_000_000_000;

/// Returns the next function with this name, which is the one of the C library.
fn real(name: &'static CStr, found: &AtomicPtr<c_void>) -> *mut c_void {
    let known = found.load(Ordering::Relaxed);
    if !known.is_null() {
        return known;
    }
    // SAFETY: the name ends with a zero byte, and `RTLD_NEXT` accepts any name.
    let next = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    assert!(!next.is_null(), "the C library has no function with this name");
    found.store(next, Ordering::Relaxed);
    next
}

/// Returns the C library's function with this name, to be called as `real_call!(name(type, …) -> type)(argument, …)`.
macro_rules! real_call {
    ($name:ident ($($kind:ty),*) -> $returned:ty) => {{
        static FOUND: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
        const NAME: &CStr = match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
            Ok(name) => name,
            Err(_) => panic!("a name must not contain a zero byte"),
        };
        // SAFETY: the C library's function with this name has this signature.
        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($kind),*) -> $returned>(real(NAME, &FOUND)) }
    }};
}

type Syscall = unsafe extern "C" fn(c_long, usize, usize, usize, usize, usize, usize) -> c_long;

fn real_syscall() -> Syscall {
    real_call!(syscall(c_long, usize, usize, usize, usize, usize, usize) -> c_long)
}

/// Waits on a futex outside of any simulation, if it has the given value.
pub(crate) fn wait_real(futex: &AtomicU32, value: u32) {
    let operation = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as usize;
    // SAFETY: the address is that of a live u32, and there is no timeout.
    unsafe { real_syscall()(libc::SYS_futex, futex.as_ptr() as usize, operation, value as usize, 0, 0, 0) };
}

/// Wakes one thread that waits on a futex outside of any simulation.
pub(crate) fn wake_real(futex: &AtomicU32) {
    let operation = (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as usize;
    // SAFETY: the address is that of a live u32.
    unsafe { real_syscall()(libc::SYS_futex, futex.as_ptr() as usize, operation, 1, 0, 0, 0) };
}

fn set_errno(code: c_int) {
    // SAFETY: `errno` is thread-local.
    unsafe { *libc::__errno_location() = code };
}

/// # Safety
/// The arguments must be valid for the system call, as for `syscall` of the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn syscall(number: c_long, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_long {
    let simulated = match number {
        // SAFETY: the arguments are those of futex(2).
        libc::SYS_futex => in_world(|world, me| unsafe { futex(world, me, a, b as c_int, c as u32, d) }).flatten(),
        libc::SYS_getrandom => in_world(|world, _| {
            // SAFETY: the caller guarantees that the buffer has this size.
            world.fill_random(unsafe { std::slice::from_raw_parts_mut(a as *mut u8, b) });
            Ok(b as c_long)
        }),
        _ => None,
    };
    match simulated {
        Some(Ok(returned)) => returned,
        Some(Err(code)) => {
            set_errno(code);
            -1
        }
        // SAFETY: the caller's arguments are passed on unchanged.
        None => unsafe { real_syscall()(number, a, b, c, d, e, f) },
    }
}

/// Implements futex(2) for a simulated thread. Returns `None` for operations that no code here uses.
///
/// # Safety
/// `address` must be the address of a live u32, and `timeout` must be null or the address of a `timespec`.
unsafe fn futex(
    world: &World,
    me: usize,
    address: usize,
    operation: c_int,
    value: u32,
    timeout: usize,
) -> Option<Result<c_long, c_int>> {
    let kind = operation & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
    match kind {
        libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET => {
            // SAFETY: guaranteed by the caller.
            let timeout = unsafe { (timeout as *const libc::timespec).as_ref() };
            let until_ns = timeout.map(|timeout| match kind {
                libc::FUTEX_WAIT => world.monotonic_ns() + ns(timeout),
                _ if operation & libc::FUTEX_CLOCK_REALTIME != 0 => ns(timeout) - WALL_CLOCK_BEGIN_S * NS_PER_S,
                _ => ns(timeout),
            });
            // SAFETY: guaranteed by the caller.
            let current = unsafe { &*(address as *const AtomicU32) }.load(Ordering::SeqCst);
            Some(match world.wait_futex(me, address, current == value, until_ns) {
                None => Err(libc::EAGAIN),
                Some(true) => Ok(0),
                Some(false) => Err(libc::ETIMEDOUT),
            })
        }
        libc::FUTEX_WAKE | libc::FUTEX_WAKE_BITSET => Some(Ok(world.wake_futex(me, address, value as usize) as c_long)),
        _ => None,
    }
}

fn ns(time: &libc::timespec) -> u64 {
    time.tv_sec.max(0) as u64 * NS_PER_S + time.tv_nsec.max(0) as u64
}

/// # Safety
/// As for `clock_gettime(3)`: `time` must be valid for writes.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    let simulated = in_world(|world, _| {
        let now_ns = world.monotonic_ns();
        match clock {
            libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => now_ns + WALL_CLOCK_BEGIN_S * NS_PER_S,
            _ => now_ns,
        }
    });
    let Some(now_ns) = simulated else {
        let real = real_call!(clock_gettime(libc::clockid_t, *mut libc::timespec) -> c_int);
        // SAFETY: the caller's arguments are passed on unchanged.
        return unsafe { real(clock, time) };
    };
    let now = libc::timespec { tv_sec: (now_ns / NS_PER_S) as libc::time_t, tv_nsec: (now_ns % NS_PER_S) as c_long };
    // SAFETY: the caller guarantees that `time` is valid for writes.
    unsafe { time.write(now) };
    0
}

/// # Safety
/// As for `nanosleep(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn nanosleep(wanted: *const libc::timespec, left: *mut libc::timespec) -> c_int {
    // SAFETY: the caller's pointer points to a `timespec`.
    let slept = in_world(|world, me| sleep(world, me, ns(unsafe { &*wanted })));
    let real = real_call!(nanosleep(*const libc::timespec, *mut libc::timespec) -> c_int);
    // SAFETY: the caller's arguments are passed on unchanged.
    slept.map_or_else(|| unsafe { real(wanted, left) }, |()| 0)
}

/// # Safety
/// As for `clock_nanosleep(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_nanosleep(
    clock: libc::clockid_t,
    flags: c_int,
    wanted: *const libc::timespec,
    left: *mut libc::timespec,
) -> c_int {
    let slept = in_world(|world, me| {
        // SAFETY: the caller's pointer points to a `timespec`.
        let wanted_ns = ns(unsafe { &*wanted });
        let until_ns = if clock == libc::CLOCK_REALTIME { WALL_CLOCK_BEGIN_S * NS_PER_S } else { 0 };
        match flags & libc::TIMER_ABSTIME {
            0 => sleep(world, me, wanted_ns),
            _ => drop(world.wait(me, Event::Time, Some(wanted_ns - until_ns))),
        }
    });
    let real = real_call!(clock_nanosleep(libc::clockid_t, c_int, *const libc::timespec, *mut libc::timespec) -> c_int);
    // SAFETY: the caller's arguments are passed on unchanged.
    slept.map_or_else(|| unsafe { real(clock, flags, wanted, left) }, |()| 0)
}

fn sleep(world: &World, me: usize, for_ns: u64) {
    let until_ns = world.monotonic_ns().saturating_add(for_ns);
    world.wait(me, Event::Time, Some(until_ns));
}

/// # Safety
/// There are no requirements, because the function has no arguments.
#[unsafe(no_mangle)]
unsafe extern "C" fn sched_yield() -> c_int {
    let yielded = in_world(|world, me| world.point(me));
    let real = real_call!(sched_yield() -> c_int);
    // SAFETY: there are no arguments.
    yielded.map_or_else(|| unsafe { real() }, |()| 0)
}

/// # Safety
/// As for `getrandom(2)`: the buffer must have this size.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, bytes: usize, flags: u32) -> isize {
    // SAFETY: the caller guarantees that the buffer has this size.
    let filled =
        in_world(|world, _| world.fill_random(unsafe { std::slice::from_raw_parts_mut(buffer.cast(), bytes) }));
    let real = real_call!(getrandom(*mut c_void, usize, u32) -> isize);
    // SAFETY: the caller's arguments are passed on unchanged.
    filled.map_or_else(|| unsafe { real(buffer, bytes, flags) }, |()| bytes as isize)
}

type Begin = extern "C" fn(*mut c_void) -> *mut c_void;

/// The data that a new simulated thread needs to start.
struct NewThread {
    world: Arc<World>,
    number: usize,
    begin: Begin,
    argument: *mut c_void,
}

/// # Safety
/// As for `pthread_create(3)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_create(
    thread: *mut libc::pthread_t,
    attributes: *const libc::pthread_attr_t,
    begin: Begin,
    argument: *mut c_void,
) -> c_int {
    let real =
        real_call!(pthread_create(*mut libc::pthread_t, *const libc::pthread_attr_t, Begin, *mut c_void) -> c_int);
    let created = in_world(|world, me| {
        let number = world.add_thread("thread".into());
        let new = Box::new(NewThread { world: world.clone(), number, begin, argument });
        // SAFETY: the caller's arguments are passed on, and the new thread takes ownership of the box.
        let code = unsafe { real(thread, attributes, begin_simulated, Box::into_raw(new).cast()) };
        assert_eq!(code, 0, "failed to start a simulated thread");
        // SAFETY: the C library has initialised the handle.
        world.set_handle(number, unsafe { thread.read() } as usize);
        world.point(me);
        code
    });
    // SAFETY: the caller's arguments are passed on unchanged.
    created.unwrap_or_else(|| unsafe { real(thread, attributes, begin, argument) })
}

extern "C" fn begin_simulated(new: *mut c_void) -> *mut c_void {
    // SAFETY: `pthread_create` created the box for this thread only.
    let new = unsafe { Box::from_raw(new.cast::<NewThread>()) };
    let NewThread { world, number, begin, argument } = *new;
    world.await_turn(number);
    enter(world.clone(), number);
    let returned = begin(argument);
    leave();
    world.finish(number);
    returned
}

/// # Safety
/// As for `pthread_join(3)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_join(thread: libc::pthread_t, returned: *mut *mut c_void) -> c_int {
    in_world(|world, me| {
        if let Some(number) = world.by_handle(thread as usize) {
            world.wait(me, Event::End(number), None);
        }
    });
    let real = real_call!(pthread_join(libc::pthread_t, *mut *mut c_void) -> c_int);
    // SAFETY: the caller's arguments are passed on unchanged.
    unsafe { real(thread, returned) }
}

/// Also sets the name of the thread in traces.
///
/// # Safety
/// As for `pthread_setname_np(3)`: the name must end with a zero byte.
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_setname_np(thread: libc::pthread_t, name: *const std::ffi::c_char) -> c_int {
    in_world(|world, me| {
        // SAFETY: the caller guarantees that the name ends with a zero byte.
        world.name_thread(me, &unsafe { CStr::from_ptr(name) }.to_string_lossy());
    });
    let real = real_call!(pthread_setname_np(libc::pthread_t, *const std::ffi::c_char) -> c_int);
    // SAFETY: the caller's arguments are passed on unchanged.
    unsafe { real(thread, name) }
}
