//! One feature: a small value that says what it measures; how it is computed is the compiler's business.

use super::{Custom, text};
use crate::error::{Error, Result};
use crate::tokens::{Space, Token};

/// The longest pattern of [`Feature::EditDistance`]: its bit vectors live on the stack of the kernels.
pub const LONGEST_EDIT_PATTERN: usize = 2048;

/// The longest pattern of [`Feature::Motif`]: its automaton's states are sets of so many matched prefixes.
pub const LONGEST_MOTIF: usize = 128;

/// The largest count of [`Feature::Count`] over text: its automaton keeps the count in its states.
pub const LARGEST_TEXT_COUNT: u32 = 1 << 16;

/// The largest modulus of [`Feature::MultipleOf`]: its automaton has one state per residue.
pub const LARGEST_MODULUS: u32 = 1 << 16;

/// One feature of a sequence's content (its tokens without EOS). Values are in [0, 1].
///
/// Features combine: `a & b`, `a | b`, `!a` and [`Feature::at_least`]. What is computed by a finite automaton stays one
/// under all of these, so that exact inference and guided proposals know it; anything else is computed from its parts.
///
/// ```
/// use ebm_dpg::features::Feature;
///
/// let fluent = Feature::Regex(r"^\p{Lu}.*[.!?]$".into()) & !Feature::AnyText(vec!["damn".into()]);
/// let close = Feature::EditDistance(vec![1, 0, 1, 1]).at_least(0.75);
/// assert!(fluent.is_automaton() && close.is_automaton());
/// assert!(!Feature::DistinctFraction.is_automaton());
/// ```
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Feature {
    /// 1 where the pattern occurs anywhere.
    Contains(Vec<Token>),
    /// 1 where the pattern occurs anywhere; `None` stands for any one content token. At most [`LONGEST_MOTIF`] tokens.
    Motif(Vec<Option<Token>>),
    /// 1 where the content begins with the pattern: a prefix.
    StartsWith(Vec<Token>),
    /// 1 where the content ends with the pattern: a suffix.
    EndsWith(Vec<Token>),
    /// 1 where the content is the pattern.
    Equals(Vec<Token>),
    /// 1 where any of the words, each a string of tokens, occurs anywhere.
    AnyOf(Vec<Vec<Token>>),
    /// 1 where any of the texts occurs anywhere in the text of the tokens, whatever the boundaries between tokens. Needs
    /// [`FeatureSet::spelled`](super::FeatureSet::spelled).
    AnyText(Vec<String>),
    /// 1 where the regular expression, in the syntax of the `regex` crate, matches anywhere in the text of the tokens,
    /// whatever the boundaries between tokens; `^` and `$` are the text's ends. `\b` must be ASCII: `(?-u:\b)`. Needs
    /// [`FeatureSet::spelled`](super::FeatureSet::spelled).
    Regex(String),
    /// 1 where the content, read as a binary number of the tokens `zero` and `one` (most significant first), is a
    /// positive multiple of `modulus`; 0 where any other token occurs.
    MultipleOf {
        /// The divisor, 1 to [`LARGEST_MODULUS`].
        modulus: u32,
        /// The token of digit 0.
        zero: Token,
        /// The token of digit 1.
        one: Token,
    },
    /// Places at which an occurrence ends, overlapping ones too, over `most`; 1 where there are more. What occurs is a
    /// [`Feature::Contains`], [`Feature::Motif`] or [`Feature::AnyOf`], and places are between tokens; or a
    /// [`Feature::AnyText`] or [`Feature::Regex`], and places are between bytes of the text, whatever the boundaries between
    /// tokens.
    ///
    /// However many occurrences end at a place, it counts once: `a+` in "aaa" counts 3, and so does `a`, where searching
    /// on behind each match would find 1 and 3. Whole runs are counted by their ends: `\w+(?-u:)` counts words. An
    /// expression that matches the empty text is an error.
    Count {
        /// What is counted.
        of: Box<Feature>,
        /// The count that has the value 1, from 1 to the longest length, or to [`LARGEST_TEXT_COUNT`] over text.
        most: u32,
    },
    /// Tokens (EOS included) over the longest length; a cut sequence counts its `longest` tokens, so it has 1.
    Length,
    /// The square of [`Feature::Length`].
    LengthSquared,
    /// Length of the longest common substring with the pattern, over the pattern's length.
    LongestCommonSubstring(Vec<Token>),
    /// 1 − (smallest edit distance of the pattern to any substring) / (the pattern's length); the empty substring
    /// counts, so the value is never negative. Patterns hold at most [`LONGEST_EDIT_PATTERN`] tokens.
    EditDistance(Vec<Token>),
    /// Number of different tokens over number of tokens; 0 where there are none.
    DistinctFraction,
    /// 1 where a feature is at least `value`, in (0, 1].
    AtLeast {
        /// What is compared.
        of: Box<Feature>,
        /// The threshold.
        value: f32,
    },
    /// 1 minus a feature: not.
    Not(Box<Feature>),
    /// The least of some features: and.
    All(Vec<Feature>),
    /// The largest of some features: or.
    Any(Vec<Feature>),
    /// What a closure on the host says.
    #[serde(skip)]
    Custom(Custom),
}

