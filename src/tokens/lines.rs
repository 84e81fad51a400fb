//! Lines files: one sequence a line.

use std::path::Path;

use super::{Batch, Token, Unit, Vocab};
use crate::backend::Cpu;
use crate::error::{Error, Result};

/// A text of one sequence a line, tokenised.
///
/// Lines end in LF or CRLF; a byte order mark at the start is dropped. A line without tokens (nothing between its
/// ends, or only whitespace where tokens are words) is no sequence: it is skipped and counted.
///
/// ```
/// use ebm_dpg::tokens::{Lines, Unit};
///
/// let lines = Lines::from_text("abba\n\nba\n", Unit::Characters, None, Some(4))?;
/// assert_eq!(lines.vocab.symbols(), ["a", "b"]);
/// assert_eq!(lines.batch.rows, 2);
/// assert_eq!(lines.truncated, [1]); // "abba" and its EOS are 5 tokens: cut, and flagged
/// assert_eq!(lines.blank, [2]);
/// assert_eq!(lines.vocab.decode(lines.batch.sequence(1))?, "ba");
/// # Ok::<(), ebm_dpg::Error>(())
/// ```
#[derive(Clone)]
pub struct Lines {
    /// The symbols and their ids.
    pub vocab: Vocab,
    /// The sequences in the order of their lines, each ended by EOS unless cut.
    pub batch: Batch,
    /// Numbers (from 1) of the lines that were cut: their tokens and EOS are more than the longest length. The
    /// [`Batch::is_cut`] of their rows says the same.
    pub truncated: Vec<usize>,
    /// Numbers (from 1) of the lines that were skipped, having no tokens.
    pub blank: Vec<usize>,
}

impl Lines {
    /// Reads a lines file.
    ///
    /// Without a `vocab`, its own symbols make one ([`Vocab::from_text`]). `longest` counts tokens, EOS included;
    /// without one, the longest line sets it and nothing is cut. Longer lines are cut to it and flagged in
    /// [`Lines::truncated`].
    ///
    /// # Errors
    /// [`Error::File`] naming the path: unreadable, not UTF-8 (with line and byte), no line with tokens, a symbol
    /// outside a given `vocab` (with line and symbol, also beyond a cut). [`Error::Argument`]: `longest` of zero, a
    /// `vocab` of another unit. [`Error::OutOfMemory`]: rows × `longest` tokens do not fit.
    pub fn read(path: impl AsRef<Path>, unit: Unit, vocab: Option<&Vocab>, longest: Option<u32>) -> Result<Self> {
        let path = path.as_ref();
        check_options(unit, vocab, longest)?;
        let unreadable = |error| Error::file(path, format!("expected a file that can be read, got: {error}"));
        let bytes = std::fs::read(path).map_err(unreadable)?;
        Lines::from_bytes(&bytes, unit, vocab, longest).map_err(|error| match error {
            Error::OutOfMemory { .. } => error,
            error => Error::file(path, error),
        })
    }

    /// Tokenises the bytes of a lines file that has been read already.
    ///
    /// # Errors
    /// Those of [`Lines::read`], the path aside, as [`Error::Argument`].
    pub fn from_bytes(bytes: &[u8], unit: Unit, vocab: Option<&Vocab>, longest: Option<u32>) -> Result<Self> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let valid = &bytes[..error.valid_up_to()];
            let line = 1 + valid.iter().filter(|&&byte| byte == b'\n').count();
            let byte = 1 + valid.iter().rev().take_while(|&&byte| byte != b'\n').count();
            Error::argument(format!("line {line}, byte {byte}"), "UTF-8", format!("0x{:02x}", bytes[valid.len()]))
        })?;
        Lines::from_text(text, unit, vocab, longest)
    }

    /// Tokenises a text as [`Lines::read`] does a file.
    ///
    /// # Errors
    /// Those of [`Lines::read`], the path aside, as [`Error::Argument`].
    pub fn from_text(text: &str, unit: Unit, vocab: Option<&Vocab>, longest: Option<u32>) -> Result<Self> {
        check_options(unit, vocab, longest)?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let no_tokens = || {
            let got = format!("{} bytes in {} blank lines", text.len(), text.lines().count());
            Error::argument("text", "at least one line with tokens", got)
        };
        let vocab = match vocab {
            Some(vocab) => vocab.clone(),
            None => Vocab::from_text(text, unit).map_err(|_| no_tokens())?,
        };
        let (mut lines, mut blank) = (Vec::new(), Vec::new());
        for (number, line) in (1..).zip(text.lines()) {
            let tokens = vocab.encode(line).map_err(|error| at_line(number, error))?;
            if tokens.is_empty() {
                blank.push(number);
            } else {
                lines.push((number, tokens));
            }
        }
        let most = lines.iter().map(|(_, tokens)| tokens.len()).max().ok_or_else(no_tokens)?;
        let longest = match longest {
            Some(longest) => longest,
            None => u32::try_from(most + 1)
                .map_err(|_| Error::argument("longest line", "fewer than 2^32 − 1 tokens", most))?,
        };
        let (batch, truncated) = fill(&vocab, lines, longest)?;
        Ok(Lines { vocab, batch, truncated, blank })
    }
}

/// The batch of the numbered lines, and the numbers of those that had to be cut.
fn fill(vocab: &Vocab, lines: Vec<(usize, Vec<Token>)>, longest: u32) -> Result<(Batch, Vec<usize>)> {
    let space = vocab.space(longest)?;
    let mut batch = Batch::with_capacity(&Cpu, space, lines.len())?;
    let mut truncated = Vec::new();
    for (number, mut tokens) in lines {
        tokens.push(space.eos);
        if tokens.len() > longest as usize {
            tokens.truncate(longest as usize);
            truncated.push(number);
        }
        batch.push(&tokens)?;
    }
    Ok((batch, truncated))
}

fn check_options(unit: Unit, vocab: Option<&Vocab>, longest: Option<u32>) -> Result<()> {
    if let Some(vocab) = vocab.filter(|vocab| vocab.unit() != unit) {
        return Err(Error::argument("unit of the vocabulary", format!("{unit:?}"), format!("{:?}", vocab.unit())));
    }
    if longest == Some(0) {
        return Err(Error::argument("longest sequence", "1 token or more", 0));
    }
    Ok(())
}

fn at_line(number: usize, error: Error) -> Error {
    match error {
        Error::Argument { what, expected, got } => Error::argument(format!("line {number}, {what}"), expected, got),
        error => error,
    }
}
