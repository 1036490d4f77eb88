//! Listeners and connections, independent of the protocol: limits for open connections, and a timeout for peers that
//! stall.

pub(crate) mod connection;
pub(crate) mod listener;
