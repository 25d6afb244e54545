//! Documents with variables: Jinja templates, rendered with what was given and nothing else. Pure.

use std::collections::BTreeMap;

use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, value::ValueKind};
use serde_json::Value;

use crate::config::document::MAX_DOCUMENT;

/// Steps a template may take: a document of the greatest size needs far fewer.
const FUEL: u64 = 2_000_000;
/// How deep it may nest.
const DEPTH: usize = 50;

/// What the names in a template stand for.
pub(crate) type Variables = BTreeMap<String, Value>;

/// Writes to memory, and stops at the limit.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // P10: a loop in a template must not fill the memory of whoever renders it.
        if self.0.len() + bytes.len() > MAX_DOCUMENT {
            return Err(std::io::Error::other("too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Renders a template. A variable that was not given is an error.
pub(crate) fn render(source: &str, variables: &Variables) -> Result<String, String> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.add_filter("tojson", json);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(DEPTH);
    let template = environment.template_from_str(source).map_err(|e| words(&e, None))?;
    let mut out = Bounded(Vec::new());
    match template.render_captured_to(minijinja::value::Serde(variables), &mut out) {
        Ok(_) => String::from_utf8(out.0).map_err(|e| e.to_string()),
        Err(error) if error.kind() == ErrorKind::UndefinedError => {
            let line = error.line().and_then(|n| source.lines().nth(n.saturating_sub(1)));
            let asked = template.undeclared_variables(true).into_iter();
            let mut missing: Vec<String> = asked.filter(|name| !is_given(name, variables)).collect();
            missing.sort();
            // The engine says where, not what.
            let here = |name: &String| line.is_some_and(|line| line.contains(name.as_str()));
            if missing.iter().any(here) {
                missing.retain(here);
            }
            Err(words(&error, Some(&missing)))
        }
        Err(error) => Err(words(&error, None)),
    }
}

/// The engine's own makes null of what is not defined, which a document may take for "not there".
fn json(value: &minijinja::Value) -> Result<String, Error> {
    if has_undefined(value, DEPTH) {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    serde_json::to_string(value).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))
}

fn has_undefined(value: &minijinja::Value, depth: usize) -> bool {
    if value.is_undefined() || depth == 0 {
        return true;
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            let mut items = value.try_iter().into_iter().flatten();
            items.any(|item| has_undefined(&item, depth - 1))
        }
        ValueKind::Map => {
            let mut keys = value.try_iter().into_iter().flatten();
            keys.any(|key| value.get_item(&key).is_ok_and(|item| has_undefined(&item, depth - 1)))
        }
        _ => false,
    }
}

fn is_given(name: &str, variables: &Variables) -> bool {
    let mut parts = name.split('.');
    let mut value = parts.next().and_then(|first| variables.get(first));
    for part in parts {
        value = value.and_then(|value| value.get(part));
    }
    value.is_some()
}

fn words(error: &minijinja::Error, missing: Option<&[String]>) -> String {
    let place = error.line().map_or_else(String::new, |line| format!("line {line}: "));
    let problem = match (error.kind(), missing) {
        (_, Some([])) => "a variable is not defined".to_owned(),
        (_, Some([one])) => {
            format!("the variable {one} is not defined: give it with --var {one}=VALUE or in --vars FILE")
        }
        (_, Some(many)) => format!("variables are not defined: {}", many.join(", ")),
        (ErrorKind::OutOfFuel, _) => "it takes too many steps".to_owned(),
        (ErrorKind::WriteFailure, _) => format!("it makes more than {MAX_DOCUMENT} bytes"),
        (kind, None) => match error.detail() {
            Some(detail) => format!("{kind}: {detail}"),
            None => kind.to_string(),
        },
    };
    format!("{place}{problem}")
}

/// The variables of a file: its top level, and over it the section of one environment.
pub(crate) fn of_file(file: Value, environment: Option<&str>) -> Result<Variables, String> {
    let Value::Object(fields) = file else {
        return Err("it is no table of variables".to_owned());
    };
    let mut out: Variables = fields.into_iter().collect();
    let Some(name) = environment else { return Ok(out) };
    match out.remove(name) {
        Some(Value::Object(section)) => {
            out.extend(section);
            Ok(out)
        }
        Some(_) => Err(format!("{name} is a variable there, no section")),
        None => {
            let sections: Vec<&str> = out
                .iter()
                .filter(|(_, v)| v.is_object())
                .map(|(k, _)| k.as_str())
                .collect();
            Err(format!("it has no section {name}; there are: {}", sections.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn given(value: Value) -> Variables {
        of_file(value, None).unwrap()
    }

    #[test]
    fn variables_become_text() {
        let variables = given(json!({"version": "v2", "percent": 10, "pins": {"a": "v1"}}));
        let text = render(
            "c = {{ version | tojson }}\np = {{ percent }}{% if pins.a %}\nx{% endif %}\n",
            &variables,
        );
        assert_eq!(text.unwrap(), "c = \"v2\"\np = 10\nx");
        assert_eq!(render("{{ gone | default('d') }}", &variables).unwrap(), "d");
        assert_eq!(render("{{ '<&' }}", &variables).unwrap(), "<&", "no page is made of it");
    }

    #[test]
    fn a_missing_variable_is_named_with_its_line() {
        let variables = given(json!({"a": {"b": 1}}));
        for (source, line, name) in [
            ("x = 1\ny = {{ candidate }}\nz = {{ other }}", "line 2", "candidate"),
            ("{{ a.b }}\n\n{{ a.c }}", "line 3", "a.c"),
            ("x = {{ nope | tojson }}", "line 1", "nope"),
            ("x = {{ nope | upper }}", "line 1", "nope"),
            ("x = {{ nope ~ '.' }}", "line 1", "nope"),
            ("x = {{ {'k': [nope]} | tojson }}", "line 1", "nope"),
            ("{% if nope %}{% endif %}", "line 1", "nope"),
            ("{% for x in many %}{% endfor %}", "line 1", "many"),
        ] {
            let error = render(source, &variables).unwrap_err();
            assert!(error.contains(line) && error.contains(name), "{error}");
            assert!(!error.contains("other"), "{error}");
        }
    }

    #[test]
    fn nothing_endless_and_nothing_from_elsewhere() {
        let none = Variables::new();
        let endless = "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}";
        assert!(render(endless, &none).unwrap_err().contains("too many steps"));
        let huge = "{% set x = 'y' * 100000 %}{% for a in range(1000) %}{{ x }}{% endfor %}";
        let error = render(huge, &none).unwrap_err();
        assert!(error.contains("bytes") || error.contains("steps"), "{error}");
        assert!(render("{% include '/etc/passwd' %}", &none).is_err());
        assert!(render("{{ ", &none).unwrap_err().contains("line 1"));
    }

    #[test]
    fn a_section_lies_over_the_top_level() {
        let file = json!({"percent": 1, "region": "eu", "prod": {"percent": 50}});
        let variables = of_file(file.clone(), Some("prod")).unwrap();
        assert_eq!(
            (&variables["percent"], &variables["region"]),
            (&json!(50), &json!("eu"))
        );
        assert!(
            of_file(file.clone(), Some("test"))
                .unwrap_err()
                .contains("there are: prod")
        );
        assert!(of_file(file, Some("region")).is_err());
    }
}
