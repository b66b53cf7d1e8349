//! A picture of an image's chunks: in the terminal, a character for each or for a group of neighbours, and as SVG.

use std::fmt::Write as _;

use crate::units::Size;

/// What starts did with a chunk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Use {
    /// They needed it; how late, from 0 for the first to 1 for the last.
    Touched(f64),
    /// It was loaded ahead, and they did not need it.
    Vain,
    Never,
}

/// A chunk of an image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    /// Where it lies in the image, in bytes.
    pub(crate) offset: u64,
    pub(crate) how: Use,
}

/// How a map is drawn with characters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Canvas {
    /// Columns of the terminal.
    pub(crate) width: usize,
    /// Whether it has colours, and more than ASCII.
    pub(crate) is_colourful: bool,
}

/// No map has more rows: then a character stands for more chunks.
const MOST_ROWS: usize = 24;
/// Columns for the offset of a row.
const MARGIN: usize = 12;

/// What a character says of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    Touched,
    Partly,
    Vain,
    Never,
}

impl Cell {
    const ALL: [(Self, &str); 4] = [
        (Self::Touched, "touched"),
        (Self::Partly, "touched in part"),
        (Self::Vain, "prefetched in vain"),
        (Self::Never, "never touched"),
    ];

    fn of(group: &[Chunk]) -> Self {
        let count = |is: fn(&Use) -> bool| group.iter().filter(|chunk| is(&chunk.how)).count();
        let touched = count(|how| matches!(how, Use::Touched(_)));
        let vain = count(|how| *how == Use::Vain);
        match (touched, vain) {
            (0, 0) => Self::Never,
            (touched, _) if touched == group.len() => Self::Touched,
            (touched, vain) if vain > touched => Self::Vain,
            _ => Self::Partly,
        }
    }

    /// Told apart by shape alone, for who sees no colours.
    fn draw(self, is_colourful: bool) -> (char, &'static str) {
        match (self, is_colourful) {
            (Self::Touched, false) => ('#', ""),
            (Self::Partly, false) => ('+', ""),
            (Self::Vain, false) => ('x', ""),
            (Self::Never, false) => ('.', ""),
            (Self::Touched, true) => ('█', "\x1b[32m"),
            (Self::Partly, true) => ('▒', "\x1b[32m"),
            (Self::Vain, true) => ('×', "\x1b[31m"),
            (Self::Never, true) => ('·', "\x1b[90m"),
        }
    }
}

/// Draws with characters: rows that begin with where they are in the image, and a legend.
pub(crate) fn text(chunks: &[Chunk], canvas: Canvas) -> String {
    let columns = canvas.width.saturating_sub(MARGIN + 1).max(8);
    let group = chunks.len().div_ceil(columns * MOST_ROWS).max(1);
    let mut text = String::new();
    let mut cells = Painter { text: &mut text, is_colourful: canvas.is_colourful, colour: "" };
    for row in chunks.chunks(columns * group) {
        let offset = row.first().map_or(0, |chunk| chunk.offset);
        cells.plain(&format!("{:>width$}  ", Size(offset).to_string(), width = MARGIN - 2));
        for group in row.chunks(group) {
            cells.cell(Cell::of(group));
        }
        cells.plain("\n");
    }
    cells.plain("\n");
    for (cell, name) in Cell::ALL {
        // One chunk is touched or not.
        if cell == Cell::Partly && group == 1 {
            continue;
        }
        cells.plain("  ");
        cells.cell(cell);
        cells.plain(&format!(" {name}"));
    }
    let each = if group == 1 { "1 chunk".to_owned() } else { format!("{group} chunks") };
    cells.plain(&format!("\n  a character is {each}; a row begins at its offset in the image\n"));
    text
}

/// Writes characters, and a colour where it changes.
struct Painter<'a> {
    text: &'a mut String,
    is_colourful: bool,
    colour: &'static str,
}

impl Painter<'_> {
    fn cell(&mut self, cell: Cell) {
        let (character, colour) = cell.draw(self.is_colourful);
        if colour != self.colour {
            self.text.push_str(colour);
            self.colour = colour;
        }
        self.text.push(character);
    }

    fn plain(&mut self, text: &str) {
        if !self.colour.is_empty() {
            self.text.push_str("\x1b[0m");
            self.colour = "";
        }
        self.text.push_str(text);
    }
}

/// Pixels of a chunk, with the gap after it.
const PITCH: usize = 10;
const SIDE: usize = 9;
const LEFT: usize = 80;
const TOP: usize = 44;
const VAIN: &str = "#d9480f";
const NEVER: &str = "#e9ecef";

