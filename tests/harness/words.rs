//! What a shell makes of a line of a document: the words of a command.

/// Words, quotes around some, `$'…'` with its `\n`, and a comment at the end. Nothing else that a shell does.
#[must_use]
pub fn words(line: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut chars = line.chars().peekable();
    let mut word: Option<String> = None;
    while let Some(c) = chars.next() {
        match c {
            ' ' => out.extend(word.take()),
            '#' if word.is_none() => break,
            '$' if chars.peek() == Some(&'\'') => {
                chars.next();
                let quoted: String = chars.by_ref().take_while(|c| *c != '\'').collect();
                word.get_or_insert_default().push_str(&quoted.replace("\\n", "\n"));
            }
            '\'' | '"' => {
                let quoted: String = chars.by_ref().take_while(|q| *q != c).collect();
                word.get_or_insert_default().push_str(&quoted);
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    out.extend(word);
    out
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn a_line_is_cut_as_a_shell_cuts_it() {
        let line = r#"redis-cli  HSET k:{a:b} pins "x=1 y=2" '' p'q'r $'#!lua\nreturn "1"' # and a remark"#;
        let expected = [
            "redis-cli",
            "HSET",
            "k:{a:b}",
            "pins",
            "x=1 y=2",
            "",
            "pqr",
            "#!lua\nreturn \"1\"",
        ];
        assert_eq!(words(line), expected);
    }
}
