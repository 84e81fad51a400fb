//! Log-probs and gradients from hidden states: logits = hidden · headᵀ, a chunk of rows at a time, so that the whole
//! `[rows, vocab]` matrix is never stored.
//!
//! A gradient costs 6·N·H·V operations: the logits of a chunk are kept, become their gradient in place, and two more
//! products follow. Chunks are made of whole sequences, as a coefficient may need the log-prob of the whole
//! ([`Coefficient`]). Sequences whose coefficient is known to be 0 are left out before the first product: they cost nothing.

use crate::backend::{Backend, Element, Memory};
use crate::error::{Error, Result, expect_len};
use crate::gradient::{Coefficient, GradientKernel, Scores, Sequences, sequence_gradient};
use crate::log_prob::{LogProbKernel, Logit, SoftmaxOptions, check_offsets, log_prob_with, sequence_sums};
use crate::tokens::Token;

mod columns;
mod cpu;
mod gpu;
mod workspace;

use columns::Columns;
pub use workspace::Workspace;

/// The layer that makes logits of hidden states: logit v of a row is ⟨hidden, weight v⟩.
pub struct Head<'a, B: Memory, T: Logit> {
    /// H, the values of a hidden state.
    pub width: usize,
    /// V.
    pub vocab: usize,
    /// `[vocab, width]`.
    pub weight: B::View<'a, T>,
}

/// The rows of a batch: hidden states, and the tokens that followed.
pub struct Rows<'a, B: Memory, T: Logit> {
    /// `[rows, width]`.
    pub hidden: B::View<'a, T>,
    /// `[rows]`.
    pub tokens: B::View<'a, Token>,
}

/// What [`linear_gradient`] writes.
pub struct LinearGradient<'a, B: Memory> {
    /// log π of each token, `[rows]`; NaN in sequences that are left out or rows of no sequence.
    pub log_probs: B::ViewMut<'a, f32>,
    /// log π of each sequence, `[sequences]`; NaN where it is left out.
    pub log_pi: B::ViewMut<'a, f64>,
    /// The gradient with respect to the hidden states, `[rows, width]`: written, 0 where there is none.
    pub hidden: B::ViewMut<'a, f32>,
    /// The gradient with respect to the head's weight, `[vocab, width]`: added to, so that it may gather over batches.
    pub head: B::ViewMut<'a, f32>,
}

/// A chunk's gradient with respect to its logits, `[rows, vocab]`.
pub enum LogitGradient<'a, B: Memory, T: Logit> {
    /// In place of the logits, and room for what the products take, if they take 16 bits.
    Wide(B::View<'a, f32>, B::ViewMut<'a, T>),
    /// In the type of the products.
    Narrow(B::View<'a, T>),
}

/// The kernels of this stage, beside those of log-probs and gradients.
pub trait LinearKernel: LogProbKernel + GradientKernel {
    /// 16-bit values that [`LinearKernel::backward`] needs room for, for that many logits.
    fn narrow_len<T: Logit>(logits: usize) -> usize;

    /// A shorter borrow.
    fn reborrow<'a, T: Element>(view: &'a mut Self::ViewMut<'_, T>) -> Self::ViewMut<'a, T>;

