//! Bars of the last days, one above the other by model, as SVG. What it draws is numbers: no name from outside gets into it.

use std::error::Error;

use plotters::prelude::*;

/// Colours of the models, as in `usage.css`; the last is that of all others.
pub(super) const COLOURS: [RGBColor; 7] = [
    RGBColor(0x3b, 0x7d, 0xd8),
    RGBColor(0xe0, 0x8a, 0x1e),
    RGBColor(0x2f, 0x9e, 0x6e),
    RGBColor(0xb8, 0x5f, 0xc4),
    RGBColor(0xc9, 0x47, 0x3f),
    RGBColor(0x4a, 0xa8, 0xb8),
    RGBColor(0x8a, 0x94, 0xa0),
];
/// The style sheet puts another in its place in the dark.
const GRID: RGBColor = RGBColor(0xd9, 0xde, 0xe3);

/// A day: its name below the axis, and an amount for each colour.
#[derive(Debug, Clone)]
pub(super) struct Bar {
    /// As 11-27.
    pub(super) label: String,
    /// Tokens, by colour.
    pub(super) parts: [i64; COLOURS.len()],
}

/// The chart, `width` by `height` units.
pub(super) fn draw(bars: &[Bar], width: u32, height: u32) -> Result<String, Box<dyn Error>> {
    let most = bars.iter().map(|bar| bar.parts.iter().sum::<i64>()).max().unwrap_or(0).max(1);
    let days = bars.len().max(1);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(6)
            .margin_right(14)
            .x_label_area_size(22)
            .y_label_area_size(44)
            .build_cartesian_2d(0f64..days as f64, 0f64..most as f64 * 1.05)?;
        let name = |position: &f64| bars.get(*position as usize).map_or_else(String::new, |bar| bar.label.clone());
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(GRID)
            .label_style(("sans-serif", 12))
            .x_labels(if width > 500 { 8 } else { 4 })
            .x_label_formatter(&name)
            .y_labels(5)
            .y_label_formatter(&|amount| short(*amount))
            .draw()?;
        let bars = bars.iter().enumerate().flat_map(|(day, bar)| {
            let mut from = 0.0;
            bar.parts
                .iter()
                .zip(COLOURS)
                .filter(|(tokens, _)| **tokens > 0)
                .map(move |(tokens, colour)| {
                    let corners = [(day as f64 + 0.12, from), (day as f64 + 0.88, from + *tokens as f64)];
                    from += *tokens as f64;
                    Rectangle::new(corners, colour.filled())
                })
                .collect::<Vec<_>>()
        });
        chart.draw_series(bars)?;
        area.present()?;
    }
    Ok(svg)
}

/// As 1.5M.
fn short(amount: f64) -> String {
    let (divided, unit) = match amount {
        _ if amount >= 1e9 => (amount / 1e9, "G"),
        _ if amount >= 1e6 => (amount / 1e6, "M"),
        _ if amount >= 1e3 => (amount / 1e3, "k"),
        _ => (amount, ""),
    };
    let text = format!("{divided:.1}");
    format!("{}{unit}", text.strip_suffix(".0").unwrap_or(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_a_day_is_a_rectangle_of_its_colour_above_the_one_before() {
        let bar = |label: &str, parts| Bar { label: label.to_owned(), parts };
        let bars = [bar("11-26", [0; 7]), bar("11-27", [300, 100, 0, 0, 0, 0, 100])];
        let svg = draw(&bars, 720, 240).unwrap();
        let rectangles: Vec<(&str, f64, f64)> = svg
            .split("<rect ")
            .skip(1)
            .map(|text| {
                let value = |name: &str| text.split(&format!("{name}=\"")).nth(1).unwrap().split('"').next().unwrap();
                (value("fill"), value("y").parse().unwrap(), value("height").parse().unwrap())
            })
            .collect();
        let fills: Vec<&str> = rectangles.iter().map(|rectangle| rectangle.0).collect();
        assert_eq!(fills, ["#3B7DD8", "#E08A1E", "#8A94A0"]);
        let [(_, y0, h0), (_, y1, h1), (_, y2, h2)] = rectangles[..] else { panic!("{rectangles:?}") };
        assert!((h0 / h1 - 3.0).abs() < 0.1 && (h1 - h2).abs() <= 1.0, "{rectangles:?}");
        assert!((y1 + h1 - y0).abs() <= 1.0 && (y2 + h2 - y1).abs() <= 1.0, "{rectangles:?}");
        assert!(!svg.contains("style=") && !svg.contains("<style"), "the page's policy allows none");
        assert!(!draw(&[], 320, 200).unwrap().contains("<rect "));
    }

    #[test]
    fn amounts_are_short() {
        let amounts = [0.0, 950.0, 1_000.0, 1_250_000.0, 2e9].map(short);
        assert_eq!(amounts, ["0", "950", "1k", "1.2M", "2G"]);
    }
}
