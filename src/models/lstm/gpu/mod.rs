//! The LSTM on a GPU: whole sequences sampled, scored and back-propagated by persistent kernels.
//!
//! Values do not depend on the batch around a sequence. In split precision, the default, a weight or state is the sum
//! of two 16-bit numbers, and log-probs agree with f64 to 1e-4 over 128 tokens.

use std::path::Path;

use self::forward::{Pass, SAMPLE, SCORE};
use self::layout::Size;
use super::{Lstm, LstmBackend, LstmShape, description};
use crate::adam::{AdamKernel, AdamOptions, AdamState, GradientNorms};
use crate::backend::Memory;
use crate::backend::gpu::{Gpu, GpuBuffer, GpuView, GpuViewMut, Grid, Kernel, Launcher, Limits, arguments};
use crate::error::{Error, Result, expect_len};
use crate::exact::Guide;
use crate::features::{DrawnRows, FeatureOutput};
use crate::models::{Coefficients, Policy, Sampler, Scorer, check_batch, check_guided, check_sample};
use crate::models::{OptimizerState, PolicyState};
use crate::rng::Draw;
use crate::tokens::{Batch, Space};

mod backward;
mod forward;
mod layout;
mod weights;

/// How a GPU multiplies states by weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Precision {
    /// Both as sums of two fp16 numbers, three products: within f32's own rounding.
    #[default]
    Split,
    /// Both as one fp16 number: a third of the work, log-probs of the tests' sequences of 6 tokens within 5e-3.
    Half,
}

/// An [`Lstm`] on a GPU.
pub struct GpuLstm<L: Launcher> {
    gpu: Gpu<L>,
    space: Space,
    shape: LstmShape,
    size: Size,
    /// What samples are drawn with; scores and gradients are always split.
    sampling: Precision,
    parameters: GpuBuffer<L, f32>,
    packed: GpuBuffer<L, u32>,
    gradient: GpuBuffer<L, f32>,
    adam: AdamState<Gpu<L>>,
    /// Cells of blocks whose shared memory does not hold them.
    cells: Option<GpuBuffer<L, f32>>,
    training: Option<backward::Training<L>>,
}

impl<L: Launcher> GpuLstm<L> {
    /// A fresh network with the parameters of [`Lstm::new`].
    ///
    /// # Errors
    /// As [`Lstm::new`]; device memory that cannot be had.
    pub fn new(gpu: &Gpu<L>, space: Space, shape: LstmShape, seed: u64) -> Result<Self> {
        Lstm::new(space, shape, seed)?.to_gpu(gpu)
    }

    /// Reads what [`Policy::save`] wrote, on either backend.
    ///
    /// # Errors
    /// As [`Lstm::load`]; device memory that cannot be had.
    pub fn load(gpu: &Gpu<L>, path: &Path) -> Result<Self> {
        Lstm::load(path)?.to_gpu(gpu)
    }

    /// The precision of samples. What is drawn, and its log q, are exactly those of the precision chosen; with
    /// [`Precision::Half`] the model's own log-prob of a draw differs from [`Scorer::score`] by its rounding.
    pub fn sampling(self, precision: Precision) -> Self {
        GpuLstm { sampling: precision, ..self }
    }

    fn limits(&self) -> Limits {
        self.gpu.launcher().limits()
    }

    /// The network's size.
    pub fn shape(&self) -> LstmShape {
        self.shape
    }

    /// The same network on the CPU.
    ///
    /// # Errors
    /// What the device reports.
    pub fn to_cpu(&self) -> Result<Lstm> {
        let flat = self.read(&self.parameters)?;
        let tensors = self.size.tensors(self.shape.hidden);
        let values = tensors.iter().map(|(name, at)| (&**name, at.iter().map(|&at| flat[at]).collect::<Vec<_>>()));
        Lstm::from_tensors(self.space, self.shape, values)
    }

    /// The stored gradient, named as [`Lstm::tensors`].
    ///
    /// # Errors
    /// What the device reports.
    pub fn gradients(&self) -> Result<Vec<(String, Vec<f32>)>> {
        let flat = self.read(&self.gradient)?;
        let tensors = self.size.tensors(self.shape.hidden).into_iter();
        Ok(tensors.map(|(name, at)| (name, at.iter().map(|&at| flat[at]).collect())).collect())
    }

