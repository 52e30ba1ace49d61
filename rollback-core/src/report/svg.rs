//! The drawing: the weight as a line over time, a band of verdicts a gate, and the instants that matter.

use std::fmt::{self, Write};

use jiff::Timestamp;

use super::{
    course::{Band, Course, Mark, Says},
    html::escaped,
};
use crate::brief::{between, clipped, moment, visible};

/// The course between two instants as one SVG. `id` tells drawings on one page apart.
pub(super) fn draw(course: &Course, (from, to): (Timestamp, Timestamp), id: &str, title: &str) -> String {
    let marks = course.marks.iter().filter(|mark| (from..=to).contains(&mark.at)).collect();
    let chart = Chart { course, from, to, id, marks };
    let mut out = String::new();
    chart.draw(title, &mut out).expect("a string takes any text");
    out
}

struct Chart<'a> {
    course: &'a Course,
    from: Timestamp,
    to: Timestamp,
    id: &'a str,
    marks: Vec<&'a Mark>,
}

const WIDTH: f64 = 960.0;
const LEFT: f64 = 140.0;
const RIGHT: f64 = 24.0;
/// Beyond the last instant, so that what it came to can be seen.
const TAIL: f64 = 16.0;
const ROW: f64 = 18.0;
const HIGH: f64 = 150.0;
const BAND: f64 = 24.0;

