//! SIMD chosen at run time: a logical vector of 16 f32 lanes on AVX-512, on AVX2 with FMA, and on anything else.
//!
//! Every operation is an IEEE one (fused multiply-adds included) and lanes never mix but in [`Simd::sum`], which has
//! one order, so that all instruction sets give the same bits. Kernels are written once, generic over [`Simd`] and
//! inlined into one `#[target_feature]` function per instruction set by [`dispatch!`](crate::backend::simd::dispatch).

use std::sync::OnceLock;

use half::{bf16, f16};

/// Lanes of the logical vector.
pub const LANES: usize = 16;

/// An instruction set with kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512F.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Plain Rust.
    Scalar,
}

impl Isa {
    /// The best instruction set of this machine, asked once.
    pub fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| *Isa::all().last().expect("plain Rust is always there"))
    }

    /// All instruction sets of this machine, slowest first.
    pub fn all() -> Vec<Isa> {
        let mut all = vec![Isa::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            // Every machine with AVX2 has F16C.
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                all.push(Isa::Avx2);
                if is_x86_feature_detected!("avx512f") {
                    all.push(Isa::Avx512);
                }
            }
        }
        all
    }
}

/// Sixteen f32 lanes.
///
/// # Safety
/// Methods of an implementation may only run on a machine that has its instruction set, inlined into a function with
/// the matching `#[target_feature]`. Pointers given to `load` and `store` must be valid for 16 values; no alignment.
pub trait Simd: Copy {
    /// Whether a row of four vectors fits a micro-kernel of six rows in registers.
    const WIDE: bool;
    /// Sixteen f64 lanes, for sums.
    type Wide: Copy;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// `self · factor + addend`, rounded once.
    unsafe fn fma(self, factor: Self, addend: Self) -> Self;
    /// `self · factor − subtrahend`, rounded once.
    unsafe fn fms(self, factor: Self, subtrahend: Self) -> Self;
    unsafe fn max(self, other: Self) -> Self;
    unsafe fn min(self, other: Self) -> Self;
    /// `self · 2^power` for integral powers in [−126, 127].
    unsafe fn scale(self, power: Self) -> Self;
    /// 0 where `test < limit`, else `self`.
    unsafe fn zero_below(self, test: Self, limit: Self) -> Self;
    /// Lane i where bit i of `bits` is set, else `other`'s.
    unsafe fn select(self, bits: u16, other: Self) -> Self;
    /// Whether a lane is greater than `other`'s.
    unsafe fn any_above(self, other: Self) -> bool;
    /// The largest of lanes that are not NaN.
    unsafe fn max_lane(self) -> f32;
    unsafe fn wide(lanes: &[f64; LANES]) -> Self::Wide;
    unsafe fn wide_lanes(wide: Self::Wide) -> [f64; LANES];
    /// Each lane of `sums` and this one's.
    unsafe fn add_wide(self, sums: Self::Wide) -> Self::Wide;
    /// The lanes added in pairs, halves first.
    unsafe fn wide_sum(sums: Self::Wide) -> f64;

    /// [`max_lane`](Simd::max_lane) of each row.
    #[inline(always)]
    unsafe fn max_of_rows(rows: &[Self; LANES]) -> Self {
        let mut max = [0.0; LANES];
        for row in 0..LANES {
            max[row] = unsafe { rows[row].max_lane() };
        }
        unsafe { Self::load(max.as_ptr()) }
    }

    /// The sum of each row's lanes in f64, halves first.
    #[inline(always)]
    unsafe fn sums_of_rows(rows: &[Self; LANES]) -> Self::Wide {
        let mut sums = [0.0; LANES];
        for row in 0..LANES {
            sums[row] = unsafe { Self::wide_sum(rows[row].add_wide(Self::wide(&[0.0; LANES]))) };
        }
        unsafe { Self::wide(&sums) }
    }

    /// Sixteen f16, exact.
    unsafe fn load_f16(from: *const f16) -> Self;
    /// The nearest f16.
    unsafe fn store_f16(self, to: *mut f16);
    /// Sixteen bf16, exact.
    unsafe fn load_bf16(from: *const bf16) -> Self;
    /// The nearest bf16, of lanes that are not NaN.
    unsafe fn store_bf16(self, to: *mut bf16);

    // Two vectors at once, as they come; of bf16 those in even places, then those in odd ones: 32 bits hold one of each, so
    // that a shift and a mask do in place of moves across lanes.
    #[inline(always)]
    unsafe fn load_two(from: *const f32) -> [Self; 2] {
        unsafe { [Self::load(from), Self::load(from.add(LANES))] }
    }
    #[inline(always)]
    unsafe fn store_two(two: [Self; 2], to: *mut f32) {
        unsafe {
            two[0].store(to);
            two[1].store(to.add(LANES));
        }
    }
    #[inline(always)]
    unsafe fn load_two_f16(from: *const f16) -> [Self; 2] {
        unsafe { [Self::load_f16(from), Self::load_f16(from.add(LANES))] }
    }
    #[inline(always)]
    unsafe fn store_two_f16(two: [Self; 2], to: *mut f16) {
        unsafe {
            two[0].store_f16(to);
            two[1].store_f16(to.add(LANES));
        }
    }
    unsafe fn load_two_bf16(from: *const bf16) -> [Self; 2];
    unsafe fn store_two_bf16(two: [Self; 2], to: *mut bf16);

