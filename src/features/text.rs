//! The text of tokens, and regular expressions over it.

use std::fmt::Display;

use regex_automata::MatchKind;
use regex_automata::dfa::{Automaton as _, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::util::{primitives::StateID, start};
use regex_syntax::hir::Hir;

use super::build::count_value;
use super::spelled::{Spelled, Symbols};
use super::{Feature, explore, words};
use crate::error::{Error, Result};
use crate::tokens::{Space, Token, Unit, Vocab};

/// What each token is in text: bytes, which need not be whole characters.
///
/// The text of a sequence is the texts of its content tokens one after the other, with the separator, if there is one,
/// between any two.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Spelling {
    tokens: Vec<Vec<u8>>,
    separator: Option<u8>,
}

impl Spelling {
    /// The bytes of each token of a vocabulary, `[V]`; those of BOS, EOS and PAD are not looked at.
    pub fn new<T: Into<Vec<u8>>>(tokens: impl IntoIterator<Item = T>) -> Self {
        Spelling { tokens: tokens.into_iter().map(Into::into).collect(), separator: None }
    }

    /// The symbols of a vocabulary; words are separated by a blank.
    pub fn of(vocab: &Vocab) -> Self {
        let special = [const { String::new() }; 3];
        let symbols = vocab.symbols().iter().cloned().chain(special);
        let separator = (vocab.unit() == Unit::Words).then_some(b' ');
        Spelling { separator, ..Spelling::new(symbols) }
    }

    /// The same with a byte between any two tokens.
    pub fn separated_by(self, separator: u8) -> Self {
        Spelling { separator: Some(separator), ..self }
    }

    /// The text of a content.
    ///
    /// # Errors
    /// A token without spelling.
    pub fn text(&self, content: &[Token]) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        for (at, &token) in content.iter().enumerate() {
            let Some(bytes) = self.tokens.get(token as usize) else {
                return Err(Error::argument(format!("token {at}"), format!("below {}", self.tokens.len()), token));
            };
            text.extend(self.separator.filter(|_| at > 0));
            text.extend_from_slice(bytes);
        }
        Ok(text)
    }

    /// `Ok` where there is one for each token of `space`.
    pub(super) fn check(&self, space: &Space) -> Result<()> {
        crate::error::expect_len("spelling of the tokens", space.vocab as usize, self.tokens.len())
    }

    /// Each token of `space` as symbols, `of` being the symbol of each byte; EOS, BOS and PAD as none.
    fn symbols(&self, space: &Space, of: &[u8; 256]) -> Symbols {
        Symbols::new(self.tokens.iter().zip(0..).map(|(bytes, token)| {
            let bytes = if space.is_content(token) { &bytes[..] } else { &[] };
            let separator = self.separator.filter(|_| space.is_content(token));
            separator.into_iter().chain(bytes.iter().copied()).map(|byte| of[byte as usize])
        }))
    }

    /// The automaton of a checked text feature, of at most `limit` states.
    ///
    /// # Errors
    /// More states.
    pub(super) fn automaton(&self, space: &Space, feature: &Feature, name: &str, limit: usize) -> Result<Spelled> {
        let (of, symbols, next, values) = match feature {
            Feature::Regex(pattern) => regex(pattern, name, limit)?,
            Feature::AnyText(texts) => any_text(texts, limit).ok_or_else(|| too_large(name, limit))?,
            Feature::Count { of, most } => match &**of {
                Feature::Regex(pattern) => count_regex(pattern, *most, name, limit)?,
                Feature::AnyText(texts) => count_texts(texts, *most, limit).ok_or_else(|| too_large(name, limit))?,
                other => unreachable!("{} is not counted over text", other.kind()),
            },
            other => unreachable!("{} is no feature of the text", other.kind()),
        };
        let (next, values) = match self.separator {
            None => (next, values),
            Some(separator) => without_first(of[separator as usize], symbols, &next, &values),
        };
        let spelled = Spelled { width: symbols, next, values, symbols: self.symbols(space, &of) }.minimised();
        if spelled.states() <= limit { Ok(spelled) } else { Err(too_large(name, limit)) }
    }
}

