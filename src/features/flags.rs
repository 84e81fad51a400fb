//! The flag strings of the papers: `[Mvse]*[01]{7}`, such as "1001111" or "Mv1001111", over binary motifs.

use super::{Feature, FeatureSet};
use crate::error::{Error, Result};
use crate::tokens::{Space, Token};

impl FeatureSet {
    /// The features that a flag string of the papers names, in its order; token ids 0 and 1 are the bits.
    ///
    /// | flag | name | feature |
    /// | --- | --- | --- |
    /// | `M` | length | [`Feature::Length`] |
    /// | `v` | length^2 | [`Feature::LengthSquared`] |
    /// | `s` | substring | [`Feature::LongestCommonSubstring`] of the motif |
    /// | `e` | edit | [`Feature::EditDistance`] of the motif |
    /// | bit 1 | motif | contains the motif, or [`Feature::MultipleOf`] where `multiple` is given |
    /// | bit 2 | supermotif | contains the motif followed by a 0 |
    /// | bit 3 | submotif | contains the first half of the motif |
    /// | bit 4 | first bit | starts with 1 |
    /// | bit 5 | distractor 10101… | contains "10101" repeated, cut to the motif's length |
    /// | bit 6 | distractor 1001001… | contains "1001001" repeated, cut to the motif's length + 2 |
    /// | bit 7 | distractor 00110011… | contains "00110011" repeated, cut to half the motif's length |
    ///
    /// # Errors
    /// Another form of the flags, and what [`FeatureSet::with`] refuses: a pattern that is empty or does not fit the
    /// sequence is named.
    pub fn from_flags(space: Space, motif: &[Token], flags: &str, multiple: Option<u32>) -> Result<Self> {
        let bits = flags.trim_start_matches(['M', 'v', 's', 'e']);
        if bits.len() != 7 || bits.bytes().any(|bit| bit != b'0' && bit != b'1') {
            return Err(Error::argument("feature flags", "[Mvse]*[01]{7}, such as Mv1001111", format!("'{flags}'")));
        }
        let letters = flags[..flags.len() - bits.len()].chars().map(|letter| letter_feature(motif, letter));
        let bits = bits.bytes().enumerate().filter(|(_, bit)| *bit == b'1');
        let bits = bits.map(|(at, _)| bit_feature(motif, at, multiple));
        letters.chain(bits).try_fold(FeatureSet::new(space), |set, (name, feature)| set.with(name, feature))
    }
}

/// The feature of one of the letters `Mvse`.
fn letter_feature(motif: &[Token], letter: char) -> (String, Feature) {
    let (name, feature) = match letter {
        'M' => ("length", Feature::Length),
        'v' => ("length^2", Feature::LengthSquared),
        's' => ("substring", Feature::LongestCommonSubstring(motif.to_vec())),
        _ => ("edit", Feature::EditDistance(motif.to_vec())),
    };
    (name.to_string(), feature)
}

/// The feature of bit `at` of seven.
fn bit_feature(motif: &[Token], at: usize, multiple: Option<u32>) -> (String, Feature) {
    if let (0, Some(modulus)) = (at, multiple) {
        return (format!("multiple of {modulus}"), Feature::MultipleOf { modulus, zero: 0, one: 1 });
    }
    let distractor = |unit: &str, length| {
        let pattern = unit.bytes().map(|bit| Token::from(bit - b'0')).cycle().take(length).collect();
        (format!("distractor {unit}…"), Feature::Contains(pattern))
    };
    let (name, feature) = match at {
        0 => ("motif", Feature::Contains(motif.to_vec())),
        1 => ("supermotif", Feature::Contains([motif, &[0]].concat())),
        2 => ("submotif", Feature::Contains(motif[..motif.len() / 2].to_vec())),
        3 => ("first bit", Feature::StartsWith(vec![1])),
        4 => return distractor("10101", motif.len()),
        5 => return distractor("1001001", motif.len() + 2),
        _ => return distractor("00110011", motif.len() / 2),
    };
    (name.to_string(), feature)
}
