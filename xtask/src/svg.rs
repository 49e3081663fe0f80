//! A terminal's screen as an SVG: text as text, in whatever font of fixed width there is, in a terminal's colours.
//!
//! Each run of cells that look the same is one `text` that is as wide as its cells, whatever the font's letters are.

use std::fmt::Write as _;

use vt100::{Cell, Color, Screen};

/// A cell's size, and the edge around the screen.
const CELL: (f32, f32) = (8.4, 18.0);
const EDGE: f32 = 14.0;
const BACKGROUND: &str = "#1b1f24";
const FOREGROUND: &str = "#d7dce2";
/// The sixteen colours that have a number, dark ones first.
const COLORS: [&str; 16] = [
    "#1b1f24", "#f0716b", "#6cc07a", "#dcb45c", "#6ba7f0", "#c792ea", "#5cc4c9", "#c5ccd4", "#8b95a1",
    "#ff8d87", "#8fdc9b", "#f2cf7f", "#91c1ff", "#dcb3f7", "#86e0e4", "#ffffff",
];

/// How a cell looks.
#[derive(Clone, PartialEq)]
struct Look {
    foreground: String,
    background: Option<String>,
    bold: bool,
    underline: bool,
}

/// The screen, with what it shows in words.
pub fn draw(screen: &Screen, title: &str) -> String {
    let (rows, columns) = screen.size();
    let (width, height) = (f32::from(columns) * CELL.0 + 2.0 * EDGE, f32::from(rows) * CELL.1 + 2.0 * EDGE);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" role=\"img\">\n<title>{}</title>\n<rect width=\"100%\" height=\"100%\" rx=\"8\" \
         fill=\"{BACKGROUND}\"/>\n<g font-family=\"ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans \
         Mono',monospace\" font-size=\"14\" xml:space=\"preserve\">\n",
        escaped(title)
    );
    for row in 0..rows {
        let mut run: Option<(u16, Look, String)> = None;
        for column in 0..columns {
            let Some(cell) = screen.cell(row, column) else { continue };
            let text = if cell.has_contents() { cell.contents() } else { " " };
            let look = look(cell);
            match &mut run {
                Some((_, same, run)) if *same == look => run.push_str(text),
                _ => {
                    put(&mut svg, row, run.replace((column, look, text.to_owned())));
                }
            }
        }
        put(&mut svg, row, run);
    }
    svg + "</g>\n</svg>\n"
}

fn look(cell: &Cell) -> Look {
    let (mut foreground, mut background) = (named(cell.fgcolor()), named(cell.bgcolor()));
    if cell.inverse() {
        foreground = Some(background.unwrap_or_else(|| BACKGROUND.to_owned()));
        background = Some(named(cell.fgcolor()).unwrap_or_else(|| FOREGROUND.to_owned()));
    }
    Look {
        foreground: foreground.unwrap_or_else(|| FOREGROUND.to_owned()),
        background,
        bold: cell.bold(),
        underline: cell.underline(),
    }
}

/// A colour; none is the terminal's own.
fn named(color: Color) -> Option<String> {
    match color {
        Color::Default => None,
        Color::Idx(n) => Some(COLORS.get(usize::from(n)).map_or_else(
            || {
                // Six steps of each part, then grey.
                let part = |n: u8| if n == 0 { 0 } else { 55 + 40 * n };
                let (r, g, b) = match n.checked_sub(232) {
                    Some(grey) => (8 + 10 * grey, 8 + 10 * grey, 8 + 10 * grey),
                    None => (part((n - 16) / 36), part((n - 16) / 6 % 6), part((n - 16) % 6)),
                };
                format!("#{r:02x}{g:02x}{b:02x}")
            },
            |color| (*color).to_owned(),
        )),
        Color::Rgb(r, g, b) => Some(format!("#{r:02x}{g:02x}{b:02x}")),
    }
}

/// Adds a run of cells.
fn put(svg: &mut String, row: u16, run: Option<(u16, Look, String)>) {
    let Some((column, Look { foreground, background, bold, underline }, text)) = run else { return };
    let cells = text.chars().count() as f32;
    let (x, y) = (f32::from(column) * CELL.0 + EDGE, f32::from(row) * CELL.1 + EDGE);
    if let Some(background) = background {
        let (width, height) = (cells * CELL.0, CELL.1);
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{background}\"/>"
        );
    }
    if underline {
        let (end, y) = (x + cells * CELL.0, y + CELL.1 - 2.0);
        let _ = writeln!(svg, "<path d=\"M{x:.1} {y:.1}H{end:.1}\" stroke=\"{foreground}\"/>");
    }
    // Words of a run that spaces separate widely have their own place, so that they stand in columns in any font.
    let letters: Vec<char> = text.chars().collect();
    let mut at = 0;
    while at < letters.len() {
        let begin = at + letters[at..].iter().take_while(|c| **c == ' ').count();
        let is_end = |at: usize| letters[at..].starts_with(&[' ', ' ']) || at == letters.len();
        at = (begin..=letters.len()).find(|at| is_end(*at)).unwrap_or(letters.len());
        let words: String = letters[begin.min(at)..at].iter().collect();
        let words = words.trim_end();
        if words.is_empty() {
            break;
        }
        let (x, y) = (x + begin as f32 * CELL.0, y + 13.5);
        let width = words.chars().count() as f32 * CELL.0;
        let weight = if bold { " font-weight=\"700\"" } else { "" };
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" textLength=\"{width:.1}\" lengthAdjust=\"spacingAndGlyphs\" \
             fill=\"{foreground}\"{weight}>{}</text>",
            escaped(words)
        );
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_is_text_in_its_colours_at_its_places() {
        let mut terminal = vt100::Parser::new(2, 20, 0);
        terminal.process(b"\x1b[1;31mLEAK\x1b[0m a<b   c\r\n\x1b[7mrow\x1b[0m");
        let svg = draw(terminal.screen(), "a & b");
        let leak = "x=\"14.0\" y=\"27.5\" textLength=\"33.6\" lengthAdjust=\"spacingAndGlyphs\" fill=\"#f0716b\" \
                    font-weight=\"700\">LEAK</text>";
        for part in ["<title>a &amp; b</title>", leak, ">a&lt;b</text>", "x=\"106.4\"", ">c</text>"] {
            assert!(svg.contains(part), "{part} in\n{svg}");
        }
        let row = format!("width=\"25.2\" height=\"18.0\" fill=\"{FOREGROUND}\"/>");
        assert!(svg.contains(&row) && svg.contains(&format!("fill=\"{BACKGROUND}\">row</text>")), "{svg}");
        assert_eq!(named(Color::Idx(196)).as_deref(), Some("#ff0000"));
        assert_eq!(named(Color::Idx(232)).as_deref(), Some("#080808"));
    }
}
