//! Compares two reports figure by figure.

use super::report::{Figure, Report};
use super::table::{Table, number};

/// A figure that is in both reports or in one of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair<'a> {
    /// The figure in the older report.
    pub old: Option<&'a Figure>,
    /// The figure in the newer report.
    pub new: Option<&'a Figure>,
}

impl Pair<'_> {
    /// Returns the new value divided by the old value.
    pub fn ratio(&self) -> Option<f64> {
        Some(self.new?.value / self.old?.value)
    }

    /// Returns the same ratio for a yardstick that both figures have, which shows how much faster or slower the machine
    /// itself was.
    pub fn yardstick_ratio(&self) -> Option<f64> {
        let (old, new) = (self.old?, self.new?);
        let measured = |figure: &Figure, name: &str| {
            figure.yardsticks.iter().find(|yardstick| yardstick.same_run && yardstick.name == name).map(|of| of.value)
        };
        new.yardsticks
            .iter()
            .find_map(|yardstick| Some(measured(new, &yardstick.name)? / measured(old, &yardstick.name)?))
    }
}

/// A comparison of an older report with a newer one.
#[derive(Clone, Debug)]
pub struct Comparison<'a> {
    old: &'a Report,
    new: &'a Report,
}

impl<'a> Comparison<'a> {
    /// Compares two reports.
    pub fn of(old: &'a Report, new: &'a Report) -> Self {
        Self { old, new }
    }

    /// Returns the figures of the new report, followed by those that only the old report has. If the new run was
    /// restricted to some benchmarks, the old figures of other benchmarks are left out.
    pub fn pairs(&self) -> Vec<Pair<'a>> {
        let in_new =
            self.new.figures.iter().map(|new| Pair { old: self.old.figure(&new.name, new.unit), new: Some(new) });
        let wanted = |old: &&Figure| self.new.run.only.as_ref().is_none_or(|only| old.name.contains(only.as_str()));
        let missing = |old: &&Figure| self.new.figure(&old.name, old.unit).is_none();
        let gone = self.old.figures.iter().filter(wanted).filter(missing);
        in_new.chain(gone.map(|old| Pair { old: Some(old), new: None })).collect()
    }
}

impl std::fmt::Display for Comparison<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut table = Table::new(["benchmark", "unit", "old", "new", "ratio", "yardstick's ratio"]);
        let value = |figure: Option<&Figure>| figure.map_or_else(|| "-".to_owned(), |figure| number(figure.value));
        let ratio = |ratio: Option<f64>| ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
        for pair in self.pairs() {
            let Some(figure) = pair.new.or(pair.old) else { continue };
            let unit = figure.unit.as_str().to_owned();
            let (old, new) = (value(pair.old), value(pair.new));
            table.push([figure.name.clone(), unit, old, new, ratio(pair.ratio()), ratio(pair.yardstick_ratio())]);
        }
        let (old, new) = (&self.old.run, &self.new.run);
        if (old.divided_by, old.cores, old.debug_assertions) != (new.divided_by, new.cores, new.debug_assertions) {
            writeln!(f, "These runs were not alike: {old:?} and {new:?}.\n")?;
        }
        write!(f, "{table}")
    }
}
