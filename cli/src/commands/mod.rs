//! One file a command, of one shape: `Command` or `Args` is what can be said, `run` does it.

pub(crate) mod apply;
pub(crate) mod consume;
pub(crate) mod group;
pub(crate) mod module;
pub(crate) mod pipeline;
pub(crate) mod produce;
pub(crate) mod serve;
pub(crate) mod state;
pub(crate) mod test;
pub(crate) mod topic;
