//! Line charts as SVG: panels stacked over one shared x axis, the legend of each above its data.

use std::ops::Range;
use std::path::Path;

use ebm_dpg::checkpoint::write_atomically;
use ebm_dpg::{Error, Result};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const WIDTH: u32 = 860;
const TITLE: u32 = 44;
const PANEL: u32 = 230;
/// Space above a panel's data for its name and legend.
const HEADER: u32 = 34;
/// A further row of the legend.
const ROW: u32 = 18;
/// Decades below which a log axis has the ticks of a linear one.
const FEW: f64 = 0.7;
const FONT: &str = "sans-serif";
const GREY: RGBColor = RGBColor(110, 110, 110);
/// Okabe and Ito's colours, told apart by colour-blind readers too.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Points = Vec<(f64, f64)>;

/// A figure.
#[derive(Debug, Clone, Default)]
pub struct Chart {
    pub title: String,
    /// What x is, with its unit.
    pub x_label: String,
    pub panels: Vec<Panel>,
}

/// One set of axes.
#[derive(Debug, Clone, Default)]
pub struct Panel {
    /// What y is, with its unit.
    pub y_label: String,
    /// Decades instead of differences; what is not positive is left out.
    pub log_y: bool,
    /// Bounds that the data do not narrow, such as 0 and 1 of a share.
    pub y_range: Option<Range<f64>>,
    pub series: Vec<Series>,
    pub references: Vec<Reference>,
}

/// A line through points by increasing x; a NaN leaves a gap.
#[derive(Debug, Clone, Default)]
pub struct Series {
    pub name: String,
    pub points: Points,
    /// Half the height of a band around each point, such as its standard error; empty for none.
    pub band: Vec<f64>,
}

/// A dashed level to compare with.
#[derive(Debug, Clone, Default)]
pub struct Reference {
    /// Its name in the legend; empty for none.
    pub name: String,
    pub y: f64,
    /// The series whose colour it shares; grey where none is given.
    pub series: Option<usize>,
}

/// A line of a legend.
struct Entry<'a> {
    name: &'a str,
    colour: RGBColor,
    dashed: bool,
}

impl Entry<'_> {
    /// Pixels, by a guess of the font's width.
    fn width(&self) -> i32 {
        46 + 7 * self.name.chars().count() as i32
    }
}

impl Series {
    /// A series without a band.
    pub fn new(name: &str, points: Points) -> Self {
        Series { name: name.into(), points, band: Vec::new() }
    }
}

/// Draws a chart to an SVG file.
///
/// # Errors
/// [`Error::File`]; nothing half-written is left.
pub fn draw(path: &Path, chart: &Chart) -> Result<()> {
    let mut svg = String::new();
    let size = (WIDTH, TITLE + PANEL * chart.panels.len() as u32 + 16);
    render(&mut svg, size, chart).map_err(|error| Error::file(path, format!("cannot be drawn: {error}")))?;
    write_atomically(path, svg.as_bytes())
}

fn render(svg: &mut String, size: (u32, u32), chart: &Chart) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, size).into_drawing_area();
    root.fill(&WHITE)?;
    let (title, rest) = root.split_vertically(TITLE);
    title.draw(&Text::new(chart.title.clone(), (70, 16), font(18)))?;
    let x = Axis::around(chart.panels.iter().flat_map(|p| &p.series).flat_map(|s| &s.points).map(|p| p.0), 0.0);
    let x = Axis { ticks: 8, ..x };
    for (at, panel) in chart.panels.iter().enumerate() {
        let (_, below) = rest.split_vertically(PANEL * at as u32);
        let (area, _) = below.split_vertically(PANEL);
        let last = at + 1 == chart.panels.len();
        panel.draw(&area, x, if last { &chart.x_label } else { "" })?;
    }
    root.present()?;
    Ok(())
}

