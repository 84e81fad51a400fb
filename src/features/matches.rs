//! The words of several features at once: the automaton of Aho and Corasick (1975), whose states know of which features
//! words end there. One look-up a token, however many features there are.

use super::words::AhoCorasick;
use super::{Classes, Feature};
use crate::tokens::Token;

/// The most features of one entry: their answers are the bits of a word.
const OUTPUTS: usize = 32;

/// The words of one feature, and its target.
type Asked<'a> = (&'a [Vec<Token>], u32);

/// The features of one entry, and their automaton.
pub(super) struct Matches {
    pub automaton: AhoCorasick,
    /// The feature of each label's bit.
    pub targets: Vec<u32>,
}

/// The words any of which a feature asks for; `None` where it asks for something else.
fn words(feature: &Feature) -> Option<&[Vec<Token>]> {
    match feature {
        Feature::Contains(word) => Some(std::slice::from_ref(word)),
        Feature::AnyOf(words) => Some(words),
        _ => None,
    }
}

/// Number of tokens of words.
fn size(words: &[Vec<Token>]) -> usize {
    words.iter().map(Vec::len).sum()
}

/// Words of a table for words of so many tokens: there are no more states than these and the first.
fn table_words(tokens: usize, classes: &Classes) -> usize {
    (tokens + 1).saturating_mul(classes.len() + 1)
}

/// Whether a feature asks for words that a table of at most `most` machine words holds.
pub(super) fn fits(feature: &Feature, classes: &Classes, most: usize) -> bool {
    words(feature).is_some_and(|words| table_words(size(words), classes) <= most)
}

/// Packs the features that [`fits`] says yes to, in their order, into automata whose tables have at most `most` words.
pub(super) fn pack<'a>(
    features: impl Iterator<Item = (&'a Feature, u32)>,
    classes: &Classes,
    most: usize,
) -> Vec<Matches> {
    let (mut groups, mut taken): (Vec<Vec<Asked>>, usize) = (Vec::new(), 0);
    for (feature, target) in features {
        let Some(words) = words(feature).filter(|_| fits(feature, classes, most)) else { continue };
        let room = table_words(taken + size(words), classes) <= most;
        match groups.last_mut().filter(|group| group.len() < OUTPUTS && room) {
            Some(group) => group.push((words, target)),
            None => {
                groups.push(vec![(words, target)]);
                taken = 0;
            }
        }
        taken += size(words);
    }
    groups.iter().map(|group| Matches::new(group, classes)).collect()
}

impl Matches {
    fn new(group: &[Asked], classes: &Classes) -> Self {
        let class = |&token: &Token| classes.of()[token as usize];
        let labelled = group.iter().enumerate().flat_map(|(bit, (words, _))| words.iter().map(move |word| (word, bit)));
        let labelled = labelled.map(|(word, bit)| (word.iter().map(class), 1 << bit));
        let automaton = AhoCorasick::labelled(labelled, classes.len()).expect("as many states as a small table has");
        Matches { automaton, targets: group.iter().map(|(_, target)| *target).collect() }
    }
}
