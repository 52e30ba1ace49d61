//! A report as one page of HTML, well formed as XML too, so that a test can tell whether it is whole.

use super::{Block, Page, Table, Tone, svg};
use crate::brief::visible;

pub(super) fn write(page: &Page) -> String {
    let title = escaped(&visible(&page.title));
    let (tone, word) = match page.tone {
        Tone::Good => ("good", "as asked"),
        Tone::Bad => ("bad", "look here"),
        Tone::Odd => ("odd", "not as asked"),
        Tone::Open => ("open", "under way"),
    };
    let mut out = format!(
        r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta name="color-scheme" content="light dark"/>
<title>{title}</title>
<style>{CSS}</style>
</head>
<body>
<main>
<header class="{tone}">
<p class="tone">{word}</p>
<h1>{title}</h1>
<p>{}</p>
</header>
"#,
        escaped(&visible(&page.lead))
    );
    for section in &page.sections {
        out.push_str(&format!("<section>\n<h2>{}</h2>\n", section.title));
        for block in &section.blocks {
            match block {
                Block::Text(text) => out.push_str(&format!("<p>{}</p>\n", escaped(&visible(text)))),
                Block::List(items) => {
                    out.push_str("<ul>\n");
                    items.iter().for_each(|item| out.push_str(&format!("<li>{}</li>\n", escaped(&visible(item)))));
                    out.push_str("</ul>\n");
                }
                Block::Table(table) => tabulate(table, &mut out),
                Block::Drawing => draw(page, &mut out),
            }
        }
        out.push_str("</section>\n");
    }
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

fn draw(page: &Page, out: &mut String) {
    let course = &page.course;
    if course.to <= course.from {
        return;
    }
    let mut figure = |drawing: String, caption: &str| {
        out.push_str(&format!("<figure>\n{drawing}<figcaption>{caption}</figcaption>\n</figure>\n"));
    };
    let whole = svg::draw(course, (course.from, course.to), "whole", "The rollout over time");
    figure(whole, "Weight and verdicts, by time since the start.");
    if let Some(window) = course.close_up() {
        figure(svg::draw(course, window, "close-up", "The way back, closer"), "The way back, closer.");
    }
}

fn tabulate(table: &Table, out: &mut String) {
    // Its number of columns says what may not break.
    let caption = escaped(&visible(&table.caption));
    out.push_str(&format!("<div class=\"scroll\">\n<table class=\"c{}\">\n", table.head.len()));
    out.push_str(&format!("<caption>{caption}</caption>\n<thead><tr>"));
    table.head.iter().for_each(|name| out.push_str(&format!("<th scope=\"col\">{name}</th>")));
    out.push_str("</tr></thead>\n<tbody>\n");
    for row in &table.rows {
        out.push_str("<tr>");
        row.iter().for_each(|cell| out.push_str(&format!("<td>{}</td>", escaped(&visible(cell)))));
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table>\n</div>\n");
}

/// For text between tags and for values of attributes.
pub(super) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

const CSS: &str = include_str!("report.css");

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::CSS;

    /// The relative luminance of `#rrggbb`, as WCAG 2 has it.
    fn luminance(colour: &str) -> f64 {
        let channel = |at: usize| {
            let value = f64::from(u8::from_str_radix(&colour[at..at + 2], 16).unwrap()) / 255.0;
            if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5)
    }

    #[test]
    fn colours_have_enough_contrast_in_light_and_in_dark() {
        let (light, dark) = CSS.split_once("@media (prefers-color-scheme: dark)").unwrap();
        for theme in [light, dark.split_once("}\n}").unwrap().0] {
            let variables = theme.split(['{', ';', '}']).filter_map(|rule| rule.trim().strip_prefix("--"));
            let colours: HashMap<&str, f64> = variables
                .filter_map(|rule| rule.split_once(": "))
                .map(|(name, colour)| (name, luminance(colour)))
                .collect();
            let contrast = |one: &str, other: &str| {
                let (one, other) = (colours[one], colours[other]);
                (one.max(other) + 0.05) / (one.min(other) + 0.05)
            };
            for (text, ground) in [
                ("text", "page"),
                ("text", "soft"),
                ("mute", "page"),
                ("on", "good"),
                ("on", "bad"),
                ("on", "odd"),
                ("on", "accent"),
            ] {
                assert!(contrast(text, ground) >= 4.5, "{text} on {ground}: {}", contrast(text, ground));
            }
            for mark in ["good", "bad", "odd", "accent", "text"] {
                assert!(contrast(mark, "page") >= 3.0, "{mark}: {}", contrast(mark, "page"));
            }
        }
    }
}
