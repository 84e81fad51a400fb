//! The status word: the first fault that a kernel found in data on the device.
//!
//! A kernel stores `row << 8 | code` by an integer minimum, so that the word holds the first row at fault whatever the
//! order of blocks; `kernels/common/status.cuh` has the same codes.

use crate::error::Error;

/// No fault.
pub(super) const CLEAR: u64 = u64::MAX;

/// What a status word says.
pub(super) fn fault(word: u64) -> Option<Error> {
    if word == CLEAR {
        return None;
    }
    let row = word >> 8;
    Some(match word & 0xFF {
        1 => Error::argument(format!("row {row} of the batch"), "a length and tokens of its space", "others"),
        2 => Error::not_a_number("logits", format!("row {row}")),
        3 => Error::argument(format!("logits of row {row}"), "one above −∞", "−∞ for all tokens"),
        4 => Error::argument(format!("token of row {row}"), "one of the vocabulary", "another"),
        5 => Error::not_a_number("weight", format!("row {row}")),
        6 => Error::not_a_number("importance weight", format!("row {row}")),
        7 => Error::not_a_number("gradient", "its global norm"),
        8 => Error::not_a_number("log-prob of the policy", format!("row {row}")),
        9 => Error::argument(format!("ended prefix in row {row}"), "P and π above 0 and finite", "others"),
        code => Error::no_answer("GPU status", format!("unknown code {code} at row {row}")),
    })
}
