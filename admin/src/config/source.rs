//! Where a document comes from: a file or standard input, and variables.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use serde_json::Value;

use crate::{
    args::DocumentSource,
    config::{
        document::{Document, MAX_DOCUMENT, Syntax, is_template, value},
        template::{self, Variables},
    },
    context::Context,
    exit::Failure,
    text::plain,
};

/// Reads, renders and checks a document, and makes sure that it is of this namespace. Without one of its own, and with
/// none named by the person, the namespace becomes the document's.
pub(crate) fn read(context: &mut Context, source: &DocumentSource) -> Result<Document, Failure> {
    let from = source.file.display();
    let bad = |problem: String| Failure::Usage(format!("{from}: {}", plain(&problem)));
    let syntax = source.format.or_else(|| Syntax::of(&source.file));
    let syntax = syntax.ok_or_else(|| bad("say how it is written: --format toml, yaml or json".to_owned()))?;
    let mut text = contents(&source.file)?;
    let templated = !source.variables.is_empty() || source.vars.is_some() || is_template(&source.file);
    if templated {
        let variables = variables(source)?;
        text = template::render(&text, &variables).map_err(bad)?;
    }
    let document = Document::parse(&text, syntax).map_err(|e| {
        // Its name does not say so, and nobody gave a variable: what is wrong may be only that.
        let forgotten = !templated && text.contains("{{");
        let way = if forgotten {
            ". If it is a template: give its variables with --var NAME=VALUE or --vars FILE"
        } else {
            ""
        };
        bad(format!("{e}{way}"))
    })?;
    if let Some(name) = &document.namespace {
        if context.namespace_named && *name != context.namespace.as_str() {
            return Err(bad(format!(
                "it is for namespace {name}, and --namespace, the environment or the settings say {}",
                context.namespace
            )));
        }
        context.namespace = name
            .parse()
            .map_err(|e: switchback_common::name::InvalidName| bad(e.to_string()))?;
    }
    Ok(document)
}

fn variables(source: &DocumentSource) -> Result<Variables, Failure> {
    let mut out = Variables::new();
    if let Some(path) = &source.vars {
        let bad = |problem: String| Failure::Usage(format!("{}: {}", path.display(), plain(&problem)));
        let syntax = Syntax::of(path).ok_or_else(|| bad("its name must end in .toml, .yaml or .json".to_owned()))?;
        let file = value(&contents(path)?, syntax).map_err(bad)?;
        out = template::of_file(file, source.env.as_deref()).map_err(bad)?;
    }
    if let Some(name) = &source.env {
        out.entry("env".to_owned())
            .or_insert_with(|| Value::from(name.as_str()));
    }
    let given = source.variables.iter().cloned();
    out.extend(given.map(|(name, value)| (name, Value::from(value))));
    Ok(out)
}

/// P10: no more than a document may have.
fn contents(path: &Path) -> Result<String, Failure> {
    let bad = |problem: String| Failure::Usage(format!("cannot read {}: {problem}", path.display()));
    let reader: Box<dyn Read> = match path.as_os_str() == "-" {
        true => Box::new(io::stdin()),
        false => Box::new(File::open(path).map_err(|e| bad(e.to_string()))?),
    };
    let mut bytes = Vec::new();
    let most = u64::try_from(MAX_DOCUMENT).unwrap_or(u64::MAX).saturating_add(1);
    reader
        .take(most)
        .read_to_end(&mut bytes)
        .map_err(|e| bad(e.to_string()))?;
    if bytes.len() > MAX_DOCUMENT {
        return Err(bad(format!("it is longer than {MAX_DOCUMENT} bytes")));
    }
    String::from_utf8(bytes).map_err(|e| bad(e.to_string()))
}
