//! Vocabularies and lines files.

use ebm_dpg::tokens::{Lines, Unit, Vocab};
use ebm_dpg::{Error, Result};
use proptest::prelude::*;

use Unit::{Characters, Words};

fn message<T>(result: Result<T>) -> String {
    let message = result.err().expect("an error").to_string();
    assert!(!message.contains('\n'), "one line: {message}");
    message
}

fn read(bytes: &[u8], unit: Unit, vocab: Option<&Vocab>, longest: Option<u32>) -> Result<Lines> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    Lines::read(file.path(), unit, vocab, longest)
}

#[test]
fn vocab_is_sorted_and_laid_out_like_its_space() {
    let vocab = Vocab::from_text("ßa\nb a\n", Characters).unwrap();
    assert_eq!(vocab.symbols(), [" ", "a", "b", "ß"]);
    let space = vocab.space(9).unwrap();
    assert_eq!((space.vocab, space.bos, space.eos, space.pad, space.longest), (7, 4, 5, 6, 9));
    assert_eq!(vocab, Vocab::from_text("b\na\n ß", Characters).unwrap(), "order of the text does not matter");
    let words = Vocab::from_text("to be\tor  not to be", Words).unwrap();
    assert_eq!((words.symbols().join(","), words.len()), ("be,not,or,to".into(), 4));
}

#[test]
fn given_symbols_keep_their_order() {
    let vocab = Vocab::from_symbols(["1", "0"], Characters).unwrap();
    assert_eq!(vocab.encode("0110").unwrap(), [1, 0, 0, 1]);
}

#[test]
fn bad_symbols_are_errors() {
    let none: [&str; 0] = [];
    for bad in [&none[..], &["a", "a"], &[""], &["ab"], &["\n"]] {
        message(Vocab::from_symbols(bad.to_vec(), Characters));
    }
    for bad in [&["a b"][..], &[" "], &["a "], &["a\n"], &[""]] {
        message(Vocab::from_symbols(bad.to_vec(), Words));
    }
    message(Vocab::from_text(" \n\t\n", Words));
    assert!(Vocab::from_symbols([" ", "\t"], Characters).is_ok());
}

#[test]
fn encode_names_symbol_and_position() {
    let vocab = Vocab::from_text("ab", Characters).unwrap();
    let error = message(vocab.encode("abßa"));
    assert_eq!(error, "symbol 3: expected one of the 2 symbols of the vocabulary, got \"ß\"");
    let words = Vocab::from_text("a b", Words).unwrap();
    assert!(message(words.encode(&format!("a {}", "x".repeat(1000)))).len() < 150, "a long word is clipped");
    assert_eq!(vocab.encode("").unwrap(), [0; 0]);
}

#[test]
fn decode_ends_at_eos_and_refuses_what_is_no_symbol() {
    let vocab = Vocab::from_text("abc", Characters).unwrap();
    let space = vocab.space(5).unwrap();
    assert_eq!(vocab.decode(&[2, 0, 1, space.eos, space.pad]).unwrap(), "cab");
    assert_eq!(vocab.decode(&[2, 0]).unwrap(), "ca");
    for bad in [space.bos, space.pad, space.vocab, u32::MAX] {
        assert!(message(vocab.decode(&[0, bad])).starts_with("token 2"));
    }
}

