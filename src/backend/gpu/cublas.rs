//! Plain products by cuBLASLt, each shape by one algorithm.
//!
//! The algorithm is asked for once per kind of product, for 1024 rows whatever the number of rows is, and without split
//! reductions, so that a row's result does not depend on the batch around it.

use std::collections::HashMap;
use std::ffi::c_void;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t, cublasLtMatmulDescAttributes_t as DescAttribute,
    cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute, cudaDataType,
};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use super::{Matrix, Product, Scalar};
use crate::error::{Error, Result};

/// The library's scratch memory: what NVIDIA recommends for Hopper.
const WORKSPACE: usize = 32 << 20;

/// The number of rows for which algorithms are asked. Those for 8192 are some 7 % faster (H200), but not for all shapes that
/// chunks can have.
const ROWS: usize = 1024;

/// The library's handle, its scratch memory and the algorithms so far.
pub(super) struct Cublas {
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    algorithms: HashMap<Kind, sys::cublasLtMatmulAlgo_t>,
}

// SAFETY: a handle may be used by any thread, one at a time: the launcher keeps it behind a lock.
unsafe impl Send for Cublas {}

/// Products that share an algorithm: everything but the number of rows of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    shape: [usize; 3],
    scalar: Scalar,
    transposed: [bool; 2],
    add: bool,
}

fn failed(error: CublasError) -> Error {
    Error::gpu("cuBLASLt", error)
}

impl Cublas {
    pub fn new(stream: &std::sync::Arc<CudaStream>) -> Result<Self> {
        // SAFETY: loads and unloads the library; to be asked before any other call, which would panic without it.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::gpu("cuBLASLt", "not found on this machine: products of matrices need libcublasLt"));
        }
        // SAFETY: scratch memory that only the library reads, after it has written it.
        let workspace = unsafe { stream.alloc::<u8>(WORKSPACE) };
        let workspace = workspace.map_err(|error| Error::gpu("cuBLASLt", format!("scratch memory: {error:?}")))?;
        let handle = result::create_handle().map_err(failed)?;
        Ok(Cublas { handle, workspace, algorithms: HashMap::new() })
    }

    /// Puts a product on the stream.
    ///
    /// # Safety
    /// As [`super::Launcher::product`]; the stream's context is current.
    pub unsafe fn run(&mut self, stream: &std::sync::Arc<CudaStream>, product: &Product) -> Result<()> {
        let call = Call::new(product).map_err(failed)?;
        let algorithm = self.algorithm(product).map_err(failed)?;
        let (alpha, beta) = (1.0f32, if product.add { 1.0f32 } else { 0.0 });
        let pointer = |value: &f32| std::ptr::from_ref(value).cast::<c_void>();
        let (workspace, _guard) = self.workspace.device_ptr(stream);
        // Row-major: the library, column-major, computes the transpose bᵀ · aᵀ.
        // SAFETY: the layouts are those of the caller's matrices, and live to the end of the call, as do the factors.
        let done = unsafe {
            result::matmul(
                self.handle,
                call.description.0,
                pointer(&alpha),
                pointer(&beta),
                product.b.address as *const c_void,
                call.b.0,
                product.a.address as *const c_void,
                call.a.0,
                product.to as *const c_void,
                call.to.0,
                product.to as *mut c_void,
                call.to.0,
                &algorithm,
                workspace as *mut c_void,
                WORKSPACE,
                stream.cu_stream().cast(),
            )
        };
        done.map_err(failed)
    }

    fn algorithm(&mut self, product: &Product) -> std::result::Result<sys::cublasLtMatmulAlgo_t, CublasError> {
        let mut shape = product.shape;
        // The chunk's rows: m, or k where the gradient is transposed.
        shape[if product.a.transposed { 2 } else { 0 }] = ROWS;
        let transposed = [product.a.transposed, product.b.transposed];
        let kind = Kind { shape, scalar: product.scalar, transposed, add: product.add };
        if let Some(algorithm) = self.algorithms.get(&kind) {
            return Ok(*algorithm);
        }
        let call = Call::new(&Product { shape, ..*product })?;
        let preference = Preference::new()?;
        preference.set(PreferenceAttribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE)?;
        // No split over the depth: its order would be the library's choice by shape.
        preference.set(PreferenceAttribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &0u32)?;
        // SAFETY: all of them live.
        let found = unsafe {
            let Call { description, a, b, to } = &call;
            result::get_matmul_algo_heuristic(self.handle, description.0, b.0, a.0, to.0, to.0, preference.0)?
        };
        self.algorithms.insert(kind, found.algo);
        Ok(found.algo)
    }
}

impl Drop for Cublas {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and used by no one any more: the launcher has waited for its stream.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// The library's description of a product.
struct Call {
    description: Description,
    a: Layout,
    b: Layout,
    to: Layout,
}

struct Description(sys::cublasLtMatmulDesc_t);
struct Layout(sys::cublasLtMatrixLayout_t);
struct Preference(sys::cublasLtMatmulPreference_t);

macro_rules! dropped_by {
    ($($type:ident: $destroy:ident),*) => {
        $(impl Drop for $type {
            fn drop(&mut self) {
                // SAFETY: made by the library, and dropped once.
                let _ = unsafe { result::$destroy(self.0) };
            }
        })*
    };
}
dropped_by!(Description: destroy_matmul_desc, Layout: destroy_matrix_layout, Preference: destroy_matmul_pref);

impl Call {
    fn new(product: &Product) -> std::result::Result<Self, CublasError> {
        let compute = cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let description = Description(result::create_matmul_desc(compute, cudaDataType::CUDA_R_32F)?);
        // The first operand of the transposed product is b.
        let transposes = [
            (DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA, product.b.transposed),
            (DescAttribute::CUBLASLT_MATMUL_DESC_TRANSB, product.a.transposed),
        ];
        for (attribute, transposed) in transposes {
            let value = i32::from(transposed);
            // SAFETY: the attribute is one 32-bit number.
            unsafe {
                let value = std::ptr::from_ref(&value).cast();
                result::set_matmul_desc_attribute(description.0, attribute, value, size_of::<i32>())?;
            }
        }
        let [m, n, k] = product.shape;
        let to = Matrix { address: product.to, columns: n, transposed: false };
        Ok(Call {
            description,
            a: Layout::new(product.scalar, product.a, [m, k])?,
            b: Layout::new(product.scalar, product.b, [k, n])?,
            to: Layout::new(Scalar::F32, to, [m, n])?,
        })
    }
}

impl Layout {
    /// Row-major [rows, columns] as the library's column-major transpose.
    fn new(scalar: Scalar, matrix: Matrix, shape: [usize; 2]) -> std::result::Result<Self, CublasError> {
        let [rows, columns] = if matrix.transposed { [shape[1], shape[0]] } else { shape };
        let of = match scalar {
            Scalar::F32 => cudaDataType::CUDA_R_32F,
            Scalar::F16 => cudaDataType::CUDA_R_16F,
            Scalar::Bf16 => cudaDataType::CUDA_R_16BF,
        };
        result::create_matrix_layout(of, columns as u64, rows as u64, matrix.columns as i64).map(Layout)
    }
}

impl Preference {
    fn new() -> std::result::Result<Self, CublasError> {
        result::create_matmul_pref().map(Preference)
    }

    fn set<V>(&self, attribute: PreferenceAttribute, value: &V) -> std::result::Result<(), CublasError> {
        // SAFETY: the attribute has this type.
        unsafe {
            result::set_matmul_pref_attribute(self.0, attribute, std::ptr::from_ref(value).cast(), size_of::<V>())
        }
    }
}
