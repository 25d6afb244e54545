//! Output: one value in four formats on stdout; words for people on stderr.

use std::{
    fmt::Display,
    io::{self, ErrorKind, Write},
};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::{exit::Failure, text::one_line};

/// In less room than this nothing is folded.
const NARROWEST: usize = 20;

/// How data is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people; not stable.
    Table,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
    /// One JSON document per line: of a list, one per item.
    Jsonl,
}

/// Where data goes.
pub(crate) struct Output {
    writer: Box<dyn Write>,
    format: Format,
    colour: bool,
}

impl Output {
    pub(crate) fn stdout(format: Format) -> Self {
        Self {
            writer: Box::new(io::stdout()),
            format,
            colour: colour_for(&io::stdout()),
        }
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    pub(crate) fn is_table(&self) -> bool {
        self.format == Format::Table
    }

    pub(crate) fn is_lines(&self) -> bool {
        self.format == Format::Jsonl
    }

    /// Marks something loud, with colour where that is wanted.
    pub(crate) fn loud(&self, text: &str) -> String {
        paint(text, self.colour)
    }

    /// Writes one value.
    pub(crate) fn value<T: Serialize>(
        &mut self,
        value: &T,
        table: impl FnOnce(&Self) -> String,
    ) -> Result<(), Failure> {
        let text = match self.format {
            Format::Table => table(self),
            _ => self.render(value)?,
        };
        Ok(self.text(&text)?)
    }

    /// A value as it is written to scripts.
    pub(crate) fn render<T: Serialize>(&self, value: &T) -> Result<String, Failure> {
        match self.format {
            Format::Json => json(value, true),
            Format::Table | Format::Jsonl => json(value, false),
            Format::Yaml => yaml(value),
        }
    }

    /// Writes a list.
    pub(crate) fn list<T: Serialize>(
        &mut self,
        items: &[T],
        table: impl FnOnce(&Self) -> String,
    ) -> Result<(), Failure> {
        if self.format == Format::Jsonl {
            for item in items {
                let line = json(item, false)?;
                self.text(&line)?;
            }
            return Ok(());
        }
        self.value(&items, table)
    }

    /// Writes text, ended by a newline. A reader who has seen enough (`| head`) is no error.
    pub(crate) fn text(&mut self, text: &str) -> io::Result<()> {
        let text = text.trim_end_matches('\n');
        let written = if text.is_empty() {
            Ok(())
        } else {
            writeln!(self.writer, "{text}").and_then(|()| self.writer.flush())
        };
        match written {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }
}

fn json<T: Serialize>(value: &T, pretty: bool) -> Result<String, Failure> {
    let text = if pretty {
        serde_json::to_string_pretty(value)
    } else {
        serde_json::to_string(value)
    };
    text.map_err(|e| Failure::Other(format!("cannot write JSON: {e}")))
}

fn yaml<T: Serialize>(value: &T) -> Result<String, Failure> {
    serde_saphyr::to_string(value).map_err(|e| Failure::Other(format!("cannot write YAML: {e}")))
}

/// Says something to the person at the terminal. Nobody listening is no error.
pub(crate) fn tell(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Says something that must not be overlooked.
pub(crate) fn warn(text: impl Display) {
    let mark = paint("WARNING:", colour_for(&io::stderr()));
    let _ = writeln!(io::stderr(), "{mark} {}", one_line(&text.to_string()));
}

fn colour_for(stream: &impl io::IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn paint(text: &str, colour: bool) -> String {
    if colour {
        format!("\x1b[1;31m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// A table without lines, as wide as the terminal at most. Columns named in `right` are numbers.
pub(crate) fn table(header: &[&str], right: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for (column, name) in table.column_iter_mut().zip(header) {
        column.set_padding((0, 2));
        if right.contains(name) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// `NAME  value` lines; entries without a value are left out. What is longer than the terminal goes on below its value.
pub(crate) fn sheet(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let room = Table::new()
        .width()
        .map(|columns| usize::from(columns).saturating_sub(width + 2));
    let lines = rows.iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| {
        let value = match room {
            Some(room) => folded(value, room).join(&format!("\n{:width$}  ", "")),
            None => value.clone(),
        };
        format!("{name:<width$}  {value}\n")
    });
    lines.collect()
}

/// Lines of at most `room` characters, broken at spaces, but not within `commands`: they are there to be copied.
fn folded(text: &str, room: usize) -> Vec<String> {
    if room < NARROWEST {
        return vec![text.to_owned()];
    }
    let mut words: Vec<String> = Vec::new();
    let mut in_command = false;
    for word in text.split(' ') {
        match words.last_mut().filter(|_| in_command) {
            Some(command) => command.extend([" ", word]),
            None => words.push(word.to_owned()),
        }
        in_command ^= word.matches('`').count() % 2 == 1;
    }
    let (mut lines, mut used): (Vec<String>, usize) = (Vec::new(), 0);
    for word in words {
        let length = shown_length(&word);
        match lines.last_mut().filter(|_| used + 1 + length <= room) {
            Some(line) => {
                line.extend([" ", word.as_str()]);
                used += 1 + length;
            }
            None => {
                lines.push(word);
                used = length;
            }
        }
    }
    lines
}

/// Characters that take room: colours do not.
fn shown_length(word: &str) -> usize {
    let mut colours = false;
    let shows = |c: &char| {
        let (was, is) = (colours, if colours { *c != 'm' } else { *c == '\x1b' });
        colours = is;
        !was && !is
    };
    word.chars().filter(shows).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_go_on_below_and_commands_stay_whole() {
        let fold = |text: &str| folded(text, 24);
        assert_eq!(fold("short"), ["short"]);
        assert_eq!(
            fold("held: no live worker has v2 now"),
            ["held: no live worker has", "v2 now"]
        );
        assert_eq!(
            fold("it waits; `switchback rollout promote mail` goes on without"),
            ["it waits;", "`switchback rollout promote mail`", "goes on without"]
        );
        assert_eq!(
            fold(&paint("rolled back by the guard", true)).len(),
            1,
            "colours take no room"
        );
        assert_eq!(folded("a b c d e f", 3), ["a b c d e f"], "narrower than anything");
    }
}