    /// Copies a view to the host, where there is one to copy to; waits for the work that writes it.
    fn read<T: Element>(&self, from: Self::View<'_, T>, to: &mut [T]) -> Result<()>;

    /// Sets all values.
    fn fill<T: Element>(&self, value: T, to: Self::ViewMut<'_, T>) -> Result<()>;

    /// Row i of `to` becomes row `rows[i]` of `from`, of `width` values each.
    fn gather<T: Element>(
        &self,
        width: usize,
        rows: Self::View<'_, u64>,
        from: Self::View<'_, T>,
        to: Self::ViewMut<'_, T>,
    ) -> Result<()>;

    /// Row `rows[i]` of `to` becomes row i of `from`, of `width` values each; no two rows are the same.
    fn scatter<T: Element>(
        &self,
        width: usize,
        rows: Self::View<'_, u64>,
        from: Self::View<'_, T>,
        to: Self::ViewMut<'_, T>,
    ) -> Result<()>;

    /// `Ok` where host data in these rows are good; data on a device are validated by its kernels.
    fn check_rows<T: Logit>(
        &self,
        head: &Head<'_, Self, T>,
        rows: &Rows<'_, Self, T>,
        range: std::ops::Range<usize>,
    ) -> Result<()>;

    /// `Ok` where the host's head is good.
    fn check_head<T: Logit>(&self, head: &Head<'_, Self, T>) -> Result<()>;

    /// `logits` (`[rows, vocab]`) = `hidden` (`[rows, width]`) · headᵀ.
    fn logits<T: Logit>(
        &self,
        head: &Head<'_, Self, T>,
        hidden: Self::View<'_, T>,
        logits: Self::ViewMut<'_, f32>,
    ) -> Result<()>;

    /// The gradient of rows with given weights, in place of the logits or, where products take it in 16 bits, at once in
    /// `narrow`, which it then says; and each row's log-prob. `None`, and nothing is done, on a backend that is no faster by
    /// rows.
    fn gradient_by_rows<T: Logit>(
        &self,
        softmax: &SoftmaxOptions<'_, Self>,
        vocab: usize,
        rows: (Self::View<'_, Token>, Self::View<'_, f32>),
        logits: Self::ViewMut<'_, f32>,
        narrow: Self::ViewMut<'_, T>,
        log_probs: Self::ViewMut<'_, f32>,
    ) -> Result<Option<bool>>;

    /// `hidden_gradient` = `gradient` · head, and `head_gradient` += `gradient`ᵀ · `hidden`.
    fn backward<T: Logit>(
        &self,
        head: &Head<'_, Self, T>,
        gradient: LogitGradient<'_, Self, T>,
        hidden: Self::View<'_, T>,
        hidden_gradient: Self::ViewMut<'_, f32>,
        head_gradient: Self::ViewMut<'_, f32>,
    ) -> Result<()>;
}

/// The log-prob of each row's token, as [`log_prob_with`] gives it from the logits of the head, `[rows]`.
///
/// ```
/// use ebm_dpg::backend::Cpu;
/// use ebm_dpg::linear::{Head, Rows, Workspace, linear_log_prob};
/// use ebm_dpg::log_prob::SoftmaxOptions;
///
/// let head = Head { width: 1, vocab: 2, weight: &[0.0f32, 1.0][..] };
/// let rows = Rows { hidden: &[0.0f32, 3f32.ln()][..], tokens: &[0, 1][..] };
/// let mut workspace = Workspace::<Cpu, f32>::new(&Cpu, 1, 2, 1000)?;
/// let mut log_probs = [0.0; 2];
/// linear_log_prob(&Cpu, &SoftmaxOptions::default(), &head, &rows, &mut workspace, &mut log_probs)?;
/// assert!((log_probs[0] - 0.5f32.ln()).abs() < 1e-6 && (log_probs[1] - 0.75f32.ln()).abs() < 1e-6);
/// # Ok::<(), ebm_dpg::Error>(())
/// ```
///
/// # Errors
/// Lengths that do not fit; on the host also a token outside the vocabulary, a hidden state or weight that is not finite:
/// nothing is written then. No rows are a no-op.
pub fn linear_log_prob<B: Backend + LinearKernel, T: Logit>(
    backend: &B,
    softmax: &SoftmaxOptions<'_, B>,
    head: &Head<'_, B, T>,
    rows: &Rows<'_, B, T>,
    workspace: &mut Workspace<B, T>,
    mut log_probs: B::ViewMut<'_, f32>,
) -> Result<()> {
    let count = check(softmax, head, rows, workspace)?;
    expect_len("log-probs", count, B::view_mut_len(&log_probs))?;
    backend.check_head(head)?;
    backend.check_rows(head, rows, 0..count)?;
    for first in (0..count).step_by(workspace.rows) {
        workspace.chunk.clear();
        workspace.chunk.rows.extend((first..count.min(first + workspace.rows)).map(|row| row as u64));
        let len = workspace.load(backend, head, rows)?;
        let (logits, tokens) = (B::view(&workspace.logits, len * head.vocab), B::view(&workspace.tokens, len));
        let found = B::view_mut(&mut workspace.log_probs, len);
        log_prob_with(backend, softmax, head.vocab, logits, tokens, found)?;
        let (to, found) = (B::view(&workspace.row_numbers, len), B::view(&workspace.log_probs, len));
        backend.scatter(1, to, found, B::reborrow(&mut log_probs))?;
    }
    Ok(())
}

/// The log-probs of all sequences and the gradient of Σ_s a_s log π(x_s) with respect to hidden states and head, with the
/// [`Coefficient`]s a. Sequence s has rows `offsets[s]..offsets[s + 1]`; `offsets` are the host's on every backend.
///
/// A sequence whose coefficient is 0 whatever its log π (weight 0; outside of p's support) is left out: to know them, a
/// device's column of weights or log p is read back once a call, its only wait. The head's gradient is summed in f32 over
/// the rows in order; on the CPU its bits depend on neither workspace nor threads, on a GPU on the workspace.
///
/// # Errors
/// As [`linear_log_prob`]; offsets that fall or go beyond the rows, a workspace too small for one sequence. A coefficient
/// that is not finite, or products beyond f32, are found while chunks are worked on: the outputs are then those of the
/// chunks before.
#[expect(clippy::too_many_arguments, reason = "the inputs of a stage, one by one")]
pub fn linear_gradient<B: Backend + LinearKernel, T: Logit>(
    backend: &B,
    softmax: &SoftmaxOptions<'_, B>,
    head: &Head<'_, B, T>,
    rows: &Rows<'_, B, T>,
    offsets: &[u64],
    coefficient: &Coefficient<'_, B>,
    workspace: &mut Workspace<B, T>,
    mut out: LinearGradient<'_, B>,
) -> Result<()> {
    let (count, sequences) = (check(softmax, head, rows, workspace)?, coefficient.count());
    expect_len("offsets of the sequences", sequences + 1, offsets.len())?;
    check_offsets(offsets, count)?;
    coefficient.check()?;
    expect_len("log-probs", count, B::view_mut_len(&out.log_probs))?;
    expect_len("log-probs of the sequences", sequences, B::view_mut_len(&out.log_pi))?;
    expect_len("gradient of the hidden states", count * head.width, B::view_mut_len(&out.hidden))?;
    expect_len("gradient of the head", head.vocab * head.width, B::view_mut_len(&out.head))?;
    let columns = Columns::read(backend, coefficient)?;
    let range = |s: usize| offsets[s] as usize..offsets[s + 1] as usize;
    let kept = |&s: &usize| !columns.is_zero(s) && !range(s).is_empty();
    for s in (0..sequences).filter(kept) {
        workspace.check_room(s, range(s).len())?;
        backend.check_rows(head, rows, range(s))?;
    }
    backend.check_head(head)?;

    backend.fill(f32::NAN, B::reborrow(&mut out.log_probs))?;
    backend.fill(f64::NAN, B::reborrow(&mut out.log_pi))?;
    backend.fill(0.0, B::reborrow(&mut out.hidden))?;
    workspace.chunk.clear();
    for s in (0..sequences).filter(kept) {
        if workspace.chunk.rows.len() + range(s).len() > workspace.rows {
            run_chunk(backend, softmax, head, rows, &columns, workspace, &mut out)?;
        }
        workspace.chunk.push(s, range(s));
    }
    run_chunk(backend, softmax, head, rows, &columns, workspace, &mut out)
}

/// Scores the chunk's sequences, and adds their gradients; the chunk is empty afterwards.
fn run_chunk<B: Backend + LinearKernel, T: Logit>(
    backend: &B,
    softmax: &SoftmaxOptions<'_, B>,
    head: &Head<'_, B, T>,
    rows: &Rows<'_, B, T>,
    columns: &Columns,
    workspace: &mut Workspace<B, T>,
    out: &mut LinearGradient<'_, B>,
) -> Result<()> {
    if workspace.chunk.rows.is_empty() {
        return Ok(());
    }
    let len = workspace.load(backend, head, rows)?;
    let sequences = workspace.load_columns(backend, columns)?;
    let narrowed = gradient_of_logits(backend, softmax, head.vocab, columns, workspace, len, sequences)?;
    let narrow = B::narrow_len::<T>(len * head.vocab);
    let gradient = if narrowed {
        LogitGradient::Narrow(B::view(&workspace.narrow, narrow))
    } else {
        let wide = B::view(&workspace.logits, len * head.vocab);
        LogitGradient::Wide(wide, B::view_mut(&mut workspace.narrow, narrow))
    };
    backend.backward(
        head,
        gradient,
        B::view(&workspace.hidden, len * head.width),
        B::view_mut(&mut workspace.hidden_gradient, len * head.width),
        B::reborrow(&mut out.head),
    )?;
    let to = B::view(&workspace.row_numbers, len);
    backend.scatter(1, to, B::view(&workspace.log_probs, len), B::reborrow(&mut out.log_probs))?;
    let gradient = B::view(&workspace.hidden_gradient, len * head.width);
    backend.scatter(head.width, to, gradient, B::reborrow(&mut out.hidden))?;
    let to = B::view(&workspace.sequence_numbers, sequences);
    backend.scatter(1, to, B::view(&workspace.log_pi, sequences), B::reborrow(&mut out.log_pi))?;
    workspace.chunk.clear();
    Ok(())
}

/// Log-probs of the chunk's rows and sequences, and the gradient with respect to its logits: whether it is narrowed.
fn gradient_of_logits<B: Backend + LinearKernel, T: Logit>(
    backend: &B,
    softmax: &SoftmaxOptions<'_, B>,
    vocab: usize,
    columns: &Columns,
    workspace: &mut Workspace<B, T>,
    len: usize,
    sequences: usize,
) -> Result<bool> {
    if columns.are_given() {
        let rows = (B::view(&workspace.tokens, len), B::view(&workspace.row_weights, len));
        let logits = B::view_mut(&mut workspace.logits, len * vocab);
        let narrow = B::view_mut(&mut workspace.narrow, B::narrow_len::<T>(len * vocab));
        let log_probs = B::view_mut(&mut workspace.log_probs, len);
        if let Some(narrowed) = backend.gradient_by_rows(softmax, vocab, rows, logits, narrow, log_probs)? {
            let (offsets, log_probs) = (B::view(&workspace.offsets, sequences + 1), B::view(&workspace.log_probs, len));
            sequence_sums(backend, offsets, log_probs, B::view_mut(&mut workspace.log_pi, sequences))?;
            return Ok(narrowed);
        }
    }
    let given = Sequences {
        offsets: B::view(&workspace.offsets, sequences + 1),
        coefficient: columns.of_chunk::<B>(&workspace.weights, &workspace.log_p, &workspace.log_q, sequences),
    };
    let scores = Scores {
        log_probs: B::view_mut(&mut workspace.log_probs, len),
        log_pi: B::view_mut(&mut workspace.log_pi, sequences),
    };
    let (tokens, logits) = (B::view(&workspace.tokens, len), B::view_mut(&mut workspace.logits, len * vocab));
    sequence_gradient(backend, softmax, vocab, &given, tokens, logits, scores)?;
    Ok(false)
}

/// The checks of shapes; returns the number of rows.
fn check<B: Memory, T: Logit>(
    softmax: &SoftmaxOptions<'_, B>,
    head: &Head<'_, B, T>,
    rows: &Rows<'_, B, T>,
    workspace: &Workspace<B, T>,
) -> Result<usize> {
    let count = B::view_len(&rows.tokens);
    if softmax.stride.is_some() {
        return Err(Error::argument("stride of the logits", "none, as they are made here", "one"));
    }
    softmax.check(head.vocab, 0, 0)?;
    expect_len("weight of the head", head.vocab.saturating_mul(head.width), B::view_len(&head.weight))?;
    expect_len("hidden states", count.saturating_mul(head.width), B::view_len(&rows.hidden))?;
    let (want, got) = ([head.width, head.vocab], [workspace.width, workspace.vocab]);
    if want != got {
        return Err(Error::argument("workspace", format!("one for [H, V] = {want:?}"), format!("{got:?}")));
    }
    Ok(count)
}
