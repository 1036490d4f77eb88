//! The parts of the domain that the log's own threads use.

use std::sync::Arc;

use parking_lot::RwLock;

use super::idle_clock::IdleClock;
use super::producers::ProducerEpochs;
use super::topics::Topics;
use crate::clock::Clock;
use crate::groups::Groups;

/// Topics, groups, producer epochs and time.
pub(crate) struct Domain {
    pub(crate) topics: Arc<RwLock<Topics>>,
    pub(crate) groups: Arc<Groups>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) idle: IdleClock,
    pub(crate) producer_epochs: ProducerEpochs,
}