impl Panel {
    fn draw(&self, area: &Area<'_>, x: Axis, x_label: &str) -> std::result::Result<(), Box<dyn std::error::Error>> {
        let rows = self.legend_rows().len().max(1) as u32;
        let (header, body) = area.split_vertically((HEADER + ROW * (rows - 1)).min(PANEL / 2));
        self.legend(&header)?;
        let mut chart = ChartBuilder::on(&body)
            .set_label_area_size(LabelAreaPosition::Left, 70)
            .set_label_area_size(LabelAreaPosition::Bottom, if x_label.is_empty() { 24 } else { 42 })
            .margin_right(24)
            .build_cartesian_2d(x, self.axis())?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GREY.mix(0.22))
            .axis_style(GREY)
            .label_style(font(12).color(&BLACK.mix(0.75)))
            .axis_desc_style(font(13))
            .x_desc(x_label)
            .draw()?;
        for (at, series) in self.series.iter().enumerate() {
            for run in self.runs(series) {
                if let Some(band) = self.band(series, run.clone()) {
                    chart.draw_series([Polygon::new(band, colour(at).mix(0.18))])?;
                }
                let points: Points = run.map(|i| self.place(series.points[i])).collect();
                if let [point] = points[..] {
                    chart.draw_series([Circle::new(point, 3, colour(at).filled())])?;
                }
                chart.draw_series(LineSeries::new(points, colour(at).stroke_width(2)))?;
            }
        }
        for reference in self.references.iter().filter(|r| self.shows(r.y)) {
            let y = self.place((0.0, reference.y)).1;
            let style = reference.series.map_or(GREY, colour).stroke_width(1);
            chart.draw_series(DashedLineSeries::new([(x.low, y), (x.high, y)], 6, 4, style))?;
        }
        Ok(())
    }

    /// Name of y, then a sample of each line with its name, all above the data.
    fn legend(&self, header: &Area<'_>) -> std::result::Result<(), Box<dyn std::error::Error>> {
        let label = font(13).pos(Pos::new(HPos::Left, VPos::Center));
        let shown = self.series.iter().any(|series| !self.runs(series).is_empty());
        let name = if shown { self.y_label.clone() } else { format!("{} (no data)", self.y_label) };
        header.draw(&Text::new(name, (70, HEADER as i32 - 12), label.clone()))?;
        for (row, entries) in self.legend_rows().into_iter().enumerate() {
            let y = HEADER as i32 - 12 + row as i32 * ROW as i32;
            let mut x = WIDTH as i32 - 12 - entries.iter().map(Entry::width).sum::<i32>();
            for entry in entries {
                let pieces: &[(i32, i32)] = if entry.dashed { &[(0, 6), (10, 16), (20, 24)] } else { &[(0, 24)] };
                for &(from, to) in pieces {
                    header.draw(&PathElement::new([(x + from, y), (x + to, y)], entry.colour.stroke_width(2)))?;
                }
                header.draw(&Text::new(entry.name.to_string(), (x + 29, y), label.clone()))?;
                x += entry.width();
            }
        }
        Ok(())
    }

    /// The named lines, as many a row as fit beside the name of y.
    fn legend_rows(&self) -> Vec<Vec<Entry<'_>>> {
        let series = self.series.iter().enumerate();
        let series = series.map(|(at, s)| Entry { name: &s.name, colour: colour(at), dashed: false });
        let references = self.references.iter();
        let references =
            references.map(|r| Entry { name: &r.name, colour: r.series.map_or(GREY, colour), dashed: true });
        let (mut rows, mut room) = (Vec::new(), 0);
        for entry in series.chain(references).filter(|entry| !entry.name.is_empty()) {
            room -= entry.width();
            match rows.last_mut() {
                Some(row) if room >= 0 => Vec::push(row, entry),
                _ => {
                    room = WIDTH as i32 - 300 - entry.width();
                    rows.push(vec![entry]);
                }
            }
        }
        rows
    }

    /// The y axis: all lines, bands and references, or the wider bounds asked for.
    fn axis(&self) -> Axis {
        let bands = self.series.iter().flat_map(|s| s.points.iter().zip(&s.band)).flat_map(|(p, b)| [p.1 - b, p.1 + b]);
        let lines = self.series.iter().flat_map(|s| &s.points).map(|p| p.1);
        let levels = self.references.iter().map(|r| r.y);
        let bounds = self.y_range.iter().flat_map(|r| [r.start, r.end]);
        let shown = bands.chain(lines).chain(levels).chain(bounds).filter(|&y| self.shows(y));
        let axis = Axis::around(shown.map(|y| self.place((0.0, y)).1), 0.06);
        Axis { log: self.log_y, ..axis }
    }

    fn shows(&self, y: f64) -> bool {
        y.is_finite() && (!self.log_y || y > 0.0)
    }

    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (x, if self.log_y { y.log10() } else { y })
    }

    /// Ranges of neighbouring points that can be drawn.
    fn runs(&self, series: &Series) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (at, point) in series.points.iter().enumerate() {
            if point.0.is_finite() && self.shows(point.1) {
                match runs.last_mut() {
                    Some(run) if run.end == at => run.end += 1,
                    _ => runs.push(at..at + 1),
                }
            }
        }
        runs
    }

    /// The outline of a band: its upper edge forwards, its lower edge backwards, down to the axis where it is log.
    fn band(&self, series: &Series, run: Range<usize>) -> Option<Points> {
        let bottom = self.axis().low;
        let edge = |at: usize, sign: f64| {
            let (x, y) = series.points[at];
            let y = y + sign * series.band[at];
            if self.shows(y) { self.place((x, y)) } else { (x, bottom) }
        };
        let covered = run.len() > 1 && run.end <= series.band.len();
        covered.then(|| run.clone().map(|at| edge(at, 1.0)).chain(run.rev().map(|at| edge(at, -1.0))).collect())
    }
}