    fn read(&self, buffer: &GpuBuffer<L, f32>) -> Result<Vec<f32>> {
        let mut flat = vec![0.0; self.size.parameters()];
        self.gpu.download(buffer, &mut flat)?;
        Ok(flat)
    }

    fn zero(gpu: &Gpu<L>, space: Space, shape: LstmShape) -> Result<Self> {
        let size = Size::new(space, shape);
        Ok(GpuLstm {
            gpu: gpu.clone(),
            space,
            shape,
            size,
            sampling: Precision::Split,
            parameters: gpu.zeros(size.parameters(), "LSTM parameters")?,
            packed: gpu.zeros(size.packed_words(), "packed LSTM weights")?,
            gradient: gpu.zeros(size.parameters(), "LSTM gradient")?,
            adam: AdamState::new(gpu, size.parameters())?,
            cells: None,
            training: None,
        })
    }

    /// Makes the packed weights anew from the parameters.
    fn pack(&mut self) -> Result<()> {
        let Size { layers, units, vocab, outputs } = self.size;
        let for_warpgroups = u32::from(self.limits().warpgroups);
        // SAFETY: parameters and packed weights have the lengths that the size gives.
        unsafe {
            // lstm_pack(const float* parameters, uint4* packed, uint32_t layers, uint32_t units, uint32_t vocab,
            //   uint32_t outputs, uint32_t for_warpgroups)
            let arguments = arguments![&self.parameters, &self.packed, layers, units, vocab, outputs, for_warpgroups];
            self.gpu.launch(Kernel::LstmPack, Grid::over(self.size.packed_words() / 4, 256), arguments)
        }
    }

    fn ascend(&mut self, adam: &AdamOptions, rate: Option<GpuView<'_, f32>>) -> Result<()> {
        let len = self.size.parameters();
        let (gradient, parameters) =
            (Gpu::<L>::view(&self.gradient, len), Gpu::<L>::view_mut(&mut self.parameters, len));
        self.gpu.adam(adam, rate, &mut self.adam, gradient, parameters)?;
        self.pack()
    }

    /// The address of scratch memory for `len` cells.
    fn scratch(&mut self, len: usize) -> Result<u64> {
        if self.cells.as_ref().is_none_or(|cells| Gpu::<L>::len(cells) < len) {
            self.cells = Some(self.gpu.zeros(len, "LSTM cells")?);
        }
        Ok(self.cells.as_ref().expect("just made").address())
    }

    /// [`Sampler::sample`] of checked outputs, and φ of what is drawn where `drawn` says how.
    fn draw_rows(
        &mut self,
        draw: Draw,
        guide: Option<&Guide<Gpu<L>>>,
        batch: &mut Batch<Gpu<L>>,
        log_q: GpuViewMut<'_, f64>,
        log_model: GpuViewMut<'_, f64>,
        drawn: Option<DrawnRows>,
    ) -> Result<()> {
        batch.rows = batch.capacity();
        if batch.rows == 0 {
            return Ok(());
        }
        let mut argument = self.forward_argument(SAMPLE, batch.rows);
        argument.tokens = batch.tokens.address();
        argument.lengths = batch.lengths.address();
        argument.given = batch.given.address();
        argument.log_q = log_q.address();
        argument.log_model = log_model.address();
        argument.seed = draw.seed;
        argument.first = draw.first;
        argument.purpose = draw.purpose as u32;
        argument.drawn = drawn.unwrap_or(bytemuck::Zeroable::zeroed());
        set_guide(&mut argument, guide);
        // SAFETY: the batch has `rows` rows in the model's space, the outputs as many values, φ as many rows of the table's.
        unsafe { self.launch_forward(argument, batch.rows, Pass::Read(self.sampling)) }
    }

    fn score_rows(
        &mut self,
        guide: Option<&Guide<Gpu<L>>>,
        batch: &Batch<Gpu<L>>,
        log_probs: &GpuViewMut<'_, f64>,
    ) -> Result<()> {
        if batch.rows == 0 {
            return Ok(());
        }
        let mut argument = self.forward_argument(SCORE, batch.rows);
        argument.tokens = batch.tokens.address();
        argument.lengths = batch.lengths.address();
        argument.given = batch.given.address();
        argument.log_q = log_probs.address();
        set_guide(&mut argument, guide);
        // SAFETY: the batch has `rows` rows in the model's space, the output as many values.
        unsafe { self.launch_forward(argument, batch.rows, Pass::Read(Precision::Split)) }
    }
}

