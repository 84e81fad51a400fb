//! From log-probs per token to those of sequences.

use super::LogProbKernel;
use crate::backend::Backend;
use crate::error::{Error, Result, expect_len};

/// The sum of the log-probs of each sequence, in f64: sequence s has rows `offsets[s]..offsets[s + 1]`; `offsets` is
/// `[sequences + 1]`, `sums` `[sequences]`. A sequence's sum does not depend on the others.
///
/// ```
/// use ebm_dpg::{backend::Cpu, log_prob::sequence_sums};
///
/// let mut sums = [0.0; 2];
/// sequence_sums(&Cpu, &[0, 1, 3], &[-1.0, -2.0, -0.5], &mut sums)?;
/// assert_eq!(sums, [-1.0, -2.5]);
/// # Ok::<(), ebm_dpg::Error>(())
/// ```
///
/// # Errors
/// Lengths that do not fit; on the host also offsets that fall or go beyond the rows. No sequences are a no-op.
pub fn sequence_sums<B: Backend + LogProbKernel>(
    backend: &B,
    offsets: B::View<'_, u64>,
    log_probs: B::View<'_, f32>,
    sums: B::ViewMut<'_, f64>,
) -> Result<()> {
    let sequences = B::view_mut_len(&sums);
    expect_len("offsets of the sequences", sequences + 1, B::view_len(&offsets))?;
    if sequences == 0 { Ok(()) } else { backend.sequence_sums(offsets, log_probs, sums) }
}

/// `Ok` where the offsets ascend and stay within the rows.
pub(crate) fn check_offsets(offsets: &[u64], rows: usize) -> Result<()> {
    let bad = |pair: &[u64]| pair[0] > pair[1] || pair[1] > rows as u64;
    match offsets.windows(2).position(bad) {
        None => Ok(()),
        Some(at) => {
            let got = format!("{}..{}", offsets[at], offsets[at + 1]);
            Err(Error::argument(format!("rows of sequence {at}"), format!("a range within {rows}"), got))
        }
    }
}