#[test]
fn vocab_survives_serialisation() {
    let vocab = Vocab::from_text("z é\n\"", Characters).unwrap();
    let json = serde_json::to_string(&vocab).unwrap();
    assert_eq!(serde_json::from_str::<Vocab>(&json).unwrap(), vocab);
    assert!(serde_json::from_str::<Vocab>(r#"{"unit":"characters","symbols":["a","a"]}"#).is_err());
}

#[test]
fn lines_are_sequences_with_eos() {
    let lines = read(b"01\n110\n", Characters, None, None).unwrap();
    let eos = lines.batch.space.eos;
    assert_eq!(lines.batch.iter().collect::<Vec<_>>(), [&[0, 1, eos][..], &[1, 1, 0, eos]]);
    assert_eq!((lines.batch.space.longest, lines.truncated.len(), lines.blank.len()), (4, 0, 0));
}

#[test]
fn line_ends_and_byte_order_mark_are_no_symbols() {
    let unix = read(b"ab\nba", Characters, None, None).unwrap();
    for same in [&b"ab\r\nba\r\n"[..], b"\xef\xbb\xbfab\nba\n", b"ab\nba\r\n"] {
        let lines = read(same, Characters, None, None).unwrap();
        assert_eq!(lines.vocab, unix.vocab);
        assert_eq!(lines.batch.tokens, unix.batch.tokens);
    }
}

#[test]
fn a_carriage_return_inside_a_line_is_a_character() {
    let lines = read(b"a\rb\r\n", Characters, None, None).unwrap();
    assert_eq!(lines.vocab.symbols(), ["\r", "a", "b"]);
    assert_eq!(lines.batch.content(0), [1, 0, 2]);
}

#[test]
fn long_lines_are_cut_and_flagged() {
    // Three symbols and EOS are four tokens: line 3 fits, lines 1 and 4 do not; 4 loses its EOS only to the limit.
    let lines = read(b"01101\n\n011\n0110\n", Characters, None, Some(4)).unwrap();
    assert_eq!((&lines.truncated[..], &lines.blank[..]), (&[1, 4][..], &[2][..]));
    let cut: Vec<bool> = (0..3).map(|row| lines.batch.is_cut(row)).collect();
    assert_eq!(cut, [true, false, true]);
    assert_eq!(lines.batch.sequence(0), [0, 1, 1, 0]);
}

#[test]
fn blank_lines_are_skipped_and_counted() {
    let lines = read(b"\na b\n   \n\nb\n", Words, None, None).unwrap();
    assert_eq!((lines.batch.rows, &lines.blank[..]), (2, &[1, 3, 4][..]));
    let lines = read(b" \na\n", Characters, None, None).unwrap();
    assert_eq!((lines.batch.rows, lines.blank.len()), (2, 0), "a blank is a character");
}

#[test]
fn bad_files_are_one_line_errors() {
    let vocab = Vocab::from_text("ab", Characters).unwrap();
    let error = |bytes: &[u8], vocab| message(read(bytes, Characters, vocab, None));
    assert!(error(b"", None).contains("expected at least one line with tokens, got 0 bytes"));
    assert!(error(b"\n\r\n", None).contains("2 blank lines"));
    assert!(error(b"\n", Some(&vocab)).contains("1 blank line"));
    assert!(error(b"ok\nno\xff", None).ends_with("line 2, byte 3: expected UTF-8, got 0xff"));
    assert!(error(b"ab\nbax\n", Some(&vocab)).contains("line 2, symbol 3: expected one of the 2 symbols"));
    assert!(message(Lines::read("/no/such/file", Words, None, None)).starts_with("/no/such/file: expected a file"));
    assert!(matches!(read(b"a", Words, Some(&vocab), None), Err(Error::Argument { .. })), "another unit");
    assert!(matches!(read(b"a", Characters, None, Some(0)), Err(Error::Argument { .. })));
}

#[test]
fn a_symbol_beyond_the_cut_is_still_an_error() {
    let vocab = Vocab::from_text("ab", Characters).unwrap();
    assert!(message(read(b"abx\n", Characters, Some(&vocab), Some(2))).contains("line 1, symbol 3"));
}

#[test]
fn room_that_cannot_be_had_is_an_error() {
    let text = "a\n".repeat(1 << 20);
    let lines = Lines::from_text(&text, Characters, None, Some(u32::MAX));
    assert!(matches!(lines, Err(Error::OutOfMemory { .. })));
}

proptest! {
    #[test]
    fn decode_inverts_encode(line in "[^\\n\\r]{1,20}") {
        let vocab = Vocab::from_text(&line, Characters).unwrap();
        prop_assert_eq!(vocab.decode(&vocab.encode(&line).unwrap()).unwrap(), line);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..40), longest in 1u32..9) {
        if let Ok(lines) = read(&bytes, Words, None, Some(longest)) {
            prop_assert!(lines.batch.iter().all(|x| lines.batch.space.check(x).is_ok()));
            let cut = (0..lines.batch.rows).filter(|&row| lines.batch.is_cut(row)).count();
            prop_assert_eq!(cut, lines.truncated.len());
        }
    }
}
