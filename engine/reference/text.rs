//! The reference for the terminal: a list of all types, and one type with everything about it.

use std::fmt::Write as _;

use operators::operator::Role;

use super::catalogue::{Catalogue, FieldEntry, ROLES, TypeEntry};

/// Columns that text is wrapped to: what fits most terminals.
const WIDTH: usize = 100;

/// Every type with its summary.
pub fn list(catalogue: &Catalogue) -> String {
    let names = ROLES.iter().flat_map(|role| catalogue.of(*role)).map(|entry| entry.name.len());
    let widest = names.max().unwrap_or(0);
    let mut out = String::new();
    for role in ROLES {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{}", role.table());
        for entry in catalogue.of(role) {
            let _ = writeln!(out, "  {:<widest$}  {}", entry.name, entry.summary);
        }
        out.push('\n');
    }
    out.push_str("engine list NAME shows one with its fields, their defaults and an example.\n");
    out
}

/// One type: what it does, where it runs, its fields and an example. `common` are the fields that every node of its
/// role takes.
pub fn one(entry: &TypeEntry, common: &[FieldEntry]) -> String {
    let mut out = format!("{} ({})\n", entry.name, entry.role);
    out.push_str(&wrapped(entry.summary, 2));
    let _ = writeln!(out, "  It {}, and runs {}.", entry.flow(), entry.runs);
    if !entry.fields.is_empty() {
        out.push_str("\nfields\n");
        entry.fields.iter().for_each(|field| write_field(&mut out, field));
    }
    let _ = writeln!(out, "\nfields of every {}", entry.role);
    common.iter().for_each(|field| write_field(&mut out, field));
    out.push_str("\nexample\n");
    entry.example.lines().for_each(|line| {
        let _ = writeln!(out, "  {line}");
    });
    out
}

fn write_field(out: &mut String, field: &FieldEntry) {
    let presence = match (field.required, field.default) {
        (true, _) => ", required".to_owned(),
        (false, Some(default)) => format!(" [default: {default}]"),
        (false, None) => String::new(),
    };
    out.push_str(&wrapped(&format!("{}: {}{presence}", field.name, field.takes), 2));
    out.push_str(&wrapped(field.summary, 6));
}

/// `text` in lines of at most [`WIDTH`] columns, indented; a word is never cut.
fn wrapped(text: &str, indent: usize) -> String {
    let mut out = String::new();
    let mut column = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > WIDTH {
            out.push('\n');
            column = 0;
        }
        if column == 0 {
            out.push_str(&" ".repeat(indent));
            column = indent;
        } else {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out.push('\n');
    out
}

/// The names of all types of all roles, each once.
pub fn names(catalogue: &Catalogue) -> Vec<&'static str> {
    let mut names: Vec<&str> = ROLES.iter().flat_map(|role| catalogue.of(*role)).map(|entry| entry.name).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The types called `name`, with their roles: a name may be that of a source and of a sink.
pub fn named<'a>(catalogue: &'a Catalogue, name: &str) -> Vec<(Role, &'a TypeEntry)> {
    let of = |role: Role| catalogue.of(role).iter().map(move |entry| (role, entry));
    ROLES.into_iter().flat_map(of).filter(|(_, entry)| entry.name == name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_wrapped_and_no_word_is_lost() {
        let text = "word ".repeat(60);
        let lines = wrapped(&text, 6);
        assert!(lines.lines().all(|line| line.len() <= WIDTH && line.starts_with("      word")), "{lines}");
        assert_eq!(lines.split_whitespace().count(), 60);
    }

    #[test]
    fn a_name_may_stand_for_a_source_and_a_sink() {
        let catalogue = Catalogue::new(operators::OPERATORS);
        let roles: Vec<Role> = named(&catalogue, "file").into_iter().map(|(role, _)| role).collect();
        assert_eq!(roles, [Role::Source, Role::Sink]);
        assert_eq!(names(&catalogue).iter().filter(|name| **name == "file").count(), 1);
    }
}
