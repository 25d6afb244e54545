//! The rules of the source tree that no compiler checks. Each message says what to do about a breach.

use std::fs;
use std::path::{Path, PathBuf};

use toml::Table;

/// Product crates, and which of each other they may use. Dependencies point down only.
const PRODUCT: &[(&str, &[&str])] = &[
    ("common", &[]),
    ("gates", &["common"]),
    ("producer", &["common"]),
    ("worker", &["common", "gates"]),
    ("admin", &["common", "gates", "producer"]),
];

/// Crates that nothing of the product is built from; they may use anything.
const AROUND: &[&str] = &["tests", "tests/pool", "bench", "demo"];

const REDIS_CLIENTS: &[&str] = &["redis", "deadpool-redis"];
const KEY_CATALOGUE: &str = "common/src/store/keyspace.rs";
const MAX_LINES: usize = 600;

#[test]
fn every_member_has_a_place_in_the_layers() {
    let manifest = manifest(&root().join("Cargo.toml"));
    let members = manifest["workspace"]["members"].as_array().expect("members");
    let known: Vec<&str> = PRODUCT
        .iter()
        .map(|(name, _)| *name)
        .chain(AROUND.iter().copied())
        .collect();
    let unknown: Vec<_> = members
        .iter()
        .filter_map(|member| member.as_str())
        .filter(|name| !known.contains(name))
        .collect();
    assert!(
        unknown.is_empty(),
        "say in this file what these may depend on: {unknown:?}"
    );
}

#[test]
fn only_common_lists_a_redis_client() {
    let mut breaches = Vec::new();
    for (name, _) in PRODUCT.iter().filter(|(name, _)| *name != "common") {
        for (table, dependency) in dependencies(name) {
            if REDIS_CLIENTS.contains(&dependency.as_str()) {
                breaches.push(format!("{name} [{table}]: {dependency}"));
            }
        }
    }
    assert!(
        breaches.is_empty(),
        "the Redis footprint lives in common::store; call that instead:\n{}",
        breaches.join("\n")
    );
}

#[test]
fn dependencies_point_down_only() {
    let mut breaches = Vec::new();
    for (name, allowed) in PRODUCT {
        for (table, dependency) in dependencies(name) {
            let Some(ours) = dependency.strip_prefix("switchback-") else {
                continue;
            };
            let harness = ours == "tests" && table.ends_with("dev-dependencies");
            if !harness && !allowed.contains(&ours) {
                breaches.push(format!("{name} [{table}]: {dependency}"));
            }
        }
    }
    assert!(
        breaches.is_empty(),
        "see \"Code layout\"; move what both need into common:\n{}",
        breaches.join("\n")
    );
}

#[test]
fn modules_stand_beside_their_directories() {
    let breaches: Vec<_> = files("rs")
        .into_iter()
        .filter(|path| path.ends_with("mod.rs"))
        .collect();
    assert!(
        breaches.is_empty(),
        "write foo.rs beside foo/, so that tabs and traces name the module: {breaches:?}"
    );
}

#[test]
fn files_stay_readable_in_one_sitting() {
    let mut breaches = Vec::new();
    for path in files("rs").into_iter().filter(|path| !is_test_code(path)) {
        let lines = product_lines(&read(&path)).count();
        if lines > MAX_LINES {
            breaches.push(format!("{}: {lines} lines", path.display()));
        }
    }
    assert!(
        breaches.is_empty(),
        "over {MAX_LINES} lines; split them by concept:\n{}",
        breaches.join("\n")
    );
}

#[test]
fn every_script_states_its_contract() {
    let mut breaches = Vec::new();
    for path in files("lua") {
        let text = read(&path);
        let header: Vec<&str> = text
            .lines()
            .skip_while(|line| line.starts_with("#!")) // Redis's script flags must come first
            .take_while(|line| line.starts_with("--"))
            .collect();
        for part in ["-- KEYS", "-- ARGV", "-- Reply"] {
            if !header.iter().any(|line| line.starts_with(part)) {
                breaches.push(format!("{}: no `{part}` in the header", path.display()));
            }
        }
    }
    assert!(
        breaches.is_empty(),
        "a script and its caller agree on nothing else:\n{}",
        breaches.join("\n")
    );
}

