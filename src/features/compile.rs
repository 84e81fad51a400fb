//! The compiler: from a set of features to the words of one table.

use super::build::{Builder, Built, Refusal, Texts};
use super::matches::Matches;
use super::spelled::Spelled;
use super::substring::SuffixAutomaton;
use super::table::*;
use super::{Automaton, Classes, Feature, FeatureSet, FeatureTable, matches, shift};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::tokens::Token;

/// Automata are multiplied as long as the product's transitions and values fit this many words (32 KiB, a first-level
/// cache).
const PRODUCT_WORDS: usize = 1 << 13;

/// Words, and patterns that bits can match, are multiplied where their product is one of at most this many words.
const SMALL_WORDS: usize = 1 << 11;

/// Text patterns whose tokens make more classes than this are walked symbol by symbol.
const MOST_CLASSES: usize = 1 << 10;

/// Text patterns of more states than this are walked symbol by symbol: their actions on tokens are not compared.
const MOST_ACTIONS: usize = 1 << 11;

/// Where no more than one token in so many shares its class with another, none does, and kernels need not look classes up.
const OWN_CLASSES: usize = 8;

/// Word lists of more different tokens than this are walked symbol by symbol.
const MOST_NAMED: usize = 1 << 8;

/// What [`FeatureSet::compile`] may make.
pub const TABLE_BYTES: usize = 256 << 20;

impl FeatureSet {
    /// Compiles the features to one table in the memory of `backend`, of at most [`TABLE_BYTES`] bytes.
    ///
    /// # Errors
    /// As [`FeatureSet::compile_within`].
    pub fn compile<B: Backend>(&self, backend: &B) -> Result<FeatureTable<B>> {
        self.compile_within(backend, TABLE_BYTES)
    }

    /// Compiles the features to one table of at most `bytes` bytes. Words share one look-up a token; prefixes, suffixes and
    /// motifs become bit-parallel patterns; small automata are multiplied as long as their product stays small; automata
    /// that would be large over tokens are walked over what spells them; what no automaton computes has entries of its own.
    /// [`FeatureTable::report`](super::FeatureTable::report) tells which.
    ///
    /// # Errors
    /// The feature that takes the table over the limit, memory that cannot be had.
    pub fn compile_within<B: Backend>(&self, backend: &B, bytes: usize) -> Result<FeatureTable<B>> {
        let most = (bytes / 4).min(LARGEST_TABLE);
        let (words, customs) = Compiler::new(self, most)?.run()?;
        FeatureTable::assembled(backend, self.space(), self.names().to_vec(), &words, customs)
    }
}

/// A table under construction.
struct Compiler<'a> {
    set: &'a FeatureSet,
    /// The largest table, in words.
    most: usize,
    classes: Classes,
    /// The text patterns, those that are walked over symbols only until they have their entries.
    texts: Texts,
    /// Features walked symbol by symbol.
    spelled: Vec<*const Feature>,
    hidden: u32,
    customs: Customs,
    /// Automata waiting to be multiplied, with their targets and what they compute.
    automata: Vec<(Automaton, u32, &'a Feature)>,
    combinations: Vec<Entry>,
    tables: Tables,
}

