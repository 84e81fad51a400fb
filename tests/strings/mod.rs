//! Whole spaces of short sequences.
#![allow(dead_code, reason = "each test program uses some of these")]

use ebm_dpg::tokens::{Space, Token};

/// Every member of the space.
pub fn all(space: Space) -> Vec<Vec<Token>> {
    let symbols: Vec<Token> = (0..space.vocab).filter(|&token| space.is_content(token)).collect();
    let (mut sequences, mut contents) = (Vec::new(), vec![Vec::new()]);
    for length in 0..=space.longest {
        sequences.extend(contents.iter().map(|content: &Vec<Token>| sequence(space, content)));
        if length < space.longest {
            let longer =
                |content: &Vec<Token>| symbols.iter().map(|&s| [&content[..], &[s]].concat()).collect::<Vec<_>>();
            contents = contents.iter().flat_map(longer).collect();
        }
    }
    sequences
}

/// A content as a member of the space: with EOS, or cut where it has the longest length.
pub fn sequence(space: Space, content: &[Token]) -> Vec<Token> {
    let mut sequence = content.to_vec();
    if sequence.len() < space.longest as usize {
        sequence.push(space.eos);
    }
    sequence
}

/// A sequence without its EOS.
pub fn content(space: Space, sequence: &[Token]) -> &[Token] {
    sequence.strip_suffix(&[space.eos]).unwrap_or(sequence)
}
