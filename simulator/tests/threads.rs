//! Simulates threads that wait in various ways. Each test runs alone in its process; see `harness` in Cargo.toml.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant, SystemTime};

use millstream_simulator::{Outcome, Settings, point, run, trace};

fn simulate<T: Send + 'static>(seed: u64, simulated: impl FnOnce() -> T + Send + 'static) -> Outcome<T> {
    run(Settings { seed, keep_lines: true }, simulated)
}

/// Runs four threads that wait for each other in various ways and trace what they see.
fn busy() -> Vec<usize> {
    let order = Arc::new(Mutex::new(Vec::new()));
    let (sender, receiver) = mpsc::channel();
    let barrier = Arc::new(Barrier::new(4));
    let begun = Instant::now();
    let threads: Vec<_> = (0..4)
        .map(|number| {
            let (order, sender, barrier) = (order.clone(), sender.clone(), barrier.clone());
            std::thread::Builder::new()
                .name(format!("worker {number}"))
                .spawn(move || {
                    for round in 0..20 {
                        let mut order = order.lock().unwrap();
                        point();
                        trace(format_args!("{number} in round {round}"));
                        order.push(number);
                        drop(order);
                        sender.send((number, round)).unwrap();
                    }
                    barrier.wait();
                    std::thread::sleep(Duration::from_secs(3600));
                    let map: HashMap<usize, usize> = (0..10).map(|key| (key, key)).collect();
                    trace(format_args!("{:?}", map.keys().collect::<Vec<_>>()));
                })
                .unwrap()
        })
        .collect();
    drop(sender);
    for (number, round) in receiver {
        trace(format_args!("{number} {round} came"));
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(begun.elapsed() >= Duration::from_secs(3600));
    Arc::try_unwrap(order).unwrap().into_inner().unwrap()
}

fn a_seed_replays() {
    let begun = Instant::now();
    let first: Vec<_> = (0..20).map(|seed| simulate(seed, busy)).collect();
    for (seed, before) in (0..).zip(&first) {
        let again = simulate(seed, busy);
        let differs = before.lines.iter().zip(&again.lines).position(|(a, b)| a != b);
        if let Some(at) = differs {
            panic!("seed {seed}, line {at}: {} and {}", before.lines[at], again.lines[at]);
        }
        assert_eq!((before.trace_hash, before.points), (again.trace_hash, again.points));
        assert_eq!(before.result.as_ref().unwrap(), again.result.as_ref().unwrap());
        assert!(again.took >= Duration::from_secs(3600));
    }
    assert!(begun.elapsed() < Duration::from_secs(3600), "time is virtual");
    let mut orders: Vec<_> = first.iter().map(|outcome| outcome.result.as_ref().unwrap().clone()).collect();
    orders.sort();
    orders.dedup();
    assert!(orders.len() > 10, "seeds must lead to different orders: {}", orders.len());
}

/// Two threads that read, yield and write lose an update in some orders, and the simulator finds such an order.
fn races_are_found() {
    let lost = (0..50).filter(|seed| {
        let counter = simulate(*seed, || {
            let counter = Arc::new(AtomicUsize::new(0));
            let add = |counter: Arc<AtomicUsize>| {
                std::thread::spawn(move || {
                    let read = counter.load(Ordering::SeqCst);
                    point();
                    counter.store(read + 1, Ordering::SeqCst);
                })
            };
            let threads = [add(counter.clone()), add(counter.clone())];
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            counter.load(Ordering::SeqCst)
        });
        counter.result.unwrap() == 1
    });
    let lost = lost.count();
    assert!(lost > 0 && lost < 50, "{lost} of 50 lost an update");
}

fn time_is_virtual_and_waits_end() {
    let outcome = simulate(3, || {
        let begun = (Instant::now(), SystemTime::now());
        let pair = (Mutex::new(false), Condvar::new());
        let waited = pair.1.wait_timeout(pair.0.lock().unwrap(), Duration::from_secs(60)).unwrap();
        assert!(waited.1.timed_out());
        let (_sender, receiver) = mpsc::channel::<()>();
        assert_eq!(receiver.recv_timeout(Duration::from_secs(60)), Err(mpsc::RecvTimeoutError::Timeout));
        std::thread::park_timeout(Duration::from_secs(60));
        (begun.0.elapsed(), begun.1.elapsed().unwrap())
    });
    let (monotonic, wall) = outcome.result.unwrap();
    assert!(monotonic >= Duration::from_secs(180) && monotonic < Duration::from_secs(181), "{monotonic:?}");
    assert!(wall >= Duration::from_secs(180) && wall < Duration::from_secs(181), "{wall:?}");
}

fn a_panic_is_told() {
    let outcome = simulate(0, || {
        let thread = std::thread::spawn(|| panic!("on purpose"));
        assert!(thread.join().is_err());
        panic!("on purpose too");
    });
    assert!(outcome.result.is_err());
}

fn main() {
    a_seed_replays();
    races_are_found();
    time_is_virtual_and_waits_end();
    a_panic_is_told();
    println!("4 passed, 0 failed");
}