impl Feature {
    /// 1 where this feature is at least `value`.
    pub fn at_least(self, value: f32) -> Feature {
        Feature::AtLeast { of: Box::new(self), value }
    }

    /// How often this pattern occurs, over `most`: [`Feature::Count`].
    pub fn count(self, most: u32) -> Feature {
        Feature::Count { of: Box::new(self), most }
    }

    /// Whether a finite automaton that [`FeatureSet::automaton`](super::FeatureSet::automaton) can build computes this
    /// feature.
    pub fn is_automaton(&self) -> bool {
        match self {
            // A longest common substring of k is one of the pattern's substrings; a distance of d an automaton of columns.
            Feature::AtLeast { of, .. } => of.is_automaton() || of.pattern().is_some(),
            Feature::LongestCommonSubstring(_) | Feature::EditDistance(_) => false,
            Feature::DistinctFraction | Feature::Custom(_) => false,
            _ => self.parts().iter().all(Feature::is_automaton),
        }
    }

    /// Whether the value can only be 0 or 1.
    pub fn is_binary(&self) -> bool {
        match self {
            Feature::Not(of) => of.is_binary(),
            Feature::All(parts) | Feature::Any(parts) => parts.iter().all(Feature::is_binary),
            Feature::Count { most, .. } => *most == 1,
            Feature::Length | Feature::LengthSquared | Feature::DistinctFraction | Feature::Custom(_) => false,
            Feature::LongestCommonSubstring(_) | Feature::EditDistance(_) => false,
            _ => true,
        }
    }

    /// The pattern, where the feature has one and only one.
    pub fn pattern(&self) -> Option<&[Token]> {
        match self {
            Feature::Contains(pattern)
            | Feature::StartsWith(pattern)
            | Feature::EndsWith(pattern)
            | Feature::Equals(pattern)
            | Feature::LongestCommonSubstring(pattern)
            | Feature::EditDistance(pattern) => Some(pattern),
            _ => None,
        }
    }

    /// The features that this one is made of.
    pub fn parts(&self) -> &[Feature] {
        match self {
            Feature::Not(of) | Feature::AtLeast { of, .. } | Feature::Count { of, .. } => std::slice::from_ref(of),
            Feature::All(parts) | Feature::Any(parts) => parts,
            _ => &[],
        }
    }

    /// This feature and all that it is made of, down to the last; what is counted over text is no feature of its own.
    pub(super) fn walk<'a>(&'a self, visit: &mut impl FnMut(&'a Feature)) {
        visit(self);
        if !self.is_text() {
            self.parts().iter().for_each(|part| part.walk(visit));
        }
    }

    /// Whether one automaton over the text of the tokens computes it.
    pub(super) fn is_text(&self) -> bool {
        match self {
            Feature::AnyText(_) | Feature::Regex(_) => true,
            Feature::Count { of, .. } => matches!(**of, Feature::AnyText(_) | Feature::Regex(_)),
            _ => false,
        }
    }

    /// The tokens that this feature itself, its parts aside, tells apart from all others.
    pub(super) fn named_tokens(&self) -> Vec<Token> {
        match self {
            Feature::MultipleOf { zero, one, .. } => vec![*zero, *one],
            Feature::Motif(pattern) => pattern.iter().copied().flatten().collect(),
            Feature::AnyOf(words) => words.concat(),
            _ => self.pattern().unwrap_or_default().to_vec(),
        }
    }

