//! What an engine has counted, for people and their scripts.
//!
//! An engine fills one [`Counters`] for each vCPU, when it is asked; the machine adds them up. Names are the engine's own. No
//! threads, no locks.

use std::borrow::Cow;

/// One number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counter {
    /// What it belongs to: `blocks`, `exits`. Lower case, one word.
    pub group: &'static str,
    /// Its name in the group: lower case, words joined by `_`; bytes have `bytes` in their name.
    pub name: Cow<'static, str>,
    /// The sum of all vCPUs' where they have been [merged](Counters::merge).
    pub value: u64,
}

/// Numbers by group and name, in the order in which they were first added.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Counters {
    rows: Vec<Counter>,
}

impl Counters {
    /// No numbers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds to a number, which is 0 before.
    pub fn add(&mut self, group: &'static str, name: impl Into<Cow<'static, str>>, value: u64) {
        let name = name.into();
        match self.rows.iter_mut().find(|row| row.group == group && row.name == name) {
            Some(row) => row.value = row.value.saturating_add(value),
            None => self.rows.push(Counter { group, name, value }),
        }
    }

    /// Adds another vCPU's numbers to these.
    pub fn merge(&mut self, other: &Self) {
        for Counter { group, name, value } in &other.rows {
            self.add(group, name.clone(), *value);
        }
    }

    /// One number, `None` where nobody has added it.
    #[must_use]
    pub fn value(&self, group: &str, name: &str) -> Option<u64> {
        self.rows.iter().find(|row| row.group == group && row.name == name).map(|row| row.value)
    }

    /// The groups, each with its numbers.
    #[must_use]
    pub fn groups(&self) -> Vec<(&'static str, Vec<&Counter>)> {
        let mut groups: Vec<(&'static str, Vec<&Counter>)> = Vec::new();
        for row in &self.rows {
            match groups.iter_mut().find(|(group, _)| *group == row.group) {
                Some((_, rows)) => rows.push(row),
                None => groups.push((row.group, vec![row])),
            }
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_vcpus_counted_is_added_up_by_group_and_name() {
        let mut first = Counters::new();
        first.add("exits", "link", 3);
        first.add("blocks", "killed", 1);
        let mut second = Counters::new();
        second.add("blocks", "killed", 4);
        second.add("exits", String::from("poll"), u64::MAX);
        second.add("exits", "link", 2);
        first.merge(&second);
        assert_eq!(first.value("blocks", "killed"), Some(5));
        assert_eq!(first.value("exits", "link"), Some(5));
        assert_eq!(first.value("exits", "killed"), None);
        first.merge(&second);
        assert_eq!(first.value("exits", "poll"), Some(u64::MAX), "it saturates");
        let names: Vec<_> = first.groups().iter().map(|(group, rows)| (*group, rows.len())).collect();
        assert_eq!(names, [("exits", 2), ("blocks", 1)]);
    }
}
