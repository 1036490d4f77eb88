//! The order of contenders in a round: they take turns, so that none of them always runs on the warmer machine.

/// Returns the contenders in the order of this round: as given in even rounds, and reversed in odd rounds.
pub fn order<T: Clone>(round: usize, contenders: &[T]) -> Vec<T> {
    let mut order = contenders.to_vec();
    if !round.is_multiple_of(2) {
        order.reverse();
    }
    order
}

/// Which of two contenders is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The contender that the figure is about.
    Ours,
    /// The contender that the figure is compared with.
    Yardstick,
}

/// Returns the order of this round: ours first in even rounds, and the yardstick first in odd rounds.
pub fn sides(round: usize) -> Vec<Side> {
    order(round, &[Side::Ours, Side::Yardstick])
}