    /// Asks for the cache line at `at`, which need not be valid memory: a hint, never an access.
    #[inline(always)]
    unsafe fn prefetch(_at: *const f32) {}

    #[inline(always)]
    unsafe fn lanes(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes
    }

    /// The lanes added in pairs, halves first.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut lanes = unsafe { self.lanes() };
        for width in [8, 4, 2, 1] {
            for lane in 0..width {
                lanes[lane] += lanes[lane + width];
            }
        }
        lanes[0]
    }

    /// eˣ to about one ulp: n = round(x·log₂e), r = x − n·ln 2 in two parts, a degree-6 polynomial in r (Cephes `expf`),
    /// times 2ⁿ. Below −87.3 it is exactly 0 (so that −∞ gives 0); above 88 it stays at e⁸⁸.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        unsafe {
            let constant = |value: f32| Self::splat(value);
            let lowest = constant(-87.3);
            let x = self.min(constant(88.0)).max(lowest);
            // Adding and taking away 1.5·2²³ rounds to the nearest integer.
            let magic = constant(12_582_912.0);
            let n = x.fma(constant(std::f32::consts::LOG2_E), magic).sub(magic);
            let r = n.fma(constant(-0.693_359_4), x);
            let r = n.fma(constant(2.121_944_4e-4), r);
            let mut p = constant(1.987_569_1e-4);
            for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
                p = p.fma(r, constant(coefficient));
            }
            let y = p.fma(r.mul(r), r.add(constant(1.0)));
            y.scale(n).zero_below(self, lowest)
        }
    }

    /// 2^(self·factor) for products of 0 and below, to 2 ulp of the rounded `factor`: n = round(self·factor), and a
    /// polynomial of degree 5 in what remains, which one fused multiply-add gives without the product's rounding.
    /// Exactly 1 at 0; below `lowest`, which is −126/factor, it stays at 2⁻¹²⁶. A NaN comes through.
    #[inline(always)]
    unsafe fn exp2_product(self, factor: Self, lowest: Self) -> Self {
        let [power] = unsafe { Self::exp2_products([self], factor, lowest) };
        power
    }

    /// [`exp2_product`](Simd::exp2_product) of several vectors, each step of all before the next: a chain of twelve
    /// operations that wait for each other leaves a processor idle, however far it looks ahead.
    #[inline(always)]
    #[allow(clippy::approx_constant, reason = "a minimax coefficient, which is not ln 2")]
    unsafe fn exp2_products<const N: usize>(of: [Self; N], factor: Self, lowest: Self) -> [Self; N] {
        unsafe {
            let (mut n, mut f, mut p) = (of, of, of);
            // As in `exp`.
            let magic = Self::splat(12_582_912.0);
            for i in 0..N {
                f[i] = lowest.max(of[i]);
            }
            for i in 0..N {
                n[i] = f[i].fma(factor, magic);
            }
            for i in 0..N {
                n[i] = n[i].sub(magic);
            }
            for i in 0..N {
                f[i] = f[i].fms(factor, n[i]);
            }
            // Minimax of (2^f − 1)/f on [−½, ½] in relative error of 2^f: 9.2e-8.
            for i in 0..N {
                p[i] = Self::splat(1.326_472_7e-3).fma(f[i], Self::splat(9.671_513e-3));
            }
            for coefficient in [5.550_733_6e-2, 2.402_224_2e-1, 6.931_47e-1, 1.0] {
                for i in 0..N {
                    p[i] = p[i].fma(f[i], Self::splat(coefficient));
                }
            }
            for i in 0..N {
                p[i] = p[i].scale(n[i]);
            }
            p
        }
    }

    /// 1 / (1 + e⁻ˣ).
    #[inline(always)]
    unsafe fn sigmoid(self) -> Self {
        unsafe {
            let one = Self::splat(1.0);
            one.div(one.add(Self::splat(0.0).sub(self).exp()))
        }
    }

    /// tanh x = 2σ(2x) − 1; absolute error below 2e-7.
    #[inline(always)]
    unsafe fn tanh(self) -> Self {
        unsafe { self.add(self).sigmoid().fma(Self::splat(2.0), Self::splat(-1.0)) }
    }
}

/// Plain Rust, sixteen numbers.
#[derive(Clone, Copy)]
pub(crate) struct Scalar([f32; LANES]);

impl Scalar {
    #[inline(always)]
    fn zip(self, other: Self, op: impl Fn(f32, f32) -> f32) -> Self {
        Scalar(std::array::from_fn(|lane| op(self.0[lane], other.0[lane])))
    }
}

