//! Who may import whom: the table of ARCHITECTURE.md, checked against `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata};

/// Package, and the packages of this workspace that it may depend on.
const TABLE: &[(&str, &[&str])] = &[
    ("plumb-domain", &[]),
    ("plumb-proto", &["plumb-domain"]),
    ("plumb-algo", &["plumb-domain"]),
    ("plumb-loss", &["plumb-domain"]),
    ("plumb-torch", &[]),
    ("plumb-collective", &["plumb-torch", "plumb-domain"]),
    ("plumb-model", &["plumb-torch", "plumb-domain"]),
    (
        "plumb-engine",
        &["plumb-model", "plumb-loss", "plumb-collective", "plumb-torch", "plumb-domain"],
    ),
    ("plumb-machine", &["plumb-domain"]),
    ("plumb-config", &["plumb-domain"]),
    ("plumb-data", &["plumb-domain", "plumb-config"]),
    ("plumb-runtime", &["plumb-domain", "plumb-proto", "plumb-telemetry"]),
    ("plumb-telemetry", &["plumb-domain"]),
    (
        "plumb-coordinator",
        &[
            "plumb-domain",
            "plumb-proto",
            "plumb-algo",
            "plumb-machine",
            "plumb-config",
            "plumb-data",
            "plumb-runtime",
            "plumb-telemetry",
        ],
    ),
    ("plumb-actor-worker", WORKER),
    ("plumb-rollout-worker", WORKER),
    ("plumb-reward-worker", WORKER),
    ("plumb-bench-algo", &["plumb-algo"]),
    ("xtask", &[]),
];

/// Everything but the coordinator and the other workers.
const WORKER: &[&str] = &[
    "plumb-domain",
    "plumb-proto",
    "plumb-algo",
    "plumb-loss",
    "plumb-torch",
    "plumb-collective",
    "plumb-model",
    "plumb-engine",
    "plumb-config",
    "plumb-data",
    "plumb-runtime",
    "plumb-telemetry",
];

/// Packages of whole-system tests and benches may import anything.
const TESTS: &[&str] = &["plumb-tests", "plumb-golden", "plumb-bench-train", "plumb-bench-memory"];

/// Package -> the workspace packages that it needs to build (not only to test).
pub(crate) type Imports = BTreeMap<String, BTreeSet<String>>;

/// Reads the imports out of `cargo metadata`. Dev-dependencies are left out: a test may look
/// across layers, what ships may not.
pub(crate) fn imports(metadata: &Metadata) -> Imports {
    let members: BTreeSet<_> =
        metadata.workspace_packages().iter().map(|p| p.name.to_string()).collect();
    let of = |package: &cargo_metadata::Package| {
        let needed = package.dependencies.iter();
        needed
            .filter(|d| d.kind != DependencyKind::Development && members.contains(&d.name))
            .map(|d| d.name.clone())
            .collect()
    };
    metadata.workspace_packages().iter().map(|p| (p.name.to_string(), of(p))).collect()
}

/// One line per breach of the table.
pub(crate) fn breaches(imports: &Imports) -> Vec<String> {
    let mut found = Vec::new();
    for (package, needed) in imports {
        if TESTS.contains(&package.as_str()) {
            continue;
        }
        let Some((_, allowed)) = TABLE.iter().find(|(name, _)| name == package) else {
            found.push(format!("{package} is not in the table of xtask/src/layers.rs: add it"));
            continue;
        };
        for import in needed.iter().filter(|i| !allowed.contains(&i.as_str())) {
            found.push(format!("{package} imports {import}; it may import: {}", list(allowed)));
        }
    }
    let absent = TABLE.iter().filter(|(name, _)| !imports.contains_key(*name));
    found
        .extend(absent.map(|(name, _)| format!("{name} is in the table but not in the workspace")));
    found
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "nothing of this workspace".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean() -> Imports {
        TABLE.iter().map(|(name, _)| ((*name).to_owned(), BTreeSet::new())).collect()
    }

    fn with(package: &str, import: &str) -> Vec<String> {
        let mut imports = clean();
        imports.entry(package.to_owned()).or_default().insert(import.to_owned());
        breaches(&imports)
    }

    #[test]
    fn the_table_itself_is_clean_and_allows_what_it_lists() {
        assert!(breaches(&clean()).is_empty());
        for (package, allowed) in TABLE {
            for import in *allowed {
                assert!(with(package, import).is_empty(), "{package} -> {import}");
            }
        }
    }

    #[test]
    fn a_coordinator_that_links_torch_is_a_breach() {
        let found = with("plumb-coordinator", "plumb-torch");
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("plumb-coordinator imports plumb-torch"), "{}", found[0]);
    }

    #[test]
    fn one_worker_may_not_import_another() {
        assert_eq!(with("plumb-rollout-worker", "plumb-actor-worker").len(), 1);
        assert_eq!(with("plumb-algo", "plumb-loss").len(), 1);
    }

    #[test]
    fn a_package_outside_the_table_and_one_that_went_missing_are_breaches() {
        assert_eq!(with("plumb-surprise", "plumb-domain").len(), 1);
        let mut imports = clean();
        imports.remove("plumb-machine");
        assert_eq!(
            breaches(&imports),
            ["plumb-machine is in the table but not in the workspace".to_owned()]
        );
    }

    #[test]
    fn test_packages_may_import_anything() {
        assert!(with("plumb-tests", "plumb-coordinator").is_empty());
    }
}
