//! The table that every benchmark prints: what, ours, peer, ratio, goal.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table as Text};

/// Rows in the order they were measured.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
    notes: Vec<String>,
}

/// One measurement.
pub(crate) struct Row {
    /// What was measured, and its unit: `"pack, s"`.
    pub(crate) what: String,
    /// Our figure.
    pub(crate) ours: f64,
    /// The peer's name and figure in the same run.
    pub(crate) peer: Option<(&'static str, f64)>,
    /// What our figure should be.
    pub(crate) goal: Goal,
}

/// What a figure should be.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    /// For the reader only.
    None,
    /// Ours over the peer's, at most.
    RatioAtMost(f64),
    /// Ours over the peer's, at least.
    RatioAtLeast(f64),
    /// Ours, at most.
    AtMost(f64),
    /// Ours, at least.
    AtLeast(f64),
}

impl Table {
    /// Adds a row and shows it at once on standard error: a run takes minutes.
    pub(crate) fn push(&mut self, row: Row) {
        eprintln!("{}", row.cells().join("  "));
        self.rows.push(row);
    }

    /// Adds a line below the table: what is not in it, and why.
    pub(crate) fn note(&mut self, note: String) {
        eprintln!("{note}");
        self.notes.push(note);
    }

    /// Whether any row misses its goal.
    pub(crate) fn has_missed(&self) -> bool {
        self.rows.iter().any(|row| row.is_met() == Some(false))
    }

    /// Prints the table on standard output.
    pub(crate) fn print(&self) {
        let mut text = Text::new();
        text.load_style(NOTHING);
        text.set_header(["what", "ours", "peer", "", "ratio", "goal", ""]);
        for row in &self.rows {
            text.add_row(row.cells());
        }
        for column in [1, 3, 4] {
            if let Some(column) = text.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        println!("{text}");
        for note in &self.notes {
            println!("{note}");
        }
    }
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        self.peer.map(|(_, figure)| self.ours / figure)
    }

    /// None when there is no goal.
    fn is_met(&self) -> Option<bool> {
        match self.goal {
            Goal::None => None,
            Goal::RatioAtMost(goal) => self.ratio().map(|ratio| ratio <= goal),
            Goal::RatioAtLeast(goal) => self.ratio().map(|ratio| ratio >= goal),
            Goal::AtMost(goal) => Some(self.ours <= goal),
            Goal::AtLeast(goal) => Some(self.ours >= goal),
        }
    }

    fn cells(&self) -> [String; 7] {
        let goal = match self.goal {
            Goal::None => String::new(),
            Goal::RatioAtMost(goal) => format!("at most {goal} x"),
            Goal::RatioAtLeast(goal) => format!("at least {goal} x"),
            Goal::AtMost(goal) => format!("at most {}", figure(goal)),
            Goal::AtLeast(goal) => format!("at least {}", figure(goal)),
        };
        let verdict = match self.is_met() {
            None => "",
            Some(true) => "met",
            Some(false) => "MISSED",
        };
        [
            self.what.clone(),
            figure(self.ours),
            self.peer.map_or_else(String::new, |(name, _)| name.to_owned()),
            self.peer.map_or_else(String::new, |(_, peer)| figure(peer)),
            self.ratio().map_or_else(String::new, |ratio| format!("{ratio:.2}")),
            goal,
            verdict.to_owned(),
        ]
    }
}

/// Three significant digits, or all of a whole number.
fn figure(value: f64) -> String {
    if value >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.3}")
    }
}