    /// What kind of feature this is, for errors and reports.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Feature::Contains(_) => "contains",
            Feature::Motif(_) => "motif",
            Feature::StartsWith(_) => "starts with",
            Feature::EndsWith(_) => "ends with",
            Feature::Equals(_) => "equals",
            Feature::AnyOf(_) => "any of",
            Feature::AnyText(_) => "any text",
            Feature::Regex(_) => "regex",
            Feature::MultipleOf { .. } => "multiple of",
            Feature::Count { .. } => "count",
            Feature::Length => "length",
            Feature::LengthSquared => "length squared",
            Feature::LongestCommonSubstring(_) => "longest common substring",
            Feature::EditDistance(_) => "edit distance",
            Feature::DistinctFraction => "distinct fraction",
            Feature::AtLeast { .. } => "at least",
            Feature::Not(_) => "not",
            Feature::All(_) => "all",
            Feature::Any(_) => "any",
            Feature::Custom(_) => "custom",
        }
    }

    /// `Ok` where the feature and its parts make sense over `space`; `name` is for the error.
    pub(super) fn check(&self, space: &Space, name: &str) -> Result<()> {
        self.check_shape(space, name)?;
        if let Some(&token) = self.named_tokens().iter().find(|&&token| !space.is_content(token)) {
            let expected = format!("content tokens of a vocabulary of {}", space.vocab);
            return Err(Error::argument(format!("tokens of feature '{name}'"), expected, token));
        }
        self.parts().iter().try_for_each(|part| part.check(space, name))
    }

    fn check_shape(&self, space: &Space, name: &str) -> Result<()> {
        let longest = space.longest as usize;
        let length = |len: usize, most: usize| {
            let what = format!("pattern of feature '{name}'");
            let most = longest.min(most);
            if (1..=most).contains(&len) {
                Ok(())
            } else {
                Err(Error::argument(what, format!("1 to {most} tokens"), len))
            }
        };
        let list = |len: usize, what: &str| match len {
            0 => Err(Error::argument(format!("{what} of feature '{name}'"), "at least one", 0)),
            _ => Ok(()),
        };
        match self {
            Feature::EditDistance(pattern) => length(pattern.len(), LONGEST_EDIT_PATTERN),
            Feature::Motif(pattern) => length(pattern.len(), LONGEST_MOTIF),
            Feature::AnyOf(words) => {
                list(words.len(), "words")?;
                words.iter().try_for_each(|word| length(word.len(), longest))
            }
            Feature::AnyText(words) => {
                list(words.len(), "words")?;
                match words.iter().position(String::is_empty) {
                    Some(at) => Err(Error::argument(format!("word {at} of feature '{name}'"), "a text", "nothing")),
                    None => Ok(()),
                }
            }
            Feature::Regex(pattern) => text::parse(pattern, name).map(drop),
            Feature::All(parts) | Feature::Any(parts) => list(parts.len(), "parts"),
            Feature::MultipleOf { modulus, zero, one } => check_multiple(*modulus, *zero, *one, name),
            Feature::Count { of, most } => check_count(of, *most, space, name),
            Feature::AtLeast { value, .. } if !(*value > 0.0 && *value <= 1.0) => {
                Err(Error::argument(format!("threshold of feature '{name}'"), "above 0 and at most 1", value))
            }
            _ => self.pattern().map_or(Ok(()), |pattern| length(pattern.len(), longest)),
        }
    }
}

fn check_multiple(modulus: u32, zero: Token, one: Token, name: &str) -> Result<()> {
    if modulus == 0 || modulus > LARGEST_MODULUS {
        let what = format!("modulus of feature '{name}'");
        return Err(Error::argument(what, format!("1 to {LARGEST_MODULUS}"), modulus));
    }
    if zero == one {
        return Err(Error::argument(format!("digits of feature '{name}'"), "two different tokens", zero));
    }
    Ok(())
}

fn check_count(of: &Feature, most: u32, space: &Space, name: &str) -> Result<()> {
    let largest = if of.is_text() { LARGEST_TEXT_COUNT } else { space.longest };
    if !(1..=largest).contains(&most) {
        return Err(Error::argument(format!("count of feature '{name}'"), format!("1 to {largest}"), most));
    }
    let what = || format!("what feature '{name}' counts");
    match of {
        Feature::Contains(_) | Feature::Motif(_) | Feature::AnyOf(_) | Feature::AnyText(_) => Ok(()),
        Feature::Regex(pattern) if text::parse(pattern, name)?.properties().minimum_len() == Some(0) => {
            Err(Error::argument(what(), "an expression that does not match the empty text", format!("'{pattern}'")))
        }
        Feature::Regex(_) => Ok(()),
        other => Err(Error::argument(what(), "contains, motif, any of, any text or regex", other.kind())),
    }
}

impl std::ops::BitAnd for Feature {
    type Output = Feature;

    fn bitand(self, other: Feature) -> Feature {
        match self {
            Feature::All(mut parts) => {
                parts.push(other);
                Feature::All(parts)
            }
            first => Feature::All(vec![first, other]),
        }
    }
}

impl std::ops::BitOr for Feature {
    type Output = Feature;

    fn bitor(self, other: Feature) -> Feature {
        match self {
            Feature::Any(mut parts) => {
                parts.push(other);
                Feature::Any(parts)
            }
            first => Feature::Any(vec![first, other]),
        }
    }
}

impl std::ops::Not for Feature {
    type Output = Feature;

    fn not(self) -> Feature {
        match self {
            Feature::Not(of) => *of,
            other => Feature::Not(Box::new(other)),
        }
    }
}