impl<'a> Compiler<'a> {
    fn new(set: &'a FeatureSet, most: usize) -> Result<Self> {
        let (space, vocab) = (set.space(), set.space().vocab as usize);
        let mut this = Compiler {
            set,
            most,
            classes: Classes::new(&space, []),
            texts: Texts::default(),
            spelled: Vec::new(),
            hidden: 0,
            customs: Vec::new(),
            automata: Vec::new(),
            combinations: Vec::new(),
            tables: Tables::default(),
        };
        let mut named = Vec::new();
        for (at, feature) in set.features().iter().enumerate() {
            this.check_size(at, vocab)?;
            this.texts.add(&space, set.spelling(), feature, &set.names()[at], most)?;
            let mut counted = Vec::new();
            feature.walk(&mut |part| {
                if let Feature::Count { of, .. } = part {
                    counted.push(std::ptr::from_ref(&**of));
                }
                let (tokens, spare) = (part.named_tokens(), !counted.contains(&std::ptr::from_ref(part)));
                if matches!(part, Feature::AnyOf(_)) && spare && distinct(&tokens) > MOST_NAMED {
                    this.spelled.push(part);
                } else {
                    named.extend(tokens);
                }
            });
        }
        this.classes = Classes::new(&space, named);
        for feature in set.features() {
            feature.walk(&mut |part| {
                if part.is_text() {
                    this.classify(part);
                }
            });
        }
        if (vocab - this.classes.len()) * OWN_CLASSES <= vocab {
            this.classes = Classes::by(vocab as u32, |token| token);
        }
        Ok(this)
    }

    /// Refines the classes by a text pattern, or decides that it is walked symbol by symbol.
    fn classify(&mut self, part: &'a Feature) {
        let spelled = self.texts.get(part);
        let refined = (spelled.states() <= MOST_ACTIONS).then(|| spelled.refine(&self.classes, MOST_CLASSES)).flatten();
        match refined {
            Some(classes) => self.classes = classes,
            None => self.spelled.push(part),
        }
    }

    fn run(mut self) -> Result<(Vec<u32>, Customs)> {
        for (at, feature) in self.set.features().iter().enumerate() {
            self.add(at, feature, at as u32)?;
        }
        self.multiply();
        self.tables.hidden = self.hidden;
        self.tables.entries.append(&mut self.combinations);
        self.check_size(self.set.len().saturating_sub(1), self.set.space().vocab as usize)?;
        Ok((self.tables.assemble(&self.classes), self.customs))
    }

    /// Compiles one feature or part of one; `at` is the feature it belongs to.
    fn add(&mut self, at: usize, feature: &'a Feature, target: u32) -> Result<()> {
        match feature {
            Feature::Length => self.tables.length(target, 1),
            Feature::LengthSquared => self.tables.length(target, 2),
            Feature::LongestCommonSubstring(pattern) => self.tables.substring(target, pattern, &self.classes),
            Feature::EditDistance(pattern) => self.tables.edit(target, pattern, &self.classes),
            Feature::DistinctFraction => self.tables.push_entry(DISTINCT, 0, target),
            Feature::Custom(custom) => {
                self.tables.push_entry(CUSTOM, self.customs.len() as u32, target);
                self.customs.push((self.set.names()[at].clone(), custom.clone()));
            }
            _ if self.spelled.contains(&std::ptr::from_ref(feature)) => self.add_spelled(at, feature, target)?,
            _ => self.add_automaton(at, feature, target)?,
        }
        self.check_size(at, self.set.space().vocab as usize)
    }

    fn add_spelled(&mut self, at: usize, feature: &Feature, target: u32) -> Result<()> {
        let spelled = match feature {
            Feature::AnyOf(words) => Spelled::any_of(&self.set.space(), words),
            text => self.texts.take(text),
        };
        let spelled = spelled.ok_or_else(|| self.too_large(at, usize::MAX))?;
        self.tables.spelled(target, &spelled);
        Ok(())
    }

    fn add_automaton(&mut self, at: usize, feature: &'a Feature, target: u32) -> Result<()> {
        let width = self.classes.len();
        let room = self.most.saturating_sub(self.tables.len()) / width;
        // What has parts can be computed from these instead; what has none takes all the room there is.
        let whole = feature.parts().is_empty() || feature.is_text();
        let limit = if whole { room } else { room.min(PRODUCT_WORDS / width) };
        match self.try_automaton(feature, limit) {
            Ok(automaton) => {
                self.tables.waiting += automaton.states() * (width + 1);
                self.automata.push((automaton, target, feature));
                Ok(())
            }
            Err(_) if whole => Err(self.too_large(at, limit.saturating_mul(width))),
            Err(_) if matches!(feature, Feature::Count { .. }) => self.add_count(at, feature, target, room),
            Err(_) => self.combine(at, feature, target),
        }
    }

