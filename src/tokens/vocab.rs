//! Vocabularies: which symbol a token stands for.

use std::collections::{BTreeSet, HashMap};

use super::{Space, Token};
use crate::error::{Error, Result};

/// What one token of a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Unicode scalar values; blanks inside a line are symbols like any other.
    Characters,
    /// Whitespace-separated words; how much whitespace lies between them is forgotten.
    Words,
}

impl Unit {
    /// The symbols of one line, in order.
    fn split(self, line: &str) -> impl Iterator<Item = &str> {
        // One of the two is empty: a cheap way to one type for both.
        let (characters, words) = if self == Unit::Characters { (line, "") } else { ("", line) };
        let characters = characters.char_indices().map(|(at, c)| &characters[at..at + c.len_utf8()]);
        characters.chain(words.split_whitespace())
    }

    /// Whether `symbol` could come out of a line.
    fn allows(self, symbol: &str) -> bool {
        !symbol.contains('\n') && self.split(symbol).eq([symbol])
    }
}

/// The symbols of a text in order of their ids 0, 1, …; BOS, EOS and PAD follow as [`Space::new`] lays them out.
///
/// Serialises as its unit and its symbols.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Vocab {
    unit: Unit,
    symbols: Vec<String>,
    ids: HashMap<String, Token>,
}

/// What a vocabulary looks like on disk: the ids follow from the order.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(rename = "Vocab")]
struct Stored {
    unit: Unit,
    symbols: Vec<String>,
}

impl Vocab {
    /// A vocabulary of the given symbols: the first gets id 0, and so on.
    ///
    /// # Errors
    /// No symbols, one twice, or one that no line could hold: empty, more than one character
    /// ([`Unit::Characters`]), with whitespace inside ([`Unit::Words`]), a line break.
    pub fn from_symbols<S: Into<String>>(symbols: impl IntoIterator<Item = S>, unit: Unit) -> Result<Self> {
        let symbols: Vec<String> = symbols.into_iter().map(Into::into).collect();
        if symbols.is_empty() || symbols.len() > (u32::MAX - 3) as usize {
            return Err(Error::argument("vocabulary", "1 to 2^32 − 4 symbols", symbols.len()));
        }
        let mut ids = HashMap::with_capacity(symbols.len());
        for (id, symbol) in symbols.iter().enumerate() {
            if !unit.allows(symbol) {
                let expected = match unit {
                    Unit::Characters => "one character, no line break",
                    Unit::Words => "a word without whitespace",
                };
                return Err(Error::argument(format!("symbol {id} of the vocabulary"), expected, quote(symbol)));
            }
            if let Some(first) = ids.insert(symbol.clone(), id as Token) {
                let expected = format!("each symbol once, and {} is symbol {first}", quote(symbol));
                return Err(Error::argument("vocabulary", expected, format!("it again as symbol {id}")));
            }
        }
        Ok(Vocab { unit, symbols, ids })
    }

    /// The vocabulary of all symbols in the lines of `text`, sorted by Unicode scalar values, so that it does not
    /// depend on the order of the lines.
    ///
    /// # Errors
    /// A text without symbols.
    pub fn from_text(text: &str, unit: Unit) -> Result<Self> {
        let symbols: BTreeSet<&str> = text.lines().flat_map(|line| unit.split(line)).collect();
        Vocab::from_symbols(symbols, unit)
    }

    /// What one token of a line is.
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// The symbols in order of their ids.
    pub fn symbols(&self) -> &[String] {
        &self.symbols
    }

    /// Number of symbols; BOS, EOS and PAD not counted.
    pub fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Whether there are no symbols: never, by construction.
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }

    /// The space of sequences of up to `longest` tokens, EOS included.
    ///
    /// # Errors
    /// `longest` of zero.
    pub fn space(&self, longest: u32) -> Result<Space> {
        Space::new(self.symbols.len() as u32, longest)
    }

    /// The tokens of `text`, one line or a part of one, without EOS.
    ///
    /// # Errors
    /// A symbol outside the vocabulary, named with its position (from 1).
    pub fn encode(&self, text: &str) -> Result<Vec<Token>> {
        let id = |(at, symbol): (usize, &str)| {
            self.ids.get(symbol).copied().ok_or_else(|| {
                let expected = format!("one of the {} symbols of the vocabulary", self.len());
                Error::argument(format!("symbol {}", at + 1), expected, quote(symbol))
            })
        };
        self.unit.split(text).enumerate().map(id).collect()
    }

    /// The text of `tokens`, up to EOS where there is one; words are joined by one blank.
    ///
    /// # Errors
    /// BOS, PAD or an id outside the vocabulary before the end.
    pub fn decode(&self, tokens: &[Token]) -> Result<String> {
        let eos = self.len() as Token + 1;
        let symbol = |(at, &token): (usize, &Token)| {
            self.symbols.get(token as usize).map(String::as_str).ok_or_else(|| {
                Error::argument(format!("token {}", at + 1), format!("below {} or EOS ({eos})", self.len()), token)
            })
        };
        let body = tokens.iter().take_while(|&&token| token != eos).enumerate();
        let symbols = body.map(symbol).collect::<Result<Vec<_>>>()?;
        Ok(symbols.join(if self.unit == Unit::Words { " " } else { "" }))
    }
}

impl TryFrom<Stored> for Vocab {
    type Error = Error;

    fn try_from(stored: Stored) -> Result<Self> {
        Vocab::from_symbols(stored.symbols, stored.unit)
    }
}

impl From<Vocab> for Stored {
    fn from(vocab: Vocab) -> Self {
        Stored { unit: vocab.unit, symbols: vocab.symbols }
    }
}

/// A symbol as an error message shows it: on one line, and short even where a "word" is a whole file.
fn quote(symbol: &str) -> String {
    const LONGEST: usize = 40;
    match symbol.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", &symbol[..end]),
        None => format!("{symbol:?}"),
    }
}