#[test]
fn keys_are_spelled_in_the_catalogue_only() {
    let literal = "\"sb:";
    let mut breaches = Vec::new();
    for path in product_sources().filter(|path| !path.ends_with(KEY_CATALOGUE)) {
        let text = read(&path);
        for (number, line) in product_lines(&text).enumerate() {
            let code = without_comment(line);
            if code.contains(literal) {
                breaches.push(format!("{}:{}: {}", path.display(), number + 1, code.trim()));
            }
        }
    }
    assert!(
        breaches.is_empty(),
        "key names come from {KEY_CATALOGUE}:\n{}",
        breaches.join("\n")
    );
}

#[test]
fn the_tests_above_see_the_tree() {
    assert!(root().join("Cargo.toml").is_file());
    for (name, _) in PRODUCT {
        let prefix = Path::new(name);
        assert!(
            product_sources().any(|path| path.starts_with(prefix)),
            "no sources found in {name}/"
        );
    }
    assert!(dependencies("common").iter().any(|(_, name)| name == "redis"));
    assert_eq!(
        without_comment(r#"let a = "redis://x"; // "sb:"#).trim_end(),
        r#"let a = "redis://x";"#
    );
    assert_eq!(without_comment(r#"/// "sb:stream""#), "");
    assert_eq!(
        product_lines("a\n#[cfg(test)]\nuse b;\nc\n#[cfg(test)]\nmod tests {\nd\n}\n").count(),
        4
    );
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ is in the workspace")
}

fn read(path: &Path) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn manifest(path: &Path) -> Table {
    read(path)
        .parse()
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What a crate's manifest lists, as (table, package), whatever the table and the local name.
fn dependencies(name: &str) -> Vec<(String, String)> {
    let manifest = manifest(&Path::new(name).join("Cargo.toml"));
    let shared = self::manifest(Path::new("Cargo.toml"));
    let mut found = Vec::new();
    let mut collect = |prefix: &str, tables: &Table| {
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(table) = tables.get(kind).and_then(toml::Value::as_table) else {
                continue;
            };
            for (key, entry) in table {
                let inherited = shared["workspace"]["dependencies"].get(key);
                let renamed = [Some(entry), inherited]
                    .into_iter()
                    .flatten()
                    .find_map(|entry| entry.get("package")?.as_str());
                found.push((format!("{prefix}{kind}"), renamed.unwrap_or(key).to_owned()));
            }
        }
    };
    collect("", &manifest);
    if let Some(targets) = manifest.get("target").and_then(toml::Value::as_table) {
        for (target, tables) in targets {
            collect(&format!("target.{target}."), tables.as_table().expect("a table"));
        }
    }
    found
}

fn product_sources() -> impl Iterator<Item = PathBuf> {
    files("rs")
        .into_iter()
        .filter(|path| PRODUCT.iter().any(|(name, _)| path.starts_with(name)) && !is_test_code(path))
}

fn is_test_code(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs")
}

/// The lines before the inline test module, which by convention stands last.
fn product_lines(text: &str) -> impl Iterator<Item = &str> {
    let lines: Vec<&str> = text.lines().collect();
    let tests = lines
        .windows(2)
        .position(|pair| pair[0].trim() == "#[cfg(test)]" && pair[1].starts_with("mod tests"));
    let end = tests.unwrap_or(lines.len());
    lines.into_iter().take(end)
}

/// Good enough for a formatted tree: a comment begins the line, or follows code after a space.
fn without_comment(line: &str) -> &str {
    if line.trim_start().starts_with("//") {
        return "";
    }
    line.split_once(" // ").map_or(line, |(code, _)| code)
}

/// All files of the workspace's members with an extension, relative to the root, in order.
fn files(extension: &str) -> Vec<PathBuf> {
    let members = PRODUCT.iter().map(|(name, _)| *name).chain(AROUND.iter().copied());
    let mut open: Vec<PathBuf> = members.map(PathBuf::from).collect();
    let mut found = Vec::new();
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(root().join(&directory)).expect("a readable directory") {
            let entry = entry.expect("a readable entry");
            let path = directory.join(entry.file_name());
            if entry.file_type().expect("a file type").is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}
