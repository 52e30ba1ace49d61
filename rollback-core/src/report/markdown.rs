//! A report as Markdown, GitHub's dialect.

use super::{Block, Page, Report, Table};
use crate::brief::{clipped, visible};

pub(super) fn write(page: &Page) -> String {
    let mut out = format!("# {}\n\n{}\n", text(&page.title), text(&page.lead));
    for section in &page.sections {
        out.push_str(&format!("\n## {}\n", section.title));
        for block in &section.blocks {
            match block {
                Block::Text(words) => out.push_str(&format!("\n{}\n", text(words))),
                Block::List(items) => {
                    out.push('\n');
                    items.iter().for_each(|item| out.push_str(&format!("- {}\n", text(item))));
                }
                Block::Table(table) => tabulate(table, &mut out),
                Block::Drawing => {}
            }
        }
    }
    if out.len() > Report::MAX_MARKDOWN {
        let room = out.floor_char_boundary(Report::MAX_MARKDOWN - CUT.len());
        // At the end of a line, or an escape could be torn.
        out.truncate(out[..room].rfind('\n').map_or(0, |end| end + 1));
        out.push_str(CUT);
    }
    out
}

fn tabulate(table: &Table, out: &mut String) {
    out.push_str(&format!("\n**{}**\n\n| {} |\n|", text(&table.caption), table.head.join(" | ")));
    table.head.iter().for_each(|_| out.push_str(" --- |"));
    out.push('\n');
    for row in &table.rows {
        out.push('|');
        row.iter().for_each(|cell| out.push_str(&format!(" {} |", text(cell))));
        out.push('\n');
    }
}

/// Text that Markdown takes for text: nothing in it is markup, HTML, a formula or a link.
fn text(raw: &str) -> String {
    let shown = clipped(visible(raw).trim(), MOST);
    let mut safe = String::with_capacity(shown.len() + 16);
    let number = shown.trim_start_matches(|c: char| c.is_ascii_digit());
    for (at, c) in shown.char_indices() {
        let rest = &shown[at + c.len_utf8()..];
        let special = match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '&' | '|' | '~' | '#' | '$' | '!' | '@' => true,
            // What begins a list, a heading or a line, at the beginning only.
            '-' | '+' | '=' => at == 0,
            '.' | ')' => at > 0 && shown.len() - at == number.len() && !rest.starts_with(|c: char| c != ' '),
            // Links that need no brackets.
            ':' => rest.starts_with("//"),
            _ => false,
        };
        let www = c == '.' && safe.len() >= 3 && safe.as_bytes()[safe.len() - 3..].eq_ignore_ascii_case(b"www");
        if special || www {
            safe.push('\\');
        }
        safe.push(c);
    }
    safe
}

/// The most characters of one text.
const MOST: usize = 1200;
const CUT: &str = "\n*The rest was cut: a report is at most 512 KiB as Markdown. The page of HTML has all of it.*\n";

#[cfg(test)]
mod tests {
    use super::text;

    #[test]
    fn nothing_from_outside_is_markup() {
        for (raw, safe) in [
            ("37 of 1,200 requests failed; at most 12 may", "37 of 1,200 requests failed; at most 12 may"),
            ("a|b", r"a\|b"),
            ("<script>alert(1)</script>", r"\<script\>alert(1)\</script\>"),
            ("[x](https://evil.example)", r"\[x\](https\://evil.example)"),
            ("![x](y) `code` **b** _i_ ~s~ $x$ &lt;", r"\!\[x\](y) \`code\` \*\*b\*\* \_i\_ \~s\~ \$x\$ \&lt;"),
            ("WWW.evil.example", r"WWW\.evil.example"),
            ("- item", r"\- item"),
            ("12. item", r"12\. item"),
            ("7) item", r"7\) item"),
            ("1.5 % of 12.", "1.5 % of 12."),
            ("a\r\n\n# b", r"a   \# b"),
            ("v2\u{202e}1v", "v2⟨U+202E⟩1v"),
        ] {
            assert_eq!(text(raw), safe, "{raw:?}");
        }
        assert!(text(&"x".repeat(5000)).ends_with("x…"));
    }
}
