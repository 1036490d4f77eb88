//! Figures, their yardsticks and targets, as a table and as JSON.

use std::path::Path;

use serde::Serialize;

/// What a figure must be.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

#[derive(Debug, Serialize)]
struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    yardstick: Option<Yardstick>,
    target: Option<Target>,
    met: Option<bool>,
}

#[derive(Debug, Serialize)]
struct Yardstick {
    name: String,
    value: f64,
}

/// Everything that was measured.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    figures: Vec<Figure>,
}

impl Report {
    /// A figure by itself.
    pub(crate) fn figure(&mut self, name: impl Into<String>, value: f64, unit: &'static str, target: Option<Target>) {
        self.add(name.into(), value, unit, None, target);
    }

    /// A figure beside what it is measured against.
    pub(crate) fn beside(
        &mut self,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        yardstick: (impl Into<String>, f64),
        target: Option<Target>,
    ) {
        let yardstick = Yardstick { name: yardstick.0.into(), value: yardstick.1 };
        self.add(name.into(), value, unit, Some(yardstick), target);
    }

    fn add(
        &mut self,
        name: String,
        value: f64,
        unit: &'static str,
        yardstick: Option<Yardstick>,
        target: Option<Target>,
    ) {
        let met = target.map(|target| match target {
            Target::AtLeast(least) => value >= least,
            Target::AtMost(most) => value <= most,
        });
        let figure = Figure { name, value, unit, yardstick, target, met };
        eprintln!("{}", row(&figure).join(" | "));
        self.figures.push(figure);
    }

    /// The table on stdout.
    pub(crate) fn print(&self) {
        let header = ["benchmark", "figure", "yardstick, same run", "ratio", "target", ""].map(str::to_owned);
        let rows: Vec<[String; 6]> = std::iter::once(header).chain(self.figures.iter().map(row)).collect();
        let widths: Vec<usize> =
            (0..6).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
        for row in &rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
    }

    /// The JSON file.
    pub(crate) fn write(&self, path: &Path) {
        let json = serde_json::to_string_pretty(self).unwrap();
        std::fs::write(path, json + "\n").unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

fn row(figure: &Figure) -> [String; 6] {
    let yardstick = figure.yardstick.as_ref();
    [
        figure.name.clone(),
        format!("{} {}", number(figure.value), figure.unit),
        yardstick.map_or_else(String::new, |yardstick| format!("{}: {}", yardstick.name, number(yardstick.value))),
        yardstick.map_or_else(String::new, |yardstick| format!("{:.2}", figure.value / yardstick.value)),
        match figure.target {
            None => String::new(),
            Some(Target::AtLeast(least)) => format!(">= {}", number(least)),
            Some(Target::AtMost(most)) => format!("<= {}", number(most)),
        },
        figure.met.map_or_else(String::new, |met| if met { "met" } else { "MISSED" }.to_owned()),
    ]
}

fn number(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The value below which `part` of all are.
pub(crate) fn percentile(sorted: &[f64], part: f64) -> f64 {
    sorted[((sorted.len() as f64 * part) as usize).min(sorted.len() - 1)]
}
