//! The sequence numbers of an idempotent producer (KIP-98): its identity and the next number in each partition.

use std::collections::HashMap;
use std::sync::Arc;

use millstream_api::v1;
use millstream_record::{RecordBatch, sequence_after};

use super::delivery::Batch;

/// Maximum number of batches in flight per partition, which is the number that the server remembers (KIP-98).
pub(super) const IN_FLIGHT_OF_PARTITION_MAX: usize = 5;

/// The identity and the next sequence numbers of a producer. It cannot be used before [`Sequences::begin`].
#[derive(Debug, Default)]
pub(super) struct Sequences {
    identity: Option<Identity>,
    next: HashMap<Arc<str>, HashMap<u32, i32>>,
    /// An assigned number will not be sent, so the server would refuse the numbers after it.
    has_gap: bool,
}

#[derive(Clone, Copy, Debug)]
struct Identity {
    id: i64,
    epoch: i16,
}

impl Sequences {
    /// Whether no batch can be numbered until the server assigns an id or the next epoch.
    pub(super) fn must_begin(&self) -> bool {
        self.identity.is_none() || self.has_gap
    }

    /// Returns the identity for which to request the next epoch, or `None` to request a new id.
    pub(super) fn current(&self) -> Option<v1::ProducerIdentity> {
        self.identity.map(|Identity { id, epoch }| v1::ProducerIdentity { producer_id: id, epoch: epoch.into() })
    }

    /// Starts an epoch, in which every partition begins at 0.
    ///
    /// # Errors
    /// Returns a description of what is wrong with the identity.
    pub(super) fn begin(&mut self, given: &v1::ProducerIdentity) -> Result<(), String> {
        let epoch = i16::try_from(given.epoch).ok().filter(|epoch| *epoch >= 0);
        let identity = epoch.filter(|_| given.producer_id >= 0).map(|epoch| Identity { id: given.producer_id, epoch });
        let identity = identity.ok_or_else(|| format!("invalid producer identity {given:?}"))?;
        *self = Self { identity: Some(identity), ..Self::default() };
        Ok(())
    }

    /// Notes that the assigned numbers cannot be continued.
    pub(super) fn set_gap(&mut self) {
        self.has_gap = true;
    }

    /// Forgets the id because the server does not know it.
    pub(super) fn forget_identity(&mut self) {
        self.identity = None;
    }

    /// Assigns the next sequence numbers of its partition to a batch.
    pub(super) fn number(&mut self, batch: &Batch, encoded: RecordBatch) -> RecordBatch {
        let Some(Identity { id, epoch }) = self.identity else { return encoded };
        let partitions = match self.next.get_mut(&batch.topic) {
            Some(partitions) => partitions,
            None => self.next.entry(batch.topic.clone()).or_default(),
        };
        let next = partitions.entry(batch.partition).or_insert(0);
        let first = *next;
        *next = sequence_after(first, encoded.record_count());
        encoded.with_producer(id, epoch, first)
    }
}

#[cfg(test)]
mod tests {
    use millstream_record::{BatchBuilder, Compression};

    use super::*;

    fn number(sequences: &mut Sequences, partition: u32, records: u32) -> (i64, i16, i32) {
        let mut builder = BatchBuilder::new(Compression::None);
        (0..records).for_each(|_| builder.push(0, None, Some(b"x"), []));
        let numbered = sequences.number(&Batch::open("t".into(), partition), builder.finish().unwrap());
        numbered.verify_crc().unwrap();
        (numbered.producer_id(), numbered.producer_epoch(), numbered.base_sequence())
    }

    #[test]
    fn each_partition_counts_its_records_and_a_new_epoch_begins_at_zero() {
        let mut sequences = Sequences::default();
        assert!(sequences.must_begin());
        sequences.begin(&v1::ProducerIdentity { producer_id: 7, epoch: 0 }).unwrap();
        let numbers = [(0, 3), (1, 5), (0, 1), (1, 1)].map(|(partition, of)| number(&mut sequences, partition, of));
        assert_eq!(numbers, [(7, 0, 0), (7, 0, 0), (7, 0, 3), (7, 0, 5)]);
        assert!(!sequences.must_begin());
        sequences.set_gap();
        assert!(sequences.must_begin());
        sequences.begin(&v1::ProducerIdentity { producer_id: 7, epoch: 1 }).unwrap();
        assert_eq!(number(&mut sequences, 1, 2), (7, 1, 0));
        assert!(sequences.begin(&v1::ProducerIdentity { producer_id: 7, epoch: 40_000 }).is_err());
    }
}
