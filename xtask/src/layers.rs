//! Which crate of the workspace may import which, as data, checked against `cargo metadata`.
//!
//! The table is the one of ARCHITECTURE.md. A crate that isn't in it fails the check, so that a new room gets a row.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::Path;

/// Crate, and those of ours that it may depend on. Development dependencies count too.
const LAYERS: &[(&str, &[&str])] = &[
    ("x86", &[]),
    ("control", &[]),
    ("memory", &["x86"]),
    ("engine", &["x86", "memory"]),
    ("interpreter", &["engine", "x86", "memory"]),
    ("shadow", &["x86", "memory"]),
    // Never the reverse: the reference does not know its optimiser.
    ("translator", &["interpreter", "shadow", "engine", "x86", "memory"]),
    ("chipset", &["x86", "memory"]),
    ("enlightenments", &["chipset", "control", "engine", "memory", "x86"]),
    ("net", &["control"]),
    ("crypt", &[]),
    ("sandbox", &[]),
    ("disk", &["crypt"]),
    ("share", &[]),
    ("workers", &[]),
    ("virtio", &["chipset", "disk", "memory", "net", "share", "workers", "x86"]),
    ("nvme", &["chipset", "disk", "memory", "workers", "x86"]),
    // Never an engine: it holds an `Arc<dyn Engine>` that the binary makes.
    (
        "machine",
        &[
            "chipset",
            "control",
            "crypt",
            "disk",
            "engine",
            "enlightenments",
            "memory",
            "net",
            "nvme",
            "sandbox",
            "share",
            "virtio",
            "workers",
            "x86",
        ],
    ),
    ("ombra", &["control", "crypt", "disk", "engine", "interpreter", "machine", "sandbox", "translator"]),
    // The tests may look everywhere.
    (
        "conformance",
        &["chipset", "control", "disk", "engine", "interpreter", "machine", "memory", "translator", "x86"],
    ),
    ("xtask", &[]),
];

/// Fails with one line for every import that the table doesn't allow.
pub(crate) fn check(root: &Path) -> Result<()> {
    let output = crate::cargo()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(root)
        .output()
        .context("can't run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata isn't JSON")?;
    let broken = violations(&metadata);
    if !broken.is_empty() {
        bail!("the layers are broken:\n  {}", broken.join("\n  "));
    }
    println!("layers: in order");
    Ok(())
}

fn violations(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ours: Vec<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let mut broken = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = LAYERS.iter().find(|(row, _)| *row == name) else {
            broken.push(format!("{name} has no row in the table of xtask/src/layers.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default() {
            let imported = dependency["name"].as_str().unwrap_or_default();
            // A crate may be its own development dependency to turn features on.
            if imported != name && ours.contains(&imported) && !allowed.contains(&imported) {
                broken.push(format!("{name} imports {imported}"));
            }
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn package(name: &str, dependencies: &[&str]) -> Value {
        let dependencies: Vec<Value> = dependencies.iter().map(|name| json!({ "name": name })).collect();
        json!({ "name": name, "dependencies": dependencies })
    }

    #[test]
    fn an_import_against_the_table_is_named() {
        let metadata =
            json!({ "packages": [package("memory", &["x86", "libc"]), package("x86", &["memory"])] });
        assert_eq!(violations(&metadata), ["x86 imports memory"]);
    }

    #[test]
    fn a_crate_without_a_row_is_named() {
        let broken = violations(&json!({ "packages": [package("newcomer", &[])] }));
        assert_eq!(broken.len(), 1);
        assert!(broken[0].starts_with("newcomer has no row"));
    }

    #[test]
    fn the_machine_may_not_know_an_engine() {
        let metadata =
            json!({ "packages": [package("machine", &["interpreter"]), package("interpreter", &[])] });
        assert_eq!(violations(&metadata), ["machine imports interpreter"]);
    }
}
