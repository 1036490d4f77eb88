//! Listeners and connections, whatever protocol is spoken on them: how many there may be, and peers that stall.

pub(crate) mod connection;
pub(crate) mod listener;
