//! `--stats`: what was counted, as a table on stderr or as JSON in a file.
//!
//! The machine reports on the thread that runs it; printing waits until the terminal is as it was.

use anyhow::{Context, Result};
use machine::{Machine, Report};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Where the numbers go, and the numbers once they are there.
pub(crate) struct Stats {
    /// `None`: stderr.
    file: Option<(PathBuf, File)>,
    report: Arc<Mutex<Option<Report>>>,
}

impl Stats {
    /// For `--stats`, `--stats=FILE`, or neither.
    ///
    /// # Errors
    /// The file can't be written: better now than when the guest has run.
    pub(crate) fn new(flag: Option<&Path>) -> Result<Option<Self>> {
        let Some(path) = flag else { return Ok(None) };
        let file = if path == Path::new("-") {
            None
        } else {
            let file = File::create(path).with_context(|| format!("can't write {}", path.display()))?;
            Some((path.to_owned(), file))
        };
        Ok(Some(Self { file, report: Arc::default() }))
    }

    /// Makes the machine count.
    pub(crate) fn listen(&self, machine: &mut Machine) {
        let slot = Arc::clone(&self.report);
        machine.report_to(move |report| {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(report.clone());
        });
    }

    /// Writes what was reported.
    ///
    /// # Errors
    /// The file can't be written.
    pub(crate) fn print(self) -> Result<()> {
        let report = self.report.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(report) = report else { return Ok(()) };
        match self.file {
            None => {
                // A closed stderr loses the table, not the guest's status.
                let _ = io::stderr().write_all(table(&report).as_bytes());
                Ok(())
            }
            Some((path, mut file)) => {
                let text = format!("{:#}\n", document(&report));
                file.write_all(text.as_bytes()).with_context(|| format!("can't write {}", path.display()))
            }
        }
    }
}

fn document(report: &Report) -> Value {
    let mut groups = Map::new();
    for (group, rows) in report.counters.groups() {
        let rows = rows.iter().map(|row| (row.name.to_string(), row.value.into())).collect();
        groups.insert(group.to_owned(), Value::Object(rows));
    }
    json!({
        "engine": report.engine,
        "vcpus": report.vcpus,
        "seconds": report.elapsed.as_secs_f64(),
        "memory": { "ram_bytes": report.ram_bytes, "beside_ram_bytes": report.beside_ram_bytes },
        "counters": groups,
    })
}

/// Groups of rows, each a name and its number; of long groups the largest.
fn table(report: &Report) -> String {
    const MOST: usize = 24;
    let seconds = report.elapsed.as_secs_f64();
    let mut text = format!(
        "{} engine, {} vCPU{}, {seconds:.2} s\n",
        report.engine,
        report.vcpus,
        if report.vcpus == 1 { "" } else { "s" }
    );
    let mut group = |name: &str, rows: Vec<(String, Option<u64>)>| {
        text.push_str(&format!("{name}\n"));
        for (name, value) in rows.iter().take(MOST) {
            let value = value.map_or_else(|| "unknown".to_owned(), thousands);
            text.push_str(&format!("  {name:<24} {value:>20}\n"));
        }
        if rows.len() > MOST {
            let left: u64 = rows[MOST..].iter().filter_map(|(_, value)| *value).sum();
            let name = format!("{} more", rows.len() - MOST);
            text.push_str(&format!("  {name:<24} {:>20}\n", thousands(left)));
        }
    };
    for (name, rows) in report.counters.groups() {
        group(name, rows.iter().map(|row| (row.name.replace('_', " "), Some(row.value))).collect());
    }
    let memory = [("guest RAM bytes", report.ram_bytes), ("beside guest RAM bytes", report.beside_ram_bytes)];
    group("memory", memory.map(|(name, value)| (name.to_owned(), value)).to_vec());
    text
}

/// The number with its digits in threes.
fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::Counters;
    use std::time::Duration;

    fn report() -> Report {
        let mut counters = Counters::new();
        counters.add("blocks", "cache_flushes", 1_234_567);
        for n in 0..30 {
            counters.add("fallbacks", format!("m{n}"), 100 - n);
        }
        Report {
            engine: "translator",
            vcpus: 2,
            elapsed: Duration::from_millis(1500),
            counters,
            ram_bytes: Some(4096),
            beside_ram_bytes: None,
        }
    }

    #[test]
    fn the_table_is_short_and_says_what_it_leaves_out() {
        let text = table(&report());
        assert!(text.starts_with("translator engine, 2 vCPUs, 1.50 s\nblocks\n"), "{text}");
        assert!(text.contains("cache flushes") && text.contains(" 1 234 567\n"), "{text}");
        assert!(text.contains("m23") && !text.contains("m24"), "{text}");
        let left: u64 = (71..=76).sum();
        assert!(
            text.lines().any(|line| line.split_whitespace().eq(["6", "more", &left.to_string()])),
            "{text}"
        );
        assert!(text.contains("unknown"), "{text}");
        assert_eq!(
            (thousands(0), thousands(999), thousands(1000)),
            ("0".into(), "999".into(), "1 000".into())
        );
    }

    #[test]
    fn the_document_has_every_number() {
        let document = document(&report());
        assert_eq!(document["counters"]["fallbacks"]["m29"], 71);
        assert_eq!(document["counters"]["blocks"]["cache_flushes"], 1_234_567);
        assert_eq!(document["memory"]["beside_ram_bytes"], Value::Null);
        assert_eq!(document["seconds"], 1.5);
    }
}
