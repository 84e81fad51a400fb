//! Features on a GPU (`kernels/features.cu`).

use super::{FeatureKernel, FeatureTable};
use crate::backend::gpu::{Gpu, GpuViewMut, Launcher};
use crate::error::{Error, Result};
use crate::tokens::Batch;

impl<L: Launcher> FeatureKernel for Gpu<L> {
    fn features(&self, _table: &FeatureTable<Self>, _batch: &Batch<Self>, _phi: GpuViewMut<'_, f32>) -> Result<()> {
        Err(Error::no_answer("features", "SKELETON"))
    }
}