/// An axis with ticks at round numbers; on a `log` one, positions are exponents of ten.
#[derive(Debug, Clone, Copy)]
struct Axis {
    low: f64,
    high: f64,
    log: bool,
    /// The most ticks.
    ticks: usize,
}

impl Axis {
    /// An axis over all finite values and a `margin` of their range; around a constant, and around nothing, too.
    fn around(values: impl Iterator<Item = f64>, margin: f64) -> Self {
        let values = values.filter(|v| v.is_finite());
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        let (low, high) = match high - low {
            range if range > 1e-9 * high.abs().max(low.abs()) => (low - margin * range, high + margin * range),
            range if range >= 0.0 => (low - 0.5 * low.abs().max(1e-3), high + 0.5 * high.abs().max(1e-3)),
            _ => (0.0, 1.0),
        };
        Axis { low, high, log: false, ticks: 6 }
    }

    /// Ticks at multiples of 1, 2 or 5 times a power of ten; on a log axis at whole decades, or at 1, 2 and 5 of each
    /// where there are few.
    fn positions(&self) -> Vec<f64> {
        let multiples = |from: f64, to: f64, step: f64| -> Vec<f64> {
            ((from / step).ceil() as i64..=(to / step).floor() as i64).map(|i| i as f64 * step).collect()
        };
        let decades = self.high - self.low;
        if !self.log {
            multiples(self.low, self.high, step(self.low, self.high, self.ticks))
        } else if decades >= 2.0 {
            multiples(self.low, self.high, step(self.low, self.high, self.ticks).max(1.0).round())
        } else if decades >= FEW {
            let powers = self.low.floor() as i32..=self.high.ceil() as i32;
            let all = powers.flat_map(|power| [1.0, 2.0, 5.0].map(|m: f64| m.log10() + f64::from(power)));
            all.filter(|at| (self.low..=self.high).contains(at)).collect()
        } else {
            let (low, high) = (10f64.powf(self.low), 10f64.powf(self.high));
            multiples(low, high, step(low, high, self.ticks)).into_iter().map(f64::log10).collect()
        }
    }
}

/// The least of 1, 2 or 5 times a power of ten that makes at most `ticks` steps.
fn step(low: f64, high: f64, ticks: usize) -> f64 {
    let least = (high - low) / ticks as f64;
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= least).unwrap_or(least)
}

impl Ranged for Axis {
    type ValueType = f64;
    type FormatOption = NoDefaultFormatting;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (value - self.low) / (self.high - self.low);
        from + (share * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.positions()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    /// As many digits after the point as the ticks' distance needs; thousands and millions by letter.
    fn format_ext(&self, tick: &f64) -> String {
        let value = if self.log { 10f64.powf(*tick) } else { *tick };
        let largest = if self.log { value } else { self.low.abs().max(self.high.abs()) };
        let (unit, letter) = match largest {
            size if size >= 1e6 => (1e6, "M"),
            size if size >= 1e4 => (1e3, "k"),
            _ => (1.0, ""),
        };
        let distance = match (self.log, self.high - self.low < FEW) {
            (false, _) => step(self.low, self.high, self.ticks),
            (true, true) => step(10f64.powf(self.low), 10f64.powf(self.high), self.ticks),
            (true, false) => value,
        };
        // The small addend makes up for a log10 that falls just short of a whole number.
        let digits = (-((distance / unit).log10() + 1e-9).floor()).max(0.0) as usize;
        match value / unit {
            scaled if scaled.abs() < 1e-9 * largest => "0".into(),
            scaled if digits > 4 => format!("{scaled:.0e}"),
            scaled => format!("{scaled:.digits$}{letter}"),
        }
    }
}

fn colour(series: usize) -> RGBColor {
    COLOURS[series % COLOURS.len()]
}

fn font(size: u32) -> TextStyle<'static> {
    (FONT, size).into_text_style(&(WIDTH, PANEL))
}
