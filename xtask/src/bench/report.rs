//! The results as Markdown: geometric means of groups beside their targets, then every workload.
//!
//! A ratio against native says how often the native time a monitor needs; one against TCG how often its own time TCG needs.

use super::monitor::Monitor;
use super::results::{Catalog, Results, geometric_mean};
use anyhow::{Context, Result};
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Around what [`replaced`] replaces.
const BEGIN: &str = "<!-- written by `cargo xtask bench --write` -->\n";
const END: &str = "<!-- end of what it writes -->\n";

/// What a group shall reach as a geometric mean.
struct Target {
    group: &'static str,
    /// The group in words.
    what: &'static str,
    /// Times the native time, at most.
    native: Option<f64>,
    /// Times faster than TCG, at least.
    tcg: Option<f64>,
}

const TARGETS: &[Target] = &[
    Target { group: "integer", what: "integers and branches", native: Some(1.6), tcg: Some(3.0) },
    Target { group: "memory", what: "memory", native: Some(1.6), tcg: Some(4.0) },
    Target {
        group: "vector",
        what: "floating point, SIMD, cryptography",
        native: Some(1.2),
        tcg: Some(20.0),
    },
    Target { group: "programs", what: "Debian's programs", native: Some(2.5), tcg: Some(5.0) },
    Target { group: "kernel", what: "the kernel's work", native: None, tcg: Some(3.0) },
    Target { group: "switches", what: "switches between processes", native: None, tcg: Some(5.0) },
    Target { group: "storms", what: "changes of page tables", native: None, tcg: Some(4.0) },
    Target { group: "scaling", what: "two vCPUs", native: None, tcg: Some(4.0) },
    Target { group: "code", what: "code that changes", native: Some(10.0), tcg: Some(100.0) },
    Target { group: "atomics", what: "locked instructions", native: None, tcg: None },
];
/// Boots: times faster than TCG, at least.
const BOOT_TARGET: f64 = 2.0;

/// Monitors by their part in the table.
struct Roles {
    native: Option<usize>,
    tcg: Option<usize>,
    engines: Vec<usize>,
}

impl Roles {
    fn of(monitors: &[Monitor]) -> Roles {
        let all = || monitors.iter().enumerate();
        Roles {
            native: all().find(|(_, monitor)| monitor.is_native()).map(|(number, _)| number),
            tcg: all().find(|(_, monitor)| monitor.is_tcg()).map(|(number, _)| number),
            engines: all()
                .filter(|(_, monitor)| !monitor.is_native() && !monitor.is_tcg())
                .map(|(number, _)| number)
                .collect(),
        }
    }

    /// The columns of ratios: heading, slower monitor, faster monitor.
    fn columns(&self, monitors: &[Monitor]) -> Vec<(String, usize, usize)> {
        let mut columns = Vec::new();
        for &engine in &self.engines {
            let name = &monitors[engine].name;
            columns.extend(self.native.map(|native| (format!("{name} / native"), engine, native)));
            columns.extend(self.tcg.map(|tcg| (format!("TCG / {name}"), tcg, engine)));
        }
        if let (Some(native), Some(tcg)) = (self.native, self.tcg) {
            columns.push(("TCG / native".to_owned(), tcg, native));
        }
        columns
    }
}

/// The whole report.
pub(crate) fn markdown(monitors: &[Monitor], catalog: &Catalog, results: &Results, versions: &str) -> String {
    let roles = Roles::of(monitors);
    let columns = roles.columns(monitors);
    let mut text = format!("{versions}.\n\n");
    summary(&mut text, &roles, &columns, catalog, results);
    boots(&mut text, &roles, monitors, results);
    for (group, names) in catalog.groups() {
        let what = TARGETS.iter().find(|target| target.group == group).map_or(group, |target| target.what);
        let _ = write!(text, "\n| {what} ");
        header(&mut text, &[vec!["native, one iteration"], headings(&columns)].concat());
        for name in names {
            let time = roles.native.and_then(|native| results.time(native, name, None));
            let _ = write!(text, "| {name} | {} |", time.map_or("-".to_owned(), |(_, time)| duration(time)));
            for (_, slow, fast) in &columns {
                let _ = write!(text, " {} |", ratio(results.ratio(*slow, *fast, name)));
            }
            text.push('\n');
        }
    }
    pairs(&mut text, monitors, catalog, results);
    let gaps: Vec<String> = results
        .gaps()
        .into_iter()
        .map(|(monitor, what, why)| format!("{what} on {} ({why})", monitors[monitor].name))
        .collect();
    if !gaps.is_empty() {
        let _ = write!(text, "\nNot run: {}.\n", gaps.join(", "));
    }
    text
}