    fn try_automaton(&self, feature: &Feature, limit: usize) -> Built {
        let mut spelled = false;
        feature.walk(&mut |part| spelled |= self.spelled.contains(&std::ptr::from_ref(part)));
        if spelled {
            return Err(Refusal::TooLarge);
        }
        self.builder(limit).automaton(feature)
    }

    fn builder(&self, limit: usize) -> Builder<'_> {
        Builder { space: self.set.space(), classes: &self.classes, texts: &self.texts, limit }
    }

    /// A count as a counter beside the automaton of what it counts.
    fn add_count(&mut self, at: usize, feature: &Feature, target: u32, limit: usize) -> Result<()> {
        let Feature::Count { of, most } = feature else { unreachable!("a count") };
        match self.builder(limit).ends(of) {
            Ok(automaton) => {
                self.tables.count(target, &automaton, *most);
                Ok(())
            }
            Err(_) => Err(self.too_large(at, limit.saturating_mul(self.classes.len()))),
        }
    }

    /// A feature computed from the values of its parts, which stay hidden.
    fn combine(&mut self, at: usize, feature: &'a Feature, target: u32) -> Result<()> {
        let (operation, threshold) = match feature {
            Feature::Not(_) => (0, 0.0),
            Feature::All(_) => (1, 0.0),
            Feature::Any(_) => (2, 0.0),
            Feature::AtLeast { value, .. } => (3, *value),
            other => unreachable!("{} has no parts", other.kind()),
        };
        let first_hidden = self.set.len() as u32 + self.hidden;
        self.hidden += feature.parts().len() as u32;
        for (part, hidden) in feature.parts().iter().zip(first_hidden..) {
            self.add(at, part, hidden)?;
        }
        let operands = feature.parts().len() as u32;
        let (first, targets) = (self.tables.push(first_hidden..first_hidden + operands), self.tables.push([target]));
        let second = f32::to_bits(threshold);
        let entry =
            Entry { kind: COMBINE, size: operation, extent: operands, first, second, targets, ..Entry::default() };
        self.combinations.push(entry);
        Ok(())
    }

    /// Multiplies the waiting automata greedily in their order. Words and patterns that bits can match stay out where their
    /// product would not be one small automaton.
    fn multiply(&mut self) {
        let automata = std::mem::take(&mut self.automata);
        let apart = |feature: &Feature| shift::fits(feature) || matches::fits(feature, &self.classes, PRODUCT_WORDS);
        let products = self.products(automata.iter().filter(|waiting| apart(waiting.2)));
        let words =
            |(product, targets): &(Automaton, Vec<u32>)| product.states() * (self.classes.len() + targets.len());
        let small = products.len() <= 1 && products.iter().map(words).sum::<usize>() <= SMALL_WORDS;
        let mut rest: Vec<&(Automaton, u32, &Feature)> = automata.iter().collect();
        if !small {
            let named = |waiting: &&(Automaton, u32, &'a Feature)| (waiting.2, waiting.1);
            for matches in matches::pack(rest.iter().map(named), &self.classes, PRODUCT_WORDS) {
                self.tables.matches(&matches);
                rest.retain(|(_, target, _)| !matches.targets.contains(target));
            }
            let (bits, others): (Vec<_>, Vec<_>) = rest.into_iter().partition(|(_, _, feature)| shift::fits(feature));
            for words in shift::pack(bits.iter().map(named)) {
                self.tables.shift(&words, &self.classes);
            }
            rest = others;
        }
        for (product, targets) in self.products(rest.into_iter()) {
            self.tables.automaton(&product, &targets);
        }
        self.tables.waiting = 0;
    }

    fn products<'b>(
        &self,
        automata: impl Iterator<Item = &'b (Automaton, u32, &'b Feature)>,
    ) -> Vec<(Automaton, Vec<u32>)> {
        let mut products: Vec<(Automaton, Vec<u32>)> = Vec::new();
        for (one, target, _) in automata {
            if let Some((last, targets)) = products.last_mut()
                && let Some(product) = last.product(one, PRODUCT_WORDS / (self.classes.len() + targets.len() + 1))
            {
                *last = product;
                targets.push(*target);
            } else {
                products.push((one.clone(), vec![*target]));
            }
        }
        products
    }

    fn check_size(&self, at: usize, vocab: usize) -> Result<()> {
        let words = HEADER + vocab + self.tables.len() + self.combinations.len() * ENTRY;
        if words <= self.most { Ok(()) } else { Err(self.too_large(at, words)) }
    }

    fn too_large(&self, at: usize, words: usize) -> Error {
        let what = match self.set.names().get(at) {
            Some(name) => format!("feature table with feature '{name}'"),
            None => "feature table".into(),
        };
        let got = if words > self.most { format!("{} or more", words.saturating_mul(4)) } else { "more".into() };
        Error::argument(what, format!("at most {} bytes", self.most.saturating_mul(4)), got)
    }
}

