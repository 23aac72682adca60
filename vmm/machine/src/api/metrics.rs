//! Metrics in Prometheus' text format (version 0.0.4).
//!
//! ```text
//!   # HELP vmm_disk_read_bytes_total Bytes that the guest read.
//!   # TYPE vmm_disk_read_bytes_total counter
//!   vmm_disk_read_bytes_total{id="disk0"} 4096
//! ```

use std::fmt::{self, Write};

/// All metrics at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(pub Vec<Family>);

/// One metric, for all that has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// Its name, units last; a counter's ends in `_total`.
    pub name: &'static str,
    /// What it tells, in a sentence.
    pub help: &'static str,
    /// What may be done with it.
    pub kind: Kind,
    /// Labels and value of each that has it.
    pub samples: Vec<(Vec<(&'static str, String)>, Value)>,
}

/// What may be done with a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, until the process ends.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// The value of a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A whole number.
    Integer(u64),
    /// Any number.
    Float(f64),
}

impl Metrics {
    /// Adds a metric that the machine has once, without labels.
    pub fn single(&mut self, name: &'static str, help: &'static str, kind: Kind, value: Value) {
        self.0.push(Family { name, help, kind, samples: vec![(Vec::new(), value)] });
    }

    /// The text.
    ///
    /// # Panics
    /// When a name is none that Prometheus takes: names are ours.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        for family in &self.0 {
            assert!(is_name(family.name, true), "{:?} is no metric's name", family.name);
            // Writing to a string can't fail.
            let _ = family.write(&mut text);
        }
        text
    }
}

impl Family {
    fn write(&self, text: &mut String) -> fmt::Result {
        let kind = match self.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        write!(text, "# HELP {} ", self.name)?;
        escape(text, self.help, false);
        writeln!(text, "\n# TYPE {} {kind}", self.name)?;
        for (labels, value) in &self.samples {
            text.push_str(self.name);
            write_labels(text, labels)?;
            match value {
                Value::Integer(value) => writeln!(text, " {value}")?,
                Value::Float(value) if value.is_nan() => writeln!(text, " NaN")?,
                Value::Float(value) if value.is_infinite() => {
                    writeln!(text, " {}Inf", if *value > 0.0 { '+' } else { '-' })?;
                }
                Value::Float(value) => writeln!(text, " {value}")?,
            }
        }
        Ok(())
    }
}

fn write_labels(text: &mut String, labels: &[(&'static str, String)]) -> fmt::Result {
    if labels.is_empty() {
        return Ok(());
    }
    for (index, (name, value)) in labels.iter().enumerate() {
        assert!(is_name(name, false), "{name:?} is no label's name");
        write!(text, "{}{name}=\"", if index == 0 { '{' } else { ',' })?;
        escape(text, value, true);
        text.push('"');
    }
    text.push('}');
    Ok(())
}

/// `[a-zA-Z_][a-zA-Z0-9_]*`, and `:` in names of metrics.
fn is_name(name: &str, colon: bool) -> bool {
    let fits = |c: u8| c.is_ascii_alphanumeric() || c == b'_' || (colon && c == b':');
    name.bytes().all(fits) && name.bytes().next().is_some_and(|c| !c.is_ascii_digit())
}

/// A help text has `\` and line breaks escaped, a label's value `"` too.
fn escape(text: &mut String, value: &str, quotes: bool) {
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '"' if quotes => text.push_str("\\\""),
            c => text.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_and_labels_are_rendered_as_prometheus_reads_them() {
        let mut metrics = Metrics(vec![Family {
            name: "vmm_disk_read_bytes_total",
            help: "Bytes that the guest read.\nAll \\ of them.",
            kind: Kind::Counter,
            samples: vec![
                (
                    vec![("id", "disk0".into()), ("path", "a\"b\\c\nd".into())],
                    Value::Integer(u64::MAX),
                ),
                (vec![("id", "disk1".into())], Value::Integer(0)),
            ],
        }]);
        for (name, value) in
            [("a", 0.5), ("b", f64::NAN), ("c", f64::INFINITY), ("d", f64::NEG_INFINITY)]
        {
            metrics.single(name, "x", Kind::Gauge, Value::Float(value));
        }
        let expected = "\
            # HELP vmm_disk_read_bytes_total Bytes that the guest read.\\nAll \\\\ of them.\n\
            # TYPE vmm_disk_read_bytes_total counter\n\
            vmm_disk_read_bytes_total{id=\"disk0\",path=\"a\\\"b\\\\c\\nd\"} 18446744073709551615\n\
            vmm_disk_read_bytes_total{id=\"disk1\"} 0\n\
            # HELP a x\n# TYPE a gauge\na 0.5\n\
            # HELP b x\n# TYPE b gauge\nb NaN\n\
            # HELP c x\n# TYPE c gauge\nc +Inf\n\
            # HELP d x\n# TYPE d gauge\nd -Inf\n";
        assert_eq!(metrics.render(), expected);
    }

    #[test]
    #[should_panic(expected = "is no metric's name")]
    fn a_name_that_prometheus_refuses_is_ours_to_mend() {
        let mut metrics = Metrics::default();
        metrics.single("9lives", "x", Kind::Gauge, Value::Integer(9));
        let _ = metrics.render();
    }

    proptest! {
        /// No label can break out of its quotes or its line.
        #[test]
        fn labels_stay_in_their_line(value: String) {
            let samples = vec![(vec![("l", value)], Value::Integer(1))];
            let family = Family { name: "m", help: "h", kind: Kind::Gauge, samples };
            let text = Metrics(vec![family]).render();
            let lines: Vec<&str> = text.split('\n').collect();
            prop_assert_eq!(lines.len(), 4);
            let inside = lines[2].strip_prefix("m{l=\"").and_then(|l| l.strip_suffix("\"} 1"));
            let inside = inside.expect("one sample").replace("\\\\", "").replace("\\\"", "");
            prop_assert!(!inside.contains('"'));
        }
    }
}