/// Of workloads `NAME-1` and `NAME-2`, which share the same work: how much faster two are.
fn pairs(text: &mut String, monitors: &[Monitor], catalog: &Catalog, results: &Results) {
    let scaling = catalog.groups().into_iter().find(|(group, _)| *group == "scaling");
    let names = scaling.map(|(_, names)| names).unwrap_or_default();
    let pairs: Vec<_> = names
        .iter()
        .filter_map(|name| name.strip_suffix("-1"))
        .filter(|name| names.contains(&format!("{name}-2").as_str()))
        .collect();
    if pairs.is_empty() {
        return;
    }
    text.push_str("\n| two threads, throughput of one ");
    header(text, &monitors.iter().map(|monitor| monitor.name.as_str()).collect::<Vec<_>>());
    for name in pairs {
        let _ = write!(text, "| {name} |");
        for monitor in 0..monitors.len() {
            let time =
                |suffix| results.time(monitor, &format!("{name}-{suffix}"), None).map(|(_, time)| time);
            let gain = time(1).zip(time(2)).map(|(one, two)| one / two);
            let _ = write!(text, " {} |", gain.map_or("-".to_owned(), |gain| format!("{gain:.2}")));
        }
        text.push('\n');
    }
}

fn headings(columns: &[(String, usize, usize)]) -> Vec<&str> {
    columns.iter().map(|(heading, ..)| heading.as_str()).collect()
}

/// The rest of a header after its first cell, and the line below it.
fn header(text: &mut String, headings: &[&str]) {
    let _ = writeln!(text, "| {} |\n|---|{}", headings.join(" | "), "---|".repeat(headings.len()));
}

/// A geometric mean for each group, and the targets.
fn summary(
    text: &mut String,
    roles: &Roles,
    columns: &[(String, usize, usize)],
    catalog: &Catalog,
    results: &Results,
) {
    text.push_str("| geometric means ");
    header(text, &[headings(columns), vec!["target"]].concat());
    for (group, names) in catalog.groups() {
        let target = TARGETS.iter().find(|target| target.group == group);
        let _ = write!(text, "| {} |", target.map_or(group, |target| target.what));
        for (_, slow, fast) in columns {
            let ratios: Vec<f64> =
                names.iter().filter_map(|name| results.ratio(*slow, *fast, name)).collect();
            let mean = geometric_mean(&ratios);
            let met = mean.zip(target).is_some_and(|(mean, target)| {
                let engine = |number: &usize| roles.engines.contains(number);
                let native = engine(slow) && target.native.is_some_and(|most| mean <= most);
                native || engine(fast) && target.tcg.is_some_and(|least| mean >= least)
            });
            let _ = write!(text, " {}{} |", ratio(mean), if met { ", met" } else { "" });
        }
        let wanted = target.map_or(String::new(), |target| {
            let native = target.native.map(|most| format!("{most} of native"));
            let tcg = target.tcg.map(|least| format!("{least} times faster than TCG"));
            native.into_iter().chain(tcg).collect::<Vec<_>>().join(", ")
        });
        let _ = writeln!(text, " {wanted} |");
    }
}

/// Process start to the init's first line.
fn boots(text: &mut String, roles: &Roles, monitors: &[Monitor], results: &Results) {
    let guests: Vec<usize> = roles.engines.iter().copied().chain(roles.tcg).collect();
    if guests.iter().all(|&monitor| results.boot(monitor).is_none()) {
        return;
    }
    text.push_str("\n| start to the init's first line ");
    header(text, &["seconds", "TCG / this", "target"]);
    let tcg = roles.tcg.and_then(|tcg| results.boot(tcg));
    for monitor in guests {
        let Some(seconds) = results.boot(monitor) else { continue };
        let faster = tcg.filter(|_| !monitors[monitor].is_tcg()).map(|tcg| tcg / seconds);
        let met = faster.is_some_and(|faster| faster >= BOOT_TARGET);
        let _ = writeln!(
            text,
            "| {} | {seconds:.2} | {}{} | {} |",
            monitors[monitor].name,
            ratio(faster),
            if met { ", met" } else { "" },
            if monitors[monitor].is_tcg() { String::new() } else { BOOT_TARGET.to_string() }
        );
    }
}