fn distinct(tokens: &[Token]) -> usize {
    tokens.iter().collect::<std::collections::HashSet<_>>().len()
}

/// The tables under construction: offsets count from the first word behind the entries, those of spelled automata from the
/// first word behind the class map.
#[derive(Default)]
struct Tables {
    entries: Vec<Entry>,
    words: Vec<u32>,
    cold: Vec<u32>,
    hidden: u32,
    /// Words of automata that wait to be multiplied; products are smaller, or bounded.
    waiting: usize,
}

impl Tables {
    fn len(&self) -> usize {
        self.entries.len() * ENTRY + self.words.len() + self.cold.len() + self.waiting
    }

    fn automaton(&mut self, automaton: &Automaton, targets: &[u32]) {
        let width = automaton.classes().len() as u32;
        let targets = self.push(targets.iter().copied());
        let first = self.push(automaton.transitions().iter().map(|&state| state * width));
        let states = automaton.states() as u32;
        let second = self.push((0..states).flat_map(|state| automaton.values(state)).map(|value| value.to_bits()));
        let extent = automaton.outputs() as u32;
        self.entries.push(Entry { kind: AUTOMATON, size: states, extent, first, second, targets, ..Entry::default() });
    }

    fn length(&mut self, target: u32, power: u32) {
        self.push_entry(LENGTH, power, target);
    }

    fn push_entry(&mut self, kind: u32, size: u32, target: u32) {
        let targets = self.push([target]);
        self.entries.push(Entry { kind, size, targets, ..Entry::default() });
    }

    fn substring(&mut self, target: u32, pattern: &[Token], classes: &Classes) {
        let automaton = SuffixAutomaton::new(pattern, classes);
        let targets = self.push([target]);
        let (first, second) = (self.push(automaton.next), self.push(automaton.links.iter().flatten().copied()));
        let (size, extent) = (pattern.len() as u32, automaton.links.len() as u32);
        self.entries.push(Entry { kind: SUBSTRING, size, extent, first, second, targets, ..Entry::default() });
    }

    fn edit(&mut self, target: u32, pattern: &[Token], classes: &Classes) {
        let words = pattern.len().div_ceil(32);
        let mut masks = vec![0_u32; classes.len() * words];
        for (i, &token) in pattern.iter().enumerate() {
            masks[classes.of()[token as usize] as usize * words + i / 32] |= 1 << (i % 32);
        }
        let (targets, first) = (self.push([target]), self.push(masks));
        let (size, extent) = (pattern.len() as u32, words as u32);
        self.entries.push(Entry { kind: EDIT, size, extent, first, targets, ..Entry::default() });
    }