fn set_guide<L: Launcher>(argument: &mut forward::Forward, guide: Option<&Guide<Gpu<L>>>) {
    if let Some(guide) = guide {
        argument.states = guide.states as u32;
        argument.classes = guide.width as u32;
        argument.class_of = guide.classes.address();
        argument.next = guide.next.address();
        argument.log_h = guide.log_h.address();
        argument.log_end = guide.log_end.address();
    }
}

impl Lstm {
    /// The same network on a GPU, its optimiser fresh.
    ///
    /// # Errors
    /// Device memory that cannot be had.
    pub fn to_gpu<L: Launcher>(&self, gpu: &Gpu<L>) -> Result<GpuLstm<L>> {
        let mut lstm = GpuLstm::zero(gpu, self.network.space, self.shape)?;
        let mut flat = vec![0.0; lstm.size.parameters()];
        for ((name, at), (own, _, values)) in lstm.size.tensors(self.shape.hidden).into_iter().zip(self.tensors()) {
            debug_assert_eq!(name, own);
            at.into_iter().zip(values).for_each(|(at, value)| flat[at] = value);
        }
        gpu.upload(&flat, &mut lstm.parameters)?;
        lstm.pack()?;
        Ok(lstm)
    }
}

impl<L: Launcher> LstmBackend for Gpu<L> {
    type Lstm = GpuLstm<L>;

    fn lstm(&self, lstm: Lstm) -> Result<GpuLstm<L>> {
        lstm.to_gpu(self)
    }
}

impl<L: Launcher> Scorer<Gpu<L>> for GpuLstm<L> {
    fn space(&self) -> Space {
        self.space
    }

    fn score(&mut self, batch: &Batch<Gpu<L>>, log_probs: GpuViewMut<'_, f64>) -> Result<()> {
        check_batch(self.space, batch.space)?;
        expect_len("log-probs", batch.rows, log_probs.len())?;
        self.score_rows(None, batch, &log_probs)
    }
}

impl<L: Launcher> Sampler<Gpu<L>> for GpuLstm<L> {
    fn sample(
        &mut self,
        draw: Draw,
        guide: Option<&Guide<Gpu<L>>>,
        batch: &mut Batch<Gpu<L>>,
        log_q: GpuViewMut<'_, f64>,
        log_model: GpuViewMut<'_, f64>,
    ) -> Result<()> {
        check_sample(self.space, guide, batch, log_q.len(), log_model.len())?;
        self.draw_rows(draw, guide, batch, log_q, log_model, None)
    }

    /// φ comes from the launch that draws, whatever the kinds of features: a block takes the table through its rows before
    /// it ends. Closures, and tables whose states go beyond a block's shared memory, have a pass of their own.
    fn sample_features(
        &mut self,
        draw: Draw,
        guide: Option<&Guide<Gpu<L>>>,
        batch: &mut Batch<Gpu<L>>,
        log_q: GpuViewMut<'_, f64>,
        log_model: GpuViewMut<'_, f64>,
        features: FeatureOutput<'_, Gpu<L>>,
    ) -> Result<()> {
        check_sample(self.space, guide, batch, log_q.len(), log_model.len())?;
        features.check(self.space, batch.capacity())?;
        let drawn = self.drawn_rows(&features, batch.capacity())?;
        self.draw_rows(draw, guide, batch, log_q, log_model, drawn)?;
        if drawn.is_some() { Ok(()) } else { features.evaluate(batch) }
    }

    fn score_guided(&mut self, guide: &Guide<Gpu<L>>, batch: &Batch<Gpu<L>>, log_q: GpuViewMut<'_, f64>) -> Result<()> {
        check_guided(self.space, guide, batch, log_q.len())?;
        self.score_rows(Some(guide), batch, &log_q)
    }
}