/// Three digits.
fn ratio(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value < 10.0 => format!("{value:.2}"),
        Some(value) if value < 100.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.0}"),
    }
}

fn duration(nanoseconds: f64) -> String {
    let (value, unit) = match nanoseconds {
        small if small < 1e3 => (small, "ns"),
        middle if middle < 1e6 => (middle / 1e3, "µs"),
        large => (large / 1e6, "ms"),
    };
    format!("{} {unit}", ratio(Some(value)))
}

/// The page with a new report between its marks.
///
/// # Errors
/// The page has no marks.
pub(crate) fn replaced(page: &str, report: &str) -> Result<String> {
    between(page, BEGIN, END, report)
}

fn between(page: &str, begin: &str, end: &str, report: &str) -> Result<String> {
    let (before, rest) = page.split_once(begin).with_context(|| format!("the page has no line {begin}"))?;
    let (_, after) = rest.split_once(end).with_context(|| format!("the page has no line {end}"))?;
    Ok(format!("{before}{begin}\n{report}\n{end}{after}"))
}

/// Puts a report of another kind between its marks in the page.
///
/// # Errors
/// The page can't be read or written, or has no such marks.
pub(crate) fn rewrite(root: &Path, begin: &str, end: &str, report: &str) -> Result<()> {
    let page = root.join(super::PAGE);
    let text = fs::read_to_string(&page).with_context(|| format!("can't read {}", page.display()))?;
    fs::write(&page, between(&text, begin, end, report)?)?;
    eprintln!("bench: written to {}", super::PAGE);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::session::Outcome;
    use super::*;
    use std::time::Duration;

    fn found() -> (Vec<Monitor>, Catalog, Results) {
        let monitors = vec![Monitor::native(), Monitor::ombra("translator"), Monitor::tcg()];
        let catalog = Catalog::parse("a integer 10\nb integer 10\nc kernel 1\n");
        let mut results = Results::default();
        for (monitor, factor) in [(0, 1.0), (1, 1.5), (2, 9.0)] {
            for name in ["a", "b", "c"] {
                let outcome = Outcome::Ran(10, 1e6 * factor, "aa".to_owned());
                results.add(monitor, &monitors[monitor].name, name, outcome);
            }
        }
        results.boots.insert(1, vec![Duration::from_millis(500)]);
        results.boots.insert(2, vec![Duration::from_millis(2000)]);
        (monitors, catalog, results)
    }

    #[test]
    fn groups_have_means_beside_their_targets() {
        let (monitors, catalog, results) = found();
        let text = markdown(&monitors, &catalog, &results, "a host");
        let line = "| integers and branches | 1.50, met | 6.00, met | 9.00 | 1.6 of native, 3 times faster than TCG |";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("| translator | 0.50 | 4.00, met | 2 |"), "{text}");
        assert!(text.contains("| a | 100 µs | 1.50 | 6.00 | 9.00 |"), "{text}");
    }

    #[test]
    fn what_is_slower_than_its_target_has_not_met_it() {
        let (monitors, catalog, mut results) = found();
        for _ in 0..3 {
            results.add(1, "translator", "a", Outcome::Ran(10, 9e6, "aa".to_owned()));
        }
        let text = markdown(&monitors, &catalog, &results, "a host");
        assert!(text.contains("| integers and branches | 3.67 | 2.45 |"), "{text}");
    }

    #[test]
    fn what_was_not_run_is_said() {
        let (monitors, catalog, mut results) = found();
        results.add(2, "TCG", "x", Outcome::Skipped("no SHA-NI".to_owned()));
        let text = markdown(&monitors, &catalog, &results, "a host");
        assert!(text.ends_with("Not run: x on TCG (no SHA-NI).\n"), "{text}");
    }

    #[test]
    fn a_page_keeps_what_is_around_the_report() {
        let page = format!("before\n{BEGIN}old\n{END}after\n");
        assert_eq!(replaced(&page, "new\n").unwrap(), format!("before\n{BEGIN}\nnew\n\n{END}after\n"));
        assert!(replaced("nothing", "new").is_err());
    }

    #[test]
    fn the_page_of_this_checkout_has_a_place_for_the_report() {
        let page = fs::read_to_string(crate::root().join(super::super::PAGE)).unwrap();
        assert!(replaced(&page, "new\n").is_ok());
    }
}