    fn count(&mut self, target: u32, ends: &Automaton, most: u32) {
        let width = ends.classes().len() as u32;
        let mark = |state: u32| (state * width) | if ends.values(state)[0] == 1.0 { ENDS } else { 0 };
        let first = self.push(ends.transitions().iter().map(|&state| mark(state)));
        let (size, targets) = (ends.states() as u32, self.push([target]));
        self.entries.push(Entry { kind: COUNT, size, extent: most, first, targets, ..Entry::default() });
    }

    fn matches(&mut self, matches: &Matches) {
        let (automaton, width) = (&matches.automaton, matches.automaton.width() as u32);
        let mark = |state: u32| (state * width) | if automaton.ends_in(state) { ENDS } else { 0 };
        let targets = self.push(matches.targets.iter().copied());
        let first = self.push(automaton.transitions().iter().map(|&state| mark(state)));
        let second = self.push(automaton.ends.iter().copied());
        let (size, extent) = (automaton.ends.len() as u32, matches.targets.len() as u32);
        self.entries.push(Entry { kind: WORDS, size, extent, first, second, targets, ..Entry::default() });
    }

    fn shift(&mut self, words: &shift::Words, classes: &Classes) {
        let (masks, outputs) = (words.masks(classes), words.outputs());
        // The GPU reads the masks of a class at once.
        self.words.resize(self.words.len().next_multiple_of(4), 0);
        let (first, second) = (self.push(masks), self.push(words.starts()));
        let (third, targets) = (self.push(outputs.iter().map(|o| o.0)), self.push(outputs.iter().map(|o| o.1)));
        let (size, extent) = (words.len() as u32, outputs.len() as u32);
        self.entries.push(Entry { kind: SHIFT, size, extent, first, second, third, targets, unused: 0 });
    }

    fn spelled(&mut self, target: u32, spelled: &Spelled) {
        let mut cold = |words: &mut dyn Iterator<Item = u32>| {
            let offset = self.cold.len() as u32;
            self.cold.extend(words);
            offset
        };
        let width = spelled.width as u32;
        let first = cold(&mut spelled.next.iter().map(|&state| state * width));
        let second = cold(&mut spelled.values.iter().map(|value| value.to_bits()));
        let third = cold(&mut spelled.symbols.ends.iter().copied());
        let pack = |four: &[u8]| four.iter().rev().fold(0, |word, &symbol| word << 8 | u32::from(symbol));
        cold(&mut spelled.symbols.symbols.chunks(4).map(pack));
        let targets = self.push([target]);
        let (size, extent) = (spelled.states() as u32, width);
        self.entries.push(Entry { kind: SPELLED, size, extent, first, second, third, targets, unused: 0 });
    }

    /// Appends words; returns their offset.
    fn push(&mut self, words: impl IntoIterator<Item = u32>) -> u32 {
        let offset = self.words.len() as u32;
        self.words.extend(words);
        offset
    }

    /// Header, entries with final offsets, tables, class map, spelled automata.
    fn assemble(mut self, classes: &Classes) -> Vec<u32> {
        let tables = (HEADER + self.entries.len() * ENTRY) as u32;
        let map = tables + self.words.len() as u32;
        let cold = map + classes.of().len() as u32;
        for entry in &mut self.entries {
            entry.targets += tables;
            let (base, second_is_offset) =
                if entry.kind == SPELLED { (cold, true) } else { (tables, entry.kind != COMBINE) };
            entry.first += base;
            entry.third += base;
            entry.second += if second_is_offset { base } else { 0 };
        }
        let mut words = vec![self.entries.len() as u32, classes.len() as u32, self.hidden, map];
        words.extend_from_slice(bytemuck::cast_slice(&self.entries));
        words.append(&mut self.words);
        words.extend_from_slice(classes.of());
        words.append(&mut self.cold);
        words
    }
}