impl<L: Launcher> Policy<Gpu<L>> for GpuLstm<L> {
    fn gradient(
        &mut self,
        batch: &Batch<Gpu<L>>,
        coefficients: &Coefficients<'_, Gpu<L>>,
        log_probs: GpuViewMut<'_, f64>,
    ) -> Result<()> {
        check_batch(self.space, batch.space)?;
        coefficients.check(batch.rows, log_probs.len())?;
        if batch.rows == 0 {
            self.gradient = self.gpu.zeros(self.size.parameters(), "LSTM gradient")?;
            return Ok(());
        }
        self.backpropagate(batch, coefficients, log_probs)
    }

    fn update(&mut self, adam: &AdamOptions) -> Result<()> {
        self.ascend(adam, None)
    }

    fn update_at(&mut self, adam: &AdamOptions, rate: GpuView<'_, f32>) -> Result<()> {
        expect_len("rate", 1, rate.len())?;
        self.ascend(adam, Some(rate))
    }

    fn copy_from(&mut self, from: &Self) -> Result<()> {
        check_batch(self.space, from.space)?;
        if self.size != from.size {
            return Err(Error::argument("LSTM to copy", format!("{:?}", self.size), format!("{:?}", from.size)));
        }
        self.gpu.copy(&from.parameters, &mut self.parameters)?;
        self.gpu.copy(&from.packed, &mut self.packed)
    }

    fn try_clone(&self) -> Result<Self> {
        let mut clone = GpuLstm::zero(&self.gpu, self.space, self.shape)?.sampling(self.sampling);
        clone.copy_from(self)?;
        self.gpu.copy(&self.adam.first, &mut clone.adam.first)?;
        self.gpu.copy(&self.adam.second, &mut clone.adam.second)?;
        self.gpu.copy(&self.adam.steps, &mut clone.adam.steps)?;
        self.gpu.copy(&self.adam.norms, &mut clone.adam.norms)?;
        Ok(clone)
    }

    fn reset_optimizer(&mut self) -> Result<()> {
        self.adam = AdamState::new(&self.gpu, self.size.parameters())?;
        Ok(())
    }

    fn take_norms(&mut self) -> Result<GradientNorms> {
        self.adam.take_norms(&self.gpu)
    }

    fn save(&self, path: &Path) -> Result<()> {
        self.to_cpu()?.save(path)
    }

    fn state(&self, with_optimizer: bool) -> Result<PolicyState> {
        let tensors = self.size.tensors(self.shape.hidden);
        let named = |buffer: &GpuBuffer<L, f32>| -> Result<Vec<(String, Vec<f32>)>> {
            let flat = self.read(buffer)?;
            Ok(tensors.iter().map(|(name, at)| (name.clone(), at.iter().map(|&at| flat[at]).collect())).collect())
        };
        let optimizer = || -> Result<OptimizerState> {
            let (mut steps, mut norms) = ([0], [GradientNorms::default()]);
            self.gpu.download(&self.adam.steps, &mut steps)?;
            self.gpu.download(&self.adam.norms, &mut norms)?;
            let (first, second) = (named(&self.adam.first)?, named(&self.adam.second)?);
            Ok(OptimizerState { first, second, steps: steps[0], norms: norms[0] })
        };
        Ok(PolicyState {
            model: description(self.space, self.shape).to_string(),
            parameters: named(&self.parameters)?,
            optimizer: if with_optimizer { Some(optimizer()?) } else { None },
        })
    }

    fn restore(&mut self, state: &PolicyState) -> Result<()> {
        let tensors = self.size.tensors(self.shape.hidden);
        let named = || tensors.iter().map(|(name, at)| (&**name, at.as_slice()));
        state.check(&description(self.space, self.shape), || named().map(|(name, at)| (name, at.len())))?;
        // What pads the tensors is 0.
        let mut flat = vec![0.0; self.size.parameters()];
        let mut upload = |from: &[(String, Vec<f32>)], to: &mut GpuBuffer<L, f32>| {
            for ((_, at), (_, values)) in named().zip(from) {
                at.iter().zip(values).for_each(|(&at, &value)| flat[at] = value);
            }
            self.gpu.upload(&flat, to)
        };
        upload(&state.parameters, &mut self.parameters)?;
        if let Some(OptimizerState { first, second, steps, norms }) = &state.optimizer {
            upload(first, &mut self.adam.first)?;
            upload(second, &mut self.adam.second)?;
            self.gpu.upload(&[*steps], &mut self.adam.steps)?;
            self.gpu.upload(&[*norms], &mut self.adam.norms)?;
        }
        self.pack()
    }
}