/// Symbol of each byte, number of symbols, next state `[S, symbols]`, value of a text that ends in each state.
type OverBytes = ([u8; 256], usize, Vec<u32>, Vec<f32>);

/// Every token is spelled with the separator in front; a new first state swallows that of the first token.
fn without_first(separator: u8, symbols: usize, next: &[u32], values: &[f32]) -> (Vec<u32>, Vec<f32>) {
    let first = (0..symbols).map(|symbol| if symbol == separator as usize { 1 } else { 0 });
    let next = first.chain(next.iter().map(|&state| state + 1)).collect();
    (next, [&values[..1], values].concat())
}

/// The syntax tree of a regular expression.
///
/// # Errors
/// What is wrong with it, and where.
pub(super) fn parse(pattern: &str, name: &str) -> Result<Hir> {
    let what = || format!("regular expression of feature '{name}'");
    let invalid = |kind: &dyn Display, at: usize| {
        let shown: String = pattern.escape_debug().collect();
        Error::argument(what(), "valid syntax", format!("{kind} at byte {at} of '{shown}'"))
    };
    if pattern.is_empty() {
        return Err(Error::argument(what(), "a pattern", "nothing"));
    }
    let parsed = regex_syntax::ParserBuilder::new().utf8(false).build().parse(pattern);
    let hir = parsed.map_err(|error| match &error {
        regex_syntax::Error::Parse(error) => invalid(error.kind(), error.span().start.offset),
        regex_syntax::Error::Translate(error) => invalid(error.kind(), error.span().start.offset),
        other => Error::argument(what(), "valid syntax", other.to_string().replace('\n', " ")),
    })?;
    if hir.properties().look_set().contains_word_unicode() {
        return Err(Error::argument(what(), r"ASCII word boundaries, (?-u:\b)", r"Unicode's, \b"));
    }
    Ok(hir)
}

fn too_large(name: &str, limit: usize) -> Error {
    Error::argument(format!("automaton of feature '{name}'"), format!("at most {limit} states"), "more")
}

/// A determinised expression, to be searched for from any place on.
struct Determined {
    dfa: dense::DFA<Vec<u32>>,
    start: StateID,
    /// Symbol of each byte.
    of: [u8; 256],
    /// A byte of each symbol.
    bytes: Vec<u8>,
}

impl Determined {
    fn new(pattern: &str, kind: MatchKind, name: &str, limit: usize) -> Result<Self> {
        let too_large = || too_large(name, limit);
        let hir = parse(pattern, name)?;
        // Bytes that determinisation may take: a state costs its row of up to 257 words, and its set of NFA states.
        let bytes = limit.saturating_mul(4096).clamp(1 << 20, 1 << 30);
        let nfa = thompson::Compiler::new()
            .configure(thompson::Config::new().utf8(false).nfa_size_limit(Some(bytes)))
            .build_from_hir(&hir)
            .map_err(|_| too_large())?;
        let config = dense::Config::new().accelerate(false).start_kind(StartKind::Unanchored).match_kind(kind);
        let config = config.dfa_size_limit(Some(bytes)).determinize_size_limit(Some(bytes));
        let dfa = dense::Builder::new().configure(config).build_from_nfa(&nfa).map_err(|_| too_large())?;
        let start = dfa.start_state(&start::Config::new()).map_err(|_| too_large())?;
        let classes = dfa.byte_classes();
        let of: [u8; 256] = std::array::from_fn(|byte| classes.get(byte as u8));
        let bytes: Vec<u8> = classes.representatives(0..=255).filter_map(|unit| unit.as_u8()).collect();
        Ok(Determined { dfa, start, of, bytes })
    }

    /// The state after a symbol. It matches where a match ended *before* the symbol: what follows may decide that.
    fn step(&self, from: StateID, symbol: usize) -> StateID {
        self.dfa.next_state(from, self.bytes[symbol])
    }

    /// Whether a match ends with the text.
    fn matches_at_end(&self, state: StateID) -> bool {
        self.dfa.is_match_state(self.dfa.next_eoi_state(state))
    }
}

