//! Listeners and connections, independent of the protocol: limits for open connections, and a timeout for peers that
//! stall, and the admission of requests before they are read.

pub(crate) mod admission;
pub(crate) mod connection;
pub(crate) mod listener;
