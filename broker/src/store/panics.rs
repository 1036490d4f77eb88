//! Turns panics into errors. redb does not verify its pages as it reads them, so damaged pages can make it panic.

use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::sync::Once;

thread_local! {
    /// The number of nested calls of [`caught`] on this thread.
    static CATCHING: Cell<u32> = const { Cell::new(0) };
}

/// Runs work that may panic, and returns the panic's message if it does.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    leave_out_caught_panics();
    CATCHING.set(CATCHING.get() + 1);
    let done = std::panic::catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(CATCHING.get() - 1);
    done.map_err(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        // A failed assertion prints the compared values on separate lines.
        said.map_or_else(|| "a panic".to_owned(), |said| said.lines().map(str::trim).collect::<Vec<_>>().join("; "))
    })
}

/// Installs a panic hook that prints nothing for caught panics: they are reported as errors, without a backtrace.
fn leave_out_caught_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if CATCHING.get() == 0 {
                tell(panic);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_what_it_says() {
        assert_eq!(caught(|| 5), Ok(5));
        assert_eq!(caught(|| -> u8 { panic!("page {} is damaged", 7) }), Err("page 7 is damaged".to_owned()));
        assert_eq!(caught(|| -> u8 { panic!("plain") }), Err("plain".to_owned()));
        let said = caught(|| assert_eq!(1, 2, "page 7")).unwrap_err();
        assert_eq!(said, "assertion `left == right` failed: page 7; left: 1; right: 2");
        let inner = caught(|| caught(|| -> u8 { std::panic::panic_any(5) }));
        assert_eq!(inner, Ok(Err("a panic".to_owned())));
        assert_eq!(CATCHING.get(), 0);
    }
}