impl Simd for Scalar {
    const WIDE: bool = false;
    type Wide = [f64; LANES];
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Scalar([value; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's pointer is valid for 16 values; an array of f32 needs no more alignment than f32.
        Scalar(unsafe { from.cast::<[f32; LANES]>().read() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as for `load`.
        unsafe { to.cast::<[f32; LANES]>().write(self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(self, factor: Self, addend: Self) -> Self {
        Scalar(std::array::from_fn(|lane| self.0[lane].mul_add(factor.0[lane], addend.0[lane])))
    }
    #[inline(always)]
    unsafe fn fms(self, factor: Self, subtrahend: Self) -> Self {
        Scalar(std::array::from_fn(|lane| self.0[lane].mul_add(factor.0[lane], -subtrahend.0[lane])))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // As the instruction does: the second operand where either is NaN.
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn scale(self, power: Self) -> Self {
        self.zip(power, |x, n| x * f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn zero_below(self, test: Self, limit: Self) -> Self {
        Scalar(std::array::from_fn(|lane| if test.0[lane] < limit.0[lane] { 0.0 } else { self.0[lane] }))
    }
    #[inline(always)]
    unsafe fn select(self, bits: u16, other: Self) -> Self {
        Scalar(std::array::from_fn(|lane| if bits >> lane & 1 == 1 { self.0[lane] } else { other.0[lane] }))
    }
    #[inline(always)]
    unsafe fn any_above(self, other: Self) -> bool {
        (0..LANES).any(|lane| self.0[lane] > other.0[lane])
    }
    #[inline(always)]
    unsafe fn max_lane(mut self) -> f32 {
        for width in [8, 4, 2, 1] {
            for lane in 0..width {
                self.0[lane] = if self.0[lane] > self.0[lane + width] { self.0[lane] } else { self.0[lane + width] };
            }
        }
        self.0[0]
    }
    #[inline(always)]
    unsafe fn wide(lanes: &[f64; LANES]) -> Self::Wide {
        *lanes
    }
    #[inline(always)]
    unsafe fn wide_lanes(wide: Self::Wide) -> [f64; LANES] {
        wide
    }
    #[inline(always)]
    unsafe fn add_wide(self, sums: Self::Wide) -> Self::Wide {
        std::array::from_fn(|lane| sums[lane] + f64::from(self.0[lane]))
    }
    #[inline(always)]
    unsafe fn wide_sum(mut sums: Self::Wide) -> f64 {
        for width in [8, 4, 2, 1] {
            for lane in 0..width {
                sums[lane] += sums[lane + width];
            }
        }
        sums[0]
    }
    // SAFETY of the next four: the caller's pointer is valid for 16 values; an array needs no more alignment than those.
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        Scalar(unsafe { from.cast::<[f16; LANES]>().read() }.map(f16::to_f32))
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16) {
        unsafe { to.cast::<[f16; LANES]>().write(self.0.map(f16::from_f32)) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        Scalar(unsafe { from.cast::<[bf16; LANES]>().read() }.map(bf16::to_f32))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16) {
        unsafe { to.cast::<[bf16; LANES]>().write(self.0.map(bf16::from_f32)) }
    }
    // SAFETY of these two: the same of 32 values.
    #[inline(always)]
    unsafe fn load_two_bf16(from: *const bf16) -> [Self; 2] {
        let both = unsafe { from.cast::<[bf16; 2 * LANES]>().read() };
        [0, 1].map(|odd| Scalar(std::array::from_fn(|lane| both[2 * lane + odd].to_f32())))
    }
    #[inline(always)]
    unsafe fn store_two_bf16(two: [Self; 2], to: *mut bf16) {
        let both: [bf16; 2 * LANES] = std::array::from_fn(|at| bf16::from_f32(two[at % 2].0[at / 2]));
        unsafe { to.cast::<[bf16; 2 * LANES]>().write(both) }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use half::{bf16, f16};

    use super::{LANES, Simd};

    /// The largest of eight lanes, halves first.
    #[inline(always)]
    unsafe fn max_of_eight(x: __m256) -> f32 {
        unsafe {
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }

    /// The sum of four lanes, halves first.
    #[inline(always)]
    unsafe fn sum_of_four(x: __m256d) -> f64 {
        unsafe {
            let x = _mm_add_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd::<1>(x));
            _mm_cvtsd_f64(_mm_add_sd(x, _mm_unpackhi_pd(x, x)))
        }
    }

    /// Of four rows, a register each, the largest of every fourth lane: a row to each quarter of the result.
    #[inline(always)]
    unsafe fn max_of_quarters(rows: &[Avx512; LANES], of: [usize; 4]) -> __m512 {
        unsafe {
            let [a, b, c, d] = [rows[of[0]].0, rows[of[1]].0, rows[of[2]].0, rows[of[3]].0];
            let ab = _mm512_max_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xEE>(a, b));
            let cd = _mm512_max_ps(_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xEE>(c, d));
            _mm512_max_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xDD>(ab, cd))
        }
    }

    /// Of four rows the sums of every second lane: a row to each quarter of the result.
    #[inline(always)]
    unsafe fn sums_of_quarters(rows: &[Avx512; LANES], of: [usize; 4]) -> __m512d {
        unsafe {
            let mut sums = [_mm512_setzero_pd(); 4];
            for (sum, row) in sums.iter_mut().zip(of) {
                let [low, high] = rows[row].add_wide([_mm512_setzero_pd(); 2]);
                *sum = _mm512_add_pd(low, high);
            }
            let [a, b, c, d] = sums;
            let ab = _mm512_add_pd(_mm512_shuffle_f64x2::<0x44>(a, b), _mm512_shuffle_f64x2::<0xEE>(a, b));
            let cd = _mm512_add_pd(_mm512_shuffle_f64x2::<0x44>(c, d), _mm512_shuffle_f64x2::<0xEE>(c, d));
            _mm512_add_pd(_mm512_shuffle_f64x2::<0x88>(ab, cd), _mm512_shuffle_f64x2::<0xDD>(ab, cd))
        }
    }

    /// Rounding of conversions to f16: to nearest, without exceptions.
    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

    /// One 512-bit register.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(__m512);

    // SAFETY of every block below: the trait's contract puts these calls into a function compiled for, and run on, a
    // machine with AVX-512F; unaligned loads and stores get the caller's valid pointers.
    impl Simd for Avx512 {
        const WIDE: bool = true;
        type Wide = [__m512d; 2];
        #[inline(always)]
        unsafe fn prefetch(at: *const f32) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            Avx512(unsafe { _mm512_set1_ps(value) })
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            Avx512(unsafe { _mm512_loadu_ps(from) })
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            Avx512(unsafe { _mm512_add_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            Avx512(unsafe { _mm512_sub_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            Avx512(unsafe { _mm512_mul_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            Avx512(unsafe { _mm512_div_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn fma(self, factor: Self, addend: Self) -> Self {
            Avx512(unsafe { _mm512_fmadd_ps(self.0, factor.0, addend.0) })
        }
        #[inline(always)]
        unsafe fn fms(self, factor: Self, subtrahend: Self) -> Self {
            Avx512(unsafe { _mm512_fmsub_ps(self.0, factor.0, subtrahend.0) })
        }
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            Avx512(unsafe { _mm512_max_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn min(self, other: Self) -> Self {
            Avx512(unsafe { _mm512_min_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn scale(self, power: Self) -> Self {
            Avx512(unsafe { _mm512_scalef_ps(self.0, power.0) })
        }
        #[inline(always)]
        unsafe fn zero_below(self, test: Self, limit: Self) -> Self {
            // Not-less-than, unordered: a NaN under test keeps the value, as in plain Rust.
            unsafe {
                let keep = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(test.0, limit.0);
                Avx512(_mm512_maskz_mov_ps(keep, self.0))
            }
        }
        #[inline(always)]
        unsafe fn select(self, bits: u16, other: Self) -> Self {
            Avx512(unsafe { _mm512_mask_mov_ps(other.0, bits, self.0) })
        }
        #[inline(always)]
        unsafe fn any_above(self, other: Self) -> bool {
            unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, other.0) != 0 }
        }
        #[inline(always)]
        unsafe fn max_lane(self) -> f32 {
            unsafe {
                let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0));
                max_of_eight(_mm256_max_ps(_mm512_castps512_ps256(self.0), _mm256_castpd_ps(high)))
            }
        }
        #[inline(always)]
        unsafe fn wide(lanes: &[f64; LANES]) -> Self::Wide {
            unsafe { [_mm512_loadu_pd(lanes.as_ptr()), _mm512_loadu_pd(lanes.as_ptr().add(8))] }
        }
        #[inline(always)]
        unsafe fn wide_lanes(wide: Self::Wide) -> [f64; LANES] {
            let mut lanes = [0.0; LANES];
            unsafe {
                _mm512_storeu_pd(lanes.as_mut_ptr(), wide[0]);
                _mm512_storeu_pd(lanes.as_mut_ptr().add(8), wide[1]);
            }
            lanes
        }
        #[inline(always)]
        unsafe fn add_wide(self, sums: Self::Wide) -> Self::Wide {
            unsafe {
                let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0)));
                let low = _mm512_castps512_ps256(self.0);
                [_mm512_add_pd(sums[0], _mm512_cvtps_pd(low)), _mm512_add_pd(sums[1], _mm512_cvtps_pd(high))]
            }
        }
        #[inline(always)]
        unsafe fn wide_sum(sums: Self::Wide) -> f64 {
            unsafe {
                let x = _mm512_add_pd(sums[0], sums[1]);
                sum_of_four(_mm256_add_pd(_mm512_castpd512_pd256(x), _mm512_extractf64x4_pd::<1>(x)))
            }
        }
        // A transpose whose every step folds: 15 folds for sixteen rows in place of 64.
        #[inline(always)]
        unsafe fn max_of_rows(rows: &[Self; LANES]) -> Self {
            unsafe {
                let (a, b) = (max_of_quarters(rows, [0, 4, 8, 12]), max_of_quarters(rows, [1, 5, 9, 13]));
                let (c, d) = (max_of_quarters(rows, [2, 6, 10, 14]), max_of_quarters(rows, [3, 7, 11, 15]));
                let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
                let (c, d) = (_mm512_castps_pd(c), _mm512_castps_pd(d));
                let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
                let ab = _mm512_max_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
                let (low, high) = (_mm512_unpacklo_pd(c, d), _mm512_unpackhi_pd(c, d));
                let cd = _mm512_max_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
                Avx512(_mm512_max_ps(_mm512_shuffle_ps::<0x88>(ab, cd), _mm512_shuffle_ps::<0xDD>(ab, cd)))
            }
        }
        #[inline(always)]
        unsafe fn sums_of_rows(rows: &[Self; LANES]) -> Self::Wide {
            unsafe {
                let (a, b) = (sums_of_quarters(rows, [0, 2, 4, 6]), sums_of_quarters(rows, [1, 3, 5, 7]));
                let (c, d) = (sums_of_quarters(rows, [8, 10, 12, 14]), sums_of_quarters(rows, [9, 11, 13, 15]));
                let low = _mm512_add_pd(_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
                [low, _mm512_add_pd(_mm512_unpacklo_pd(c, d), _mm512_unpackhi_pd(c, d))]
            }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const f16) -> Self {
            Avx512(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
        }
        #[inline(always)]
        unsafe fn store_f16(self, to: *mut f16) {
            unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<NEAREST>(self.0)) }
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const bf16) -> Self {
            unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
            }
        }
        #[inline(always)]
        unsafe fn store_bf16(self, to: *mut bf16) {
            unsafe {
                let rounded = _mm512_srli_epi32::<16>(self.rounded_to_bf16());
                _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(rounded));
            }
        }
        #[inline(always)]
        unsafe fn load_two_bf16(from: *const bf16) -> [Self; 2] {
            unsafe {
                let both = _mm512_loadu_si512(from.cast());
                let (even, odd) = (_mm512_slli_epi32::<16>(both), _mm512_and_si512(both, _mm512_set1_epi32(UPPER)));
                [Avx512(_mm512_castsi512_ps(even)), Avx512(_mm512_castsi512_ps(odd))]
            }
        }
        #[inline(always)]
        unsafe fn store_two_bf16(two: [Self; 2], to: *mut bf16) {
            unsafe {
                let even = _mm512_srli_epi32::<16>(two[0].rounded_to_bf16());
                let odd = two[1].rounded_to_bf16();
                // even | odd & UPPER.
                let both = _mm512_ternarylogic_epi32::<0b1111_1000>(even, odd, _mm512_set1_epi32(UPPER));
                _mm512_storeu_si512(to.cast(), both);
            }
        }
    }

    /// The bits of a bf16 in those of an f32.
    const UPPER: i32 = 0xFFFF_0000_u32 as i32;

    impl Avx512 {
        /// The nearest bf16 in the upper bits, and what does not count in the lower ones.
        ///
        /// # Safety
        /// As for [`Simd`].
        #[inline(always)]
        unsafe fn rounded_to_bf16(self) -> __m512i {
            unsafe {
                // Rounded to nearest, ties away from 0; a tie leaves 0 below, and goes to even by losing its last bit.
                let away = _mm512_add_epi32(_mm512_castps_si512(self.0), _mm512_set1_epi32(0x8000));
                let tie = _mm512_testn_epi32_mask(away, _mm512_set1_epi32(0xFFFF));
                _mm512_mask_and_epi32(away, tie, away, _mm512_set1_epi32(!0x1_0000))
            }
        }
    }

    /// Two 256-bit registers.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256, __m256);

    // SAFETY of every block below: as above, with AVX2 and FMA.
    impl Simd for Avx2 {
        const WIDE: bool = false;
        type Wide = [__m256d; 4];
        #[inline(always)]
        unsafe fn prefetch(at: *const f32) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe { Avx2(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Avx2(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe {
                _mm256_storeu_ps(to, self.0);
                _mm256_storeu_ps(to.add(8), self.1);
            }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { Avx2(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            unsafe { Avx2(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            unsafe { Avx2(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
        }
        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            unsafe { Avx2(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1)) }
        }
        #[inline(always)]
        unsafe fn fma(self, factor: Self, addend: Self) -> Self {
            unsafe { Avx2(_mm256_fmadd_ps(self.0, factor.0, addend.0), _mm256_fmadd_ps(self.1, factor.1, addend.1)) }
        }
        #[inline(always)]
        unsafe fn fms(self, factor: Self, subtrahend: Self) -> Self {
            let Avx2(low, high) = subtrahend;
            unsafe { Avx2(_mm256_fmsub_ps(self.0, factor.0, low), _mm256_fmsub_ps(self.1, factor.1, high)) }
        }
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            unsafe { Avx2(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
        }
        #[inline(always)]
        unsafe fn min(self, other: Self) -> Self {
            unsafe { Avx2(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1)) }
        }
        #[inline(always)]
        unsafe fn scale(self, power: Self) -> Self {
            unsafe {
                let factor = |n: __m256| {
                    let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
                };
                self.mul(Avx2(factor(power.0), factor(power.1)))
            }
        }
        #[inline(always)]
        unsafe fn zero_below(self, test: Self, limit: Self) -> Self {
            unsafe {
                let part = |x, t, l| _mm256_and_ps(x, _mm256_cmp_ps::<_CMP_NLT_UQ>(t, l));
                Avx2(part(self.0, test.0, limit.0), part(self.1, test.1, limit.1))
            }
        }
        #[inline(always)]
        unsafe fn select(self, bits: u16, other: Self) -> Self {
            unsafe {
                let lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
                let part = |x, o, bits: u16| {
                    let set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits.into()), lanes), lanes);
                    _mm256_blendv_ps(o, x, _mm256_castsi256_ps(set))
                };
                Avx2(part(self.0, other.0, bits), part(self.1, other.1, bits >> 8))
            }
        }
        #[inline(always)]
        unsafe fn any_above(self, other: Self) -> bool {
            unsafe {
                let low = _mm256_cmp_ps::<_CMP_GT_OQ>(self.0, other.0);
                _mm256_movemask_ps(_mm256_or_ps(low, _mm256_cmp_ps::<_CMP_GT_OQ>(self.1, other.1))) != 0
            }
        }
        #[inline(always)]
        unsafe fn max_lane(self) -> f32 {
            unsafe { max_of_eight(_mm256_max_ps(self.0, self.1)) }
        }
        #[inline(always)]
        unsafe fn wide(lanes: &[f64; LANES]) -> Self::Wide {
            let from = lanes.as_ptr();
            unsafe {
                let low = [_mm256_loadu_pd(from), _mm256_loadu_pd(from.add(4))];
                [low[0], low[1], _mm256_loadu_pd(from.add(8)), _mm256_loadu_pd(from.add(12))]
            }
        }
        #[inline(always)]
        unsafe fn wide_lanes(wide: Self::Wide) -> [f64; LANES] {
            let mut lanes = [0.0; LANES];
            for part in 0..4 {
                unsafe { _mm256_storeu_pd(lanes.as_mut_ptr().add(4 * part), wide[part]) };
            }
            lanes
        }
        #[inline(always)]
        unsafe fn add_wide(self, sums: Self::Wide) -> Self::Wide {
            unsafe {
                [
                    _mm256_add_pd(sums[0], _mm256_cvtps_pd(_mm256_castps256_ps128(self.0))),
                    _mm256_add_pd(sums[1], _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(self.0))),
                    _mm256_add_pd(sums[2], _mm256_cvtps_pd(_mm256_castps256_ps128(self.1))),
                    _mm256_add_pd(sums[3], _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(self.1))),
                ]
            }
        }
        #[inline(always)]
        unsafe fn wide_sum(sums: Self::Wide) -> f64 {
            unsafe {
                let (low, high) = (_mm256_add_pd(sums[0], sums[2]), _mm256_add_pd(sums[1], sums[3]));
                sum_of_four(_mm256_add_pd(low, high))
            }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const f16) -> Self {
            unsafe {
                let part = |from: *const f16| _mm256_cvtph_ps(_mm_loadu_si128(from.cast()));
                Avx2(part(from), part(from.add(8)))
            }
        }
        #[inline(always)]
        unsafe fn store_f16(self, to: *mut f16) {
            unsafe {
                _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0));
                _mm_storeu_si128(to.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.1));
            }
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const bf16) -> Self {
            unsafe {
                let part = |from: *const bf16| {
                    let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
                };
                Avx2(part(from), part(from.add(8)))
            }
        }
        #[inline(always)]
        unsafe fn store_bf16(self, to: *mut bf16) {
            unsafe {
                let part = |x| _mm256_srli_epi32::<16>(rounded_to_bf16(x));
                // Packed by halves of 128 bits: the middle quarters change places.
                let packed = _mm256_packus_epi32(part(self.0), part(self.1));
                _mm256_storeu_si256(to.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
            }
        }
        #[inline(always)]
        unsafe fn load_two_bf16(from: *const bf16) -> [Self; 2] {
            unsafe {
                let (low, high) = (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(LANES).cast()));
                let even = |both| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(both));
                let odd = |both| _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(UPPER)));
                [Avx2(even(low), even(high)), Avx2(odd(low), odd(high))]
            }
        }
        #[inline(always)]
        unsafe fn store_two_bf16(two: [Self; 2], to: *mut bf16) {
            unsafe {
                let both = |even, odd| {
                    let odd = _mm256_and_si256(rounded_to_bf16(odd), _mm256_set1_epi32(UPPER));
                    _mm256_or_si256(_mm256_srli_epi32::<16>(rounded_to_bf16(even)), odd)
                };
                _mm256_storeu_si256(to.cast(), both(two[0].0, two[1].0));
                _mm256_storeu_si256(to.add(LANES).cast(), both(two[0].1, two[1].1));
            }
        }
    }

    /// The nearest bf16 in the upper bits of each lane, and what does not count in the lower ones.
    ///
    /// # Safety
    /// As for [`Simd`].
    #[inline(always)]
    unsafe fn rounded_to_bf16(x: __m256) -> __m256i {
        unsafe {
            let bits = _mm256_castps_si256(x);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)))
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

/// Defines `fn name(isa, args…)`, which runs the generic kernel `body::<S>(args…)` compiled for `isa`; one type parameter
/// may follow the name, and then `body::<S, T>` runs.
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident$(<$of:ident: $bound:path>)?($($arg:ident: $type:ty),* $(,)?)
        $(-> $out:ty)? = $body:ident
    ) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "the instruction set comes on top of the kernel's own")]
        $vis fn $name$(<$of: $bound>)?(isa: $crate::backend::simd::Isa, $($arg: $type),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx2,fma,f16c")]
            unsafe fn avx512$(<$of: $bound>)?($($arg: $type),*) $(-> $out)? {
                unsafe { $body::<$crate::backend::simd::Avx512 $(, $of)?>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2$(<$of: $bound>)?($($arg: $type),*) $(-> $out)? {
                unsafe { $body::<$crate::backend::simd::Avx2 $(, $of)?>($($arg),*) }
            }
            // SAFETY: an `Isa` value names an instruction set that `Isa::all` found on this machine; the kernels'
            // own contracts are checked by their slices.
            unsafe {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    $crate::backend::simd::Isa::Avx512 => avx512$(::<$of>)?($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::backend::simd::Isa::Avx2 => avx2$(::<$of>)?($($arg),*),
                    $crate::backend::simd::Isa::Scalar => {
                        $body::<$crate::backend::simd::Scalar $(, $of)?>($($arg),*)
                    }
                }
            }
        }
    };
}
pub(crate) use dispatch;

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(always)]
    unsafe fn unary<S: Simd>(x: &[f32; LANES], which: u8) -> [f32; LANES] {
        unsafe {
            let x = S::load(x.as_ptr());
            match which {
                0 => x.exp(),
                1 => x.sigmoid(),
                2 => x.tanh(),
                _ => S::splat(0.0).min(x).exp2_product(S::splat(1.5), S::splat(-84.0)),
            }
            .lanes()
        }
    }
    dispatch! { fn run(x: &[f32; LANES], which: u8) -> [f32; LANES] = unary }

    fn points() -> impl Iterator<Item = [f32; LANES]> {
        (0..20_000).map(|i| std::array::from_fn(|lane| -100.0 + (i * LANES + lane) as f32 * (200.0 / 320_000.0)))
    }

    #[test]
    fn exp_within_two_ulp_and_sigmoids_within_2e_7() {
        for x in points() {
            let (e, s, t) = (run(Isa::best(), &x, 0), run(Isa::best(), &x, 1), run(Isa::best(), &x, 2));
            for lane in 0..LANES {
                let v = f64::from(x[lane]);
                if (-87.0..88.0).contains(&v) {
                    assert!((f64::from(e[lane]) / v.exp() - 1.0).abs() < 2.4e-7, "exp({v}) = {}", e[lane]);
                }
                assert!((f64::from(s[lane]) - 1.0 / (1.0 + (-v).exp())).abs() < 1.5e-7, "sigmoid({v}) = {}", s[lane]);
                assert!((f64::from(t[lane]) - v.tanh()).abs() < 2.5e-7, "tanh({v}) = {}", t[lane]);
            }
        }
    }

    #[test]
    fn all_instruction_sets_agree_bit_for_bit() {
        let odd = [f32::NEG_INFINITY, -87.3, -87.4, -0.0, 1e-30, 88.0, 89.0, f32::INFINITY].map(|x| [x; LANES]);
        for x in points().chain(odd) {
            for which in 0..4 {
                let want = run(Isa::Scalar, &x, which).map(f32::to_bits);
                for isa in Isa::all() {
                    assert_eq!(run(isa, &x, which).map(f32::to_bits), want, "{isa:?} {which} {x:?}");
                }
            }
        }
    }

    #[test]
    fn exp2_of_products_to_two_ulp() {
        for x in points() {
            let got = run(Isa::best(), &x, 3);
            for (got, x) in got.into_iter().zip(x) {
                let want = (1.5 * f64::from(x.clamp(-84.0, 0.0))).exp2();
                assert!((f64::from(got) / want - 1.0).abs() < 2e-7, "2^(1.5·{x}) = {got}");
            }
        }
        let edges = [0.0, -84.0, -85.0, f32::MIN, f32::NEG_INFINITY, f32::NAN];
        let got = edges.map(|x| run(Isa::best(), &[x; LANES], 3)[0]);
        assert_eq!(got[..5], [1.0, f32::MIN_POSITIVE, f32::MIN_POSITIVE, f32::MIN_POSITIVE, f32::MIN_POSITIVE]);
        assert!(got[5].is_nan());
    }

    #[inline(always)]
    unsafe fn narrowed<S: Simd>(x: &[f32; LANES], bits: u16) -> ([u16; LANES], [u16; LANES], [f32; LANES]) {
        unsafe {
            let (mut half, mut brain) = ([f16::ZERO; LANES], [bf16::ZERO; LANES]);
            let x = S::load(x.as_ptr());
            x.store_f16(half.as_mut_ptr());
            x.store_bf16(brain.as_mut_ptr());
            let sum = S::load_f16(half.as_ptr()).select(bits, S::load_bf16(brain.as_ptr()));
            (half.map(f16::to_bits), brain.map(bf16::to_bits), sum.lanes())
        }
    }
    dispatch! { fn narrow(x: &[f32; LANES], bits: u16) -> ([u16; LANES], [u16; LANES], [f32; LANES]) = narrowed }

    #[test]
    fn sixteen_bits_are_the_nearest_on_every_instruction_set() {
        // Ties, subnormals, what overflows.
        let odd =
            [0.0, -0.0, 1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 6e-8, 2.9e-8];
        let large = [65_504.0, 65_519.0, 65_520.0, -1e30, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, 1e-40];
        let odd = std::array::from_fn(|lane| [odd, large].concat()[lane]);
        for (i, x) in points().take(2000).chain([odd]).enumerate() {
            let bits = (i * 40_503) as u16;
            for isa in Isa::all() {
                let (half, brain, mixed) = narrow(isa, &x, bits);
                assert_eq!(half, x.map(|x| f16::from_f32(x).to_bits()), "{isa:?} {x:?}");
                assert_eq!(brain, x.map(|x| bf16::from_f32(x).to_bits()), "{isa:?} {x:?}");
                for lane in 0..LANES {
                    let (half, brain) = (f16::from_bits(half[lane]).to_f32(), bf16::from_bits(brain[lane]).to_f32());
                    assert_eq!(mixed[lane], if bits >> lane & 1 == 1 { half } else { brain }, "{isa:?} lane {lane}");
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn narrowed_twice<S: Simd>(x: &[[f32; LANES]; 2]) -> ([u16; 2 * LANES], [[f32; LANES]; 2]) {
        unsafe {
            let mut both = [bf16::ZERO; 2 * LANES];
            S::store_two_bf16([S::load(x[0].as_ptr()), S::load(x[1].as_ptr())], both.as_mut_ptr());
            let [even, odd] = S::load_two_bf16(both.as_ptr());
            (both.map(bf16::to_bits), [even.lanes(), odd.lanes()])
        }
    }
    dispatch! { fn narrow_two(x: &[[f32; LANES]; 2]) -> ([u16; 2 * LANES], [[f32; LANES]; 2]) = narrowed_twice }

    #[test]
    fn pairs_of_bf16_are_the_nearest_on_every_instruction_set() {
        // Ties, what overflows, subnormals.
        let few = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -0.0, f32::MAX, f32::INFINITY, -1e30, 1e-40, -1e-40];
        let odd: [f32; LANES] = std::array::from_fn(|lane| few[lane % few.len()]);
        for x in points().take(2000).zip(points().skip(7)).map(|(one, other)| [one, other]).chain([[odd, odd]]) {
            for isa in Isa::all() {
                let (both, [even, odd]) = narrow_two(isa, &x);
                for lane in 0..LANES {
                    let want = [bf16::from_f32(x[0][lane]), bf16::from_f32(x[1][lane])];
                    assert_eq!([both[2 * lane], both[2 * lane + 1]], want.map(bf16::to_bits), "{isa:?} {x:?}");
                    assert_eq!([even[lane], odd[lane]], want.map(bf16::to_f32), "{isa:?} {x:?}");
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn folded<S: Simd>(rows: &[[f32; LANES]; LANES]) -> ([f32; LANES], [f64; LANES]) {
        unsafe {
            let mut vectors = [S::splat(0.0); LANES];
            for row in 0..LANES {
                vectors[row] = S::load(rows[row].as_ptr());
            }
            (S::max_of_rows(&vectors).lanes(), S::wide_lanes(S::sums_of_rows(&vectors)))
        }
    }
    dispatch! { fn fold(rows: &[[f32; LANES]; LANES]) -> ([f32; LANES], [f64; LANES]) = folded }

    #[test]
    fn sixteen_rows_fold_as_each_alone() {
        let points: Vec<_> = points().take(640).collect();
        // Sums whose order shows, and zeros of both signs.
        let odd = |row: usize, lane: usize| [1e30, -1e30, 1.0, 0.0, -0.0, f32::NEG_INFINITY][(row * 7 + lane * 5) % 6];
        let zeros = |row: usize, lane: usize| if (row * 5 + lane * 3) % 7 < 3 { 0.0 } else { -0.0 };
        let made =
            |of: &dyn Fn(usize, usize) -> f32| std::array::from_fn(|row| std::array::from_fn(|lane| of(row, lane)));
        let tiles = points.chunks_exact(LANES).map(|rows| std::array::from_fn(|row| rows[(row * 7) % LANES]));
        for tile in tiles.chain([made(&odd), made(&zeros)]) {
            let largest = tile.map(|row: [f32; LANES]| row.into_iter().fold(f32::NEG_INFINITY, f32::max));
            let want = fold(Isa::Scalar, &tile);
            assert_eq!(want.0, largest);
            for (sum, row) in want.1.into_iter().zip(tile) {
                let [sizes, terms] = [f32::abs, |x| x].map(|of| row.into_iter().map(of).map(f64::from).sum::<f64>());
                assert!(sum == terms || (sum - terms).abs() <= 1e-14 * sizes, "{sum} {terms}");
            }
            for isa in Isa::all() {
                let got = fold(isa, &tile);
                assert_eq!(got.0.map(f32::to_bits), want.0.map(f32::to_bits), "{isa:?}");
                assert_eq!(got.1.map(f64::to_bits), want.1.map(f64::to_bits), "{isa:?}");
            }
        }
    }

    #[test]
    fn exp_of_minus_infinity_is_zero() {
        assert_eq!(run(Isa::best(), &[f32::NEG_INFINITY; LANES], 0), [0.0; LANES]);
    }
}