impl Chart<'_> {
    fn draw(&self, title: &str, out: &mut String) -> fmt::Result {
        let id = self.id;
        let floor = self.top() + HIGH;
        let bands = floor + 12.0;
        let axis = bands + BAND * self.course.bands.len() as f64;
        let height = axis + 64.0;
        writeln!(out, r#"<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="{id}-title {id}-desc">"#)?;
        writeln!(out, r#"<title id="{id}-title">{}</title>"#, escaped(title))?;
        writeln!(out, r#"<desc id="{id}-desc">{}</desc>"#, escaped(&self.told()))?;
        // Told apart without colours as well.
        for (name, path) in
            [("lines", "M-2 2 2 -2M0 8 8 0M6 10 10 6"), ("dots", "M1 2h2M5 6h2"), ("cross", "M0 0 8 8M8 0 0 8")]
        {
            writeln!(
                out,
                r#"<pattern id="{id}-{name}" width="8" height="8" patternUnits="userSpaceOnUse"><path class="hatch {name}" d="{path}"/></pattern>"#
            )?;
        }
        self.grid(axis, out)?;
        self.weight(out)?;
        for (at, band) in self.course.bands.iter().enumerate() {
            self.band(band, bands + BAND * at as f64, out)?;
        }
        self.marks(axis, out)?;
        self.legend(axis + 50.0, out)?;
        writeln!(out, "</svg>")
    }

    /// The picture in words, for who cannot see it.
    fn told(&self) -> String {
        let steps: Vec<String> =
            self.steps().map(|(at, weight)| format!("{weight} % at {}", self.offset(at))).collect();
        let marks: Vec<String> =
            self.marks.iter().map(|mark| format!("{} at {}", mark.name, self.offset(mark.at))).collect();
        let marks = if marks.is_empty() { String::new() } else { format!(" Marked: {}.", marks.join(", ")) };
        format!("The candidate's share of the traffic: {}.{marks} The tables tell the same.", steps.join(", "))
    }

    fn grid(&self, axis: f64, out: &mut String) -> fmt::Result {
        for percent in [0, 25, 50, 75, 100] {
            let y = self.y(percent);
            writeln!(out, r#"<path class="grid" d="M{LEFT:.1} {y:.1}H{:.1}"/>"#, WIDTH - RIGHT)?;
            writeln!(out, r#"<text class="end" x="{:.1}" y="{:.1}">{percent} %</text>"#, LEFT - 8.0, y + 4.0)?;
        }
        let span = self.to.duration_since(self.from);
        for tick in 0..=5 {
            let at = self.from.saturating_add(span / 5 * tick).unwrap_or(self.to);
            let x = self.x(at);
            let class = if tick == 0 { "" } else { "mid" };
            writeln!(out, r#"<path class="grid" d="M{x:.1} {axis:.1}v5"/>"#)?;
            writeln!(out, r#"<text class="{class}" x="{x:.1}" y="{:.1}">{}</text>"#, axis + 19.0, self.offset(at))?;
        }
        Ok(())
    }

    fn weight(&self, out: &mut String) -> fmt::Result {
        let mut path = String::new();
        for (at, weight) in self.steps() {
            let (x, y) = (self.x(at), self.y(weight));
            if path.is_empty() { write!(path, "M{x:.1} {y:.1}")? } else { write!(path, "H{x:.1}V{y:.1}")? }
        }
        write!(path, "H{:.1}", self.x(self.to) + TAIL)?;
        writeln!(out, r#"<path class="area" d="{path}V{:.1}H{:.1}Z"/>"#, self.y(0), self.x(self.from))?;
        writeln!(out, r#"<path class="weight" d="{path}"/>"#)
    }

    fn band(&self, band: &Band, y: f64, out: &mut String) -> fmt::Result {
        let name = visible(&band.gate);
        let (short, middle) = (escaped(&clipped(&name, 18)), y + 14.0);
        writeln!(
            out,
            r#"<text class="end" x="{:.1}" y="{middle:.1}">{short}<title>{}</title></text>"#,
            LEFT - 8.0,
            escaped(&name)
        )?;
        for span in band.spans.iter().filter(|span| span.to >= self.from && span.from <= self.to) {
            let (from, to) = (self.x(span.from), self.x(span.to));
            let told = format!("{} from {} to {}", span.says.name(), moment(span.from), moment(span.to));
            self.swatch(span.says, [from, y + 2.0, (to - from).max(1.5), BAND - 6.0], &told, out)?;
        }
        if let Some(at) = band.tripped.filter(|at| (self.from..=self.to).contains(at)) {
            let told = format!("{name} tripped at {}", moment(at));
            let x = self.x(at);
            // What trips at once has no time to be seen as unhealthy.
            self.swatch(Says::Unhealthy, [x - 4.0, y + 2.0, 4.0, BAND - 6.0], &told, out)?;
            writeln!(
                out,
                r#"<path class="trip" d="M{:.1} {:.1}h10l-5 8z"><title>{}</title></path>"#,
                x - 5.0,
                y - 3.0,
                escaped(&told)
            )?;
        }
        Ok(())
    }

    fn swatch(&self, says: Says, [x, y, width, height]: [f64; 4], told: &str, out: &mut String) -> fmt::Result {
        let (class, pattern) = match says {
            Says::Healthy => ("good", None),
            Says::Unhealthy => ("bad", Some("lines")),
            Says::NoData => ("odd", Some("dots")),
            Says::NotJudged => ("none", None),
            Says::NotRecorded => ("none", Some("cross")),
        };
        let place = format!(r#"x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}""#);
        writeln!(out, r#"<rect class="{class}" {place}><title>{}</title></rect>"#, escaped(told))?;
        if let Some(pattern) = pattern {
            writeln!(out, r#"<rect class="over" fill="url(#{}-{pattern})" {place}/>"#, self.id)?;
        }
        Ok(())
    }

    /// Each mark has a row of its own above the chart. All names are on one side of their lines, and the rows in such an
    /// order that no line crosses a name.
    fn marks(&self, axis: f64, out: &mut String) -> fmt::Result {
        let to_the_left = self.marks.last().is_some_and(|mark| self.x(mark.at) > WIDTH / 2.0);
        for (at, mark) in self.marks.iter().enumerate() {
            let row = if to_the_left { self.marks.len() - 1 - at } else { at };
            let (x, y) = (self.x(mark.at), ROW * row as f64 + 14.0);
            let (class, beside) = if to_the_left { ("end", x - 6.0) } else { ("", x + 6.0) };
            writeln!(out, r#"<path class="mark" d="M{x:.1} {:.1}V{axis:.1}"/>"#, y - 10.0)?;
            let when = match self.course.marks.first() {
                Some(first) if first.at < mark.at => format!(", {} later", between(first.at, mark.at)),
                _ => format!(" at {}", self.offset(mark.at)),
            };
            writeln!(out, r#"<text class="{class}" x="{beside:.1}" y="{y:.1}">{}{when}</text>"#, mark.name)?;
        }
        Ok(())
    }

    fn legend(&self, y: f64, out: &mut String) -> fmt::Result {
        writeln!(out, r#"<path class="weight" d="M{LEFT:.1} {:.1}h18"/>"#, y - 4.0)?;
        writeln!(out, r#"<text x="{:.1}" y="{y:.1}">weight</text>"#, LEFT + 24.0)?;
        let shows = |band: &Band, says: Says| {
            band.spans.iter().any(|span| span.says == says) || (says == Says::Unhealthy && band.tripped.is_some())
        };
        let used = |says: Says| self.course.bands.iter().any(|band| shows(band, says));
        let used = Says::ALL.into_iter().filter(|says| used(*says));
        for (at, says) in used.enumerate() {
            let x = LEFT + 110.0 + 120.0 * at as f64;
            self.swatch(says, [x, y - 12.0, 18.0, 14.0], says.name(), out)?;
            writeln!(out, r#"<text x="{:.1}" y="{y:.1}">{}</text>"#, x + 24.0, says.name())?;
        }
        Ok(())
    }

    /// The weight at the beginning, and every one after that.
    fn steps(&self) -> impl Iterator<Item = (Timestamp, u8)> {
        let weights = &self.course.weights;
        let before = weights.iter().rev().find(|(at, _)| *at <= self.from).map_or(0, |(_, weight)| *weight);
        let inside = weights.iter().copied().filter(|(at, _)| *at > self.from && *at <= self.to);
        std::iter::once((self.from, before)).chain(inside)
    }

    /// Since the rollout was created, also in a close-up.
    fn offset(&self, at: Timestamp) -> String {
        between(self.course.from, at)
    }

    fn top(&self) -> f64 {
        ROW * self.marks.len() as f64 + 16.0
    }

    fn x(&self, at: Timestamp) -> f64 {
        let span = self.to.duration_since(self.from).as_secs_f64();
        let share = if span > 0.0 { at.duration_since(self.from).as_secs_f64() / span } else { 0.0 };
        LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT - TAIL)
    }

    fn y(&self, percent: u8) -> f64 {
        self.top() + HIGH - HIGH * f64::from(percent) / 100.0
    }
}