/// Draws as SVG: a square for each chunk, those that were touched the darker the earlier.
pub(crate) fn svg(title: &str, chunks: &[Chunk]) -> String {
    // About twice as wide as high.
    let columns = ((chunks.len() * 2) as f64).sqrt().ceil().max(50.0) as usize;
    let rows = chunks.len().div_ceil(columns);
    let (width, height) = (LEFT + columns * PITCH + 20, TOP + rows * PITCH + 50);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    // Writing to a string does not fail.
    let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"26\" font-size=\"14\">{}</text>", escaped(title));
    for (row, chunks) in chunks.chunks(columns).enumerate() {
        let y = TOP + row * PITCH;
        if let Some(first) = chunks.first().filter(|_| row % 4 == 0) {
            let (x, y) = (LEFT - 6, y + SIDE);
            let _ = writeln!(svg, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"end\">{}</text>", Size(first.offset));
        }
        let mut column = 0;
        // Neighbours that were never touched, most of an image, are one path.
        for run in chunks.chunk_by(|a, b| a.how == b.how) {
            let (x, colour) = (LEFT + column * PITCH, colour(run.first().map_or(Use::Never, |chunk| chunk.how)));
            let _ = write!(svg, "<path fill=\"{colour}\" d=\"M{x} {y}");
            for _ in run {
                let _ = write!(svg, "h{SIDE}v{SIDE}h-{SIDE}zm{PITCH} 0");
            }
            svg.push_str("\"/>\n");
            column += run.len();
        }
    }
    let y = TOP + rows * PITCH + 16;
    let mut x = LEFT;
    for (how, name) in [
        (Use::Touched(0.0), "touched first"),
        (Use::Touched(1.0), "touched last"),
        (Use::Vain, "prefetched in vain"),
        (Use::Never, "never touched"),
    ] {
        let _ =
            writeln!(svg, "<rect x=\"{x}\" y=\"{y}\" width=\"{SIDE}\" height=\"{SIDE}\" fill=\"{}\"/>", colour(how));
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\">{name}</text>", x + PITCH + 4, y + SIDE);
        x += 30 + name.len() * 6;
    }
    svg.push_str("</svg>\n");
    svg
}

fn colour(how: Use) -> String {
    match how {
        Use::Vain => VAIN.to_owned(),
        Use::Never => NEVER.to_owned(),
        Use::Touched(late) => {
            let between = |first: f64, last: f64| (first + (last - first) * late.clamp(0.0, 1.0)).round() as u8;
            format!("#{:02x}{:02x}{:02x}", between(8.0, 140.0), between(48.0, 200.0), between(107.0, 235.0))
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(uses: &str) -> Vec<Chunk> {
        let how = |c| match c {
            '#' => Use::Touched(0.5),
            'x' => Use::Vain,
            _ => Use::Never,
        };
        uses.chars().zip(0..).map(|(c, at)| Chunk { offset: at << 20, how: how(c) }).collect()
    }

    #[test]
    fn a_map_has_a_character_for_each_chunk_and_fits_its_width() {
        let drawn = text(&chunks("##x....#.."), Canvas { width: 21, is_colourful: false });
        let wanted = "       0 B  ##x....#\n   8.0 MiB  ..\n\n  # touched  x prefetched in vain  . never touched\n";
        assert!(drawn.starts_with(wanted), "{drawn}");
        assert!(drawn.contains("a character is 1 chunk;"), "{drawn}");
    }

    #[test]
    fn neighbours_share_a_character_where_there_are_many() {
        let drawn = text(&chunks(&"####xxx.#.x.....".repeat(48)), Canvas { width: 21, is_colourful: false });
        assert_eq!(drawn.lines().next(), Some("       0 B  #x+.#x+."), "{drawn}");
        assert!(drawn.lines().filter(|line| line.ends_with(['#', '+', 'x', '.'])).count() <= MOST_ROWS);
        assert!(drawn.contains("touched in part") && drawn.contains("a character is 4 chunks;"), "{drawn}");
    }

    #[test]
    fn colours_end_where_the_map_does() {
        let drawn = text(&chunks("##x."), Canvas { width: 80, is_colourful: true });
        assert!(drawn.contains("\x1b[32m██\x1b[31m×\x1b[90m·\x1b[0m\n"), "{drawn:?}");
        assert_eq!(drawn.matches('\x1b').count() % 2, 0, "{drawn:?}");
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        assert!(text(&[], Canvas { width: 0, is_colourful: false }).contains("never touched"));
        assert!(svg("<&>", &[]).contains("&lt;&amp;&gt;"));
    }

    #[test]
    fn a_picture_has_a_square_for_each_chunk() {
        let drawn = svg("numpy", &chunks(&"#x..".repeat(100)));
        assert_eq!(drawn.matches("zm").count(), 400);
        assert_eq!(drawn.matches(VAIN).count(), 101);
    }
}
