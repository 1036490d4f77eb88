//! Who goes first: contenders take turns, so that none of them always has the warmer machine.

/// The contenders in the order of this round: as they are named in even rounds, the other way round in odd ones.
pub fn order<T: Clone>(round: usize, contenders: &[T]) -> Vec<T> {
    let mut order = contenders.to_vec();
    if !round.is_multiple_of(2) {
        order.reverse();
    }
    order
}

/// Which of two is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What the figure is of.
    Ours,
    /// What it stands beside.
    Yardstick,
}

/// Ours first in even rounds, the yardstick first in odd ones.
pub fn sides(round: usize) -> Vec<Side> {
    order(round, &[Side::Ours, Side::Yardstick])
}