/// The automaton of the texts in which the expression matches anywhere: once it has, it stays so.
fn regex(pattern: &str, name: &str, limit: usize) -> Result<OverBytes> {
    let regex = Determined::new(pattern, MatchKind::LeftmostFirst, name, limit)?;
    // `None`: it has matched.
    let unless_matched = |state: StateID| (!regex.dfa.is_match_state(state)).then_some(state);
    let step = |from: Option<StateID>, symbol: usize| unless_matched(regex.step(from?, symbol));
    let symbols = regex.bytes.len();
    let found = explore(unless_matched(regex.start), symbols, limit, step);
    let (states, next) = found.ok_or_else(|| too_large(name, limit))?;
    let accepts = |state: &Option<StateID>| state.is_none_or(|state| regex.matches_at_end(state));
    Ok((regex.of, symbols, next, states.iter().map(|state| f32::from(u8::from(accepts(state)))).collect()))
}

/// The automaton that counts the places at which a match of the expression ends, up to `most`, in its states.
fn count_regex(pattern: &str, most: u32, name: &str, limit: usize) -> Result<OverBytes> {
    let regex = Determined::new(pattern, MatchKind::All, name, limit)?;
    let step = |(from, count): (StateID, u32), symbol: usize| {
        let to = regex.step(from, symbol);
        up_to(most, regex.start, to, count + u32::from(regex.dfa.is_match_state(to)))
    };
    let symbols = regex.bytes.len();
    let found = explore((regex.start, 0), symbols, limit, step);
    let (states, next) = found.ok_or_else(|| too_large(name, limit))?;
    let count = |&(state, count): &(StateID, u32)| count + u32::from(regex.matches_at_end(state));
    Ok((regex.of, symbols, next, states.iter().map(|state| count_value(count(state), most)).collect()))
}

/// A state with a count; where that is `most`, the state no longer matters, and is `start`.
fn up_to<S>(most: u32, start: S, state: S, count: u32) -> (S, u32) {
    if count >= most { (start, most) } else { (state, count) }
}

/// Words share beginnings and ends, but hardly more than this.
const SHARED: usize = 64;

/// Texts as words over symbols.
struct Texts<'a> {
    texts: &'a [String],
    /// Symbol of each byte; 0: bytes in no word.
    of: [u8; 256],
    symbols: usize,
}

impl<'a> Texts<'a> {
    fn new(texts: &'a [String]) -> Self {
        let (mut of, mut symbols) = ([0_u8; 256], 1);
        // UTF-8 has fewer than 256 different bytes, so the numbers suffice.
        for byte in texts.iter().flat_map(|text| text.bytes()) {
            if of[byte as usize] == 0 {
                of[byte as usize] = symbols as u8;
                symbols += 1;
            }
        }
        Texts { texts, of, symbols }
    }

    /// The automaton of these words; `None` where even the smallest one is likely to have more than `limit` states.
    fn automaton(&self, limit: usize) -> Option<words::AhoCorasick> {
        if self.texts.iter().map(String::len).sum::<usize>() / SHARED > limit {
            return None;
        }
        let words = self.texts.iter().map(|text| text.bytes().map(|byte| u32::from(self.of[byte as usize])));
        words::AhoCorasick::new(words, self.symbols)
    }
}

/// The automaton of the texts in which any of `texts` occurs; `None` where it is likely to have more than `limit` states.
fn any_text(texts: &[String], limit: usize) -> Option<OverBytes> {
    let texts = Texts::new(texts);
    let (next, values) = texts.automaton(limit)?.containing();
    Some((texts.of, texts.symbols, next, values))
}

/// The automaton that counts the places at which any of `texts` ends, up to `most`, in its states; `None` where it has more
/// than `limit`.
fn count_texts(texts: &[String], most: u32, limit: usize) -> Option<OverBytes> {
    let texts = Texts::new(texts);
    let automaton = texts.automaton(limit)?;
    let step = |(from, count): (u32, u32), symbol: usize| {
        let to = automaton.step(from, symbol);
        up_to(most, 0, to, count + u32::from(automaton.ends_in(to)))
    };
    let (states, next) = explore((0, 0), texts.symbols, limit, step)?;
    Some((texts.of, texts.symbols, next, states.iter().map(|&(_, count)| count_value(count, most)).collect()))
}
