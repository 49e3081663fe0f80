//! Tests of the tables of arguments: hand-made ones, as the compiler writes them
//! (`cmd/compile/internal/ssagen`, `EmitArgInfo`), and such as it never would.

use super::*;
use gotrace_process::Piece;

fn shape(table: &[u8]) -> Shape {
    Shape::parse(table).expect("a table that ends")
}

fn printed(table: &[u8], mut bytes: &[u8]) -> String {
    let text = shape(table).print(&mut bytes);
    assert!(bytes.is_empty(), "{bytes:?} are left");
    text
}

#[test]
fn prints_as_the_runtime_does() {
    assert_eq!(printed(&[END], &[]), "");
    // func(x int, s string, b bool)
    let table = [0, 8, OPEN, 8, 8, 16, 8, CLOSE, 24, 1, END];
    let mut bytes = Vec::new();
    bytes.extend(0xc0_0001_2120u64.to_le_bytes());
    bytes.extend(0x4b_2c3du64.to_le_bytes());
    bytes.extend(5u64.to_le_bytes());
    bytes.push(1);
    assert_eq!(printed(&table, &bytes), "0xc000012120, {0x4b2c3d, 0x5}, 0x1");
    // Empty structs, nested ones, what is too far, too deep, or too much.
    assert_eq!(printed(&[OPEN, CLOSE, END], &[]), "{}");
    let table = [OPEN, OPEN, 0, 2, CLOSE, OPEN, CLOSE, TOO_FAR, DOTS, CLOSE, TOO_FAR, DOTS, END];
    assert_eq!(printed(&table, &[0x34, 0x12]), "{{0x1234}, {}, _, ...}, _, ...");
    assert_eq!(printed(&[OPEN, DOTS, CLOSE, OPEN, TOO_FAR, CLOSE, END], &[]), "{...}, {_}");
    assert_eq!(printed(&[0, 4, 4, 0, END], &[0xff; 4]), "0xffffffff, 0x0");
    // No value has more than a word.
    assert_eq!(printed(&[0, 200, END], &[1, 0, 0, 0, 0, 0, 0, 0x80]), "0x8000000000000001");
}

#[test]
fn what_is_not_live_is_marked() {
    // The first is passed on the stack, and always live; the others have a bit each, the ninth in the next
    // byte.
    let mut table = vec![0, 8];
    (0..9).for_each(|n| table.extend([8 + n, 1]));
    table.push(END);
    let mut shape = shape(&table);
    assert_eq!((shape.slots(0xff), shape.slots(8), shape.slots(0)), (0, 9, 10));
    shape.mark(8, &[0b0000_0101, 0]);
    let mut bytes = [0; 17].as_slice();
    assert_eq!(shape.print(&mut bytes), "0x0, 0x0, 0x0?, 0x0, 0x0?, 0x0?, 0x0?, 0x0?, 0x0?, 0x0?");
}

#[test]
fn tables_that_do_not_end_are_none() {
    assert_eq!(Shape::parse(&[]), None);
    assert_eq!(Shape::parse(&[0]), None);
    assert_eq!(Shape::parse(&[0, 8, OPEN]), None);
    assert_eq!(Shape::parse(&[DOTS; MAX_TABLE as usize]), None);
    assert_eq!(shape(&[END, 1, 2, 3]), Shape::default());
}

/// Memory with one readable range.
struct Range(u64, Vec<u8>);

impl ReadMemory for Range {
    fn read_pieces(
        &self,
        pieces: &[Piece],
        buffer: &mut [u8],
        failed: &mut Vec<usize>,
    ) -> Result<(), ProcessError> {
        assert_eq!(pieces.len(), 1);
        let at = pieces[0].address.checked_sub(self.0).map(|o| usize::try_from(o).expect("small"));
        match at.and_then(|at| self.1.get(at..at.checked_add(pieces[0].len)?)) {
            Some(bytes) => buffer.copy_from_slice(bytes),
            None => failed.push(0),
        }
        Ok(())
    }
}

#[test]
fn a_table_at_the_end_of_memory_is_read() {
    let mut bytes = vec![DOTS; 4096];
    bytes[4094..].copy_from_slice(&[TOO_FAR, END]);
    let memory = Range(0x10000, bytes);
    let read = |address| read_shape(&memory, address).expect("reads");
    assert_eq!(read(0x10ffe), Some(shape(&[TOO_FAR, END])));
    assert_eq!(read(0x10fff), Some(Shape::default()));
    // It does not end, ends too late, is not there.
    assert_eq!(read(0x10000), None);
    assert_eq!(read(0x10f00), None);
    assert_eq!(read(0x11000), None);
    // Over the border of two pages.
    let mut bytes = vec![DOTS; 8192];
    bytes[4100] = END;
    let read = read_shape(&Range(0x10000, bytes), 0x10ffc).expect("reads");
    assert_eq!(read.map(|s| s.0.len()), Some(8));
}

#[test]
fn arguments_are_those_of_their_frame() {
    let (known, none, unknown) = (StackFrame::at(1), StackFrame::at(2), StackFrame::at(3));
    let mut arguments = Arguments::default();
    arguments.shapes.insert(known, Some(shape(&[0, 1, 2, 1, END])));
    arguments.shapes.insert(none, Some(Shape::default()));
    arguments.shapes.insert(unknown, None);
    let stack: Vec<u8> = (0..16).collect();
    let frames = [known, none, known, unknown, known, known];
    // The last two lie partly and wholly outside of what was read.
    let kept = arguments.keep(100, &frames, &[102, 0, 113, 104, 114, 7], &stack);
    assert_eq!(kept.unreadable, 3);
    let other = arguments.keep(100, &[known], &[100], &stack);
    arguments.add(0x200, kept);
    arguments.add(0x100, other);
    arguments.finish();
    let of = |g, frames: &[StackFrame]| -> Vec<String> {
        arguments.of(g, frames).into_iter().map(|a| a.unwrap_or_else(|| "unknown".to_owned())).collect()
    };
    assert_eq!(of(0x200, &frames), ["0x2, 0x4", "", "0xd, 0xf", "unknown", "unknown", "unknown"]);
    assert_eq!(of(0x100, &[known]), ["0x0, 0x2"]);
    assert_eq!(of(0x300, &[known, none]), ["unknown", "unknown"]);
}

#[test]
fn arguments_of_two_readers_stay_apart() {
    let frame = StackFrame::at(1);
    let read = |gs: &[u64], table: &[u8], stack: &[u8]| {
        let mut arguments = Arguments::default();
        arguments.shapes.insert(frame, Some(shape(table)));
        for &g in gs {
            let kept = arguments.keep(0, &[frame], &[0], stack);
            arguments.add(g, kept);
        }
        arguments
    };
    // Another table under the same address, as only a hostile program has.
    let mut arguments = read(&[0x200, 0x100], &[0, 1, END], &[1]);
    arguments.adopt(read(&[0x400, 0x300], &[0, 2, END], &[2, 1]));
    arguments.finish();
    let of = |g| arguments.of(g, &[frame]).into_iter().flatten().collect::<String>();
    assert_eq!([0x100, 0x200, 0x300, 0x400].map(of), ["0x1", "0x1", "0x102", "0x102"]);
    assert_eq!(arguments.of(0x500, &[frame]), [None]);
}
