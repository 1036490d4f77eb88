//! The parts of the domain that the log's own threads use.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::idle_clock::IdleClock;
use super::producers::ProducerEpochs;
use super::topic::Topic;
use crate::clock::Clock;
use crate::groups::Groups;
use crate::name::TopicName;

/// Topics, groups, producer epochs and time.
pub(crate) struct Domain {
    pub(crate) topics: Arc<RwLock<BTreeMap<TopicName, Arc<Topic>>>>,
    pub(crate) groups: Arc<Groups>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) idle: IdleClock,
    pub(crate) producer_epochs: ProducerEpochs,
}
