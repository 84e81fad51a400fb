//! SIMD chosen at run time: a logical vector of 16 f32 lanes on AVX-512, on AVX2 with FMA, and on anything else.
//!
//! Every operation is an IEEE one (fused multiply-adds included) and lanes never mix but in [`Simd::sum`], which has
//! one order, so that all instruction sets give the same bits. Kernels are written once, generic over [`Simd`] and
//! inlined into one `#[target_feature]` function per instruction set by [`dispatch!`](crate::backend::simd::dispatch).

use std::sync::OnceLock;

/// Lanes of the logical vector.
pub const LANES: usize = 16;

/// An instruction set with kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512F.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2 and FMA.
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
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
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
pub(crate) trait Simd: Copy {
    /// Whether a row of four vectors fits a micro-kernel of six rows in registers.
    const WIDE: bool;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// `self · factor + addend`, rounded once.
    unsafe fn fma(self, factor: Self, addend: Self) -> Self;
    unsafe fn max(self, other: Self) -> Self;
    unsafe fn min(self, other: Self) -> Self;
    /// `self · 2^power` for integral powers in [−126, 127].
    unsafe fn scale(self, power: Self) -> Self;
    /// 0 where `test < limit`, else `self`.
    unsafe fn zero_below(self, test: Self, limit: Self) -> Self;

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

    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        unsafe { self.lanes() }.into_iter().fold(f32::NEG_INFINITY, f32::max)
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
        self.zip(power, |x, n| x * f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn zero_below(self, test: Self, limit: Self) -> Self {
        Scalar(std::array::from_fn(|lane| if test.0[lane] < limit.0[lane] { 0.0 } else { self.0[lane] }))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Simd;

    /// One 512-bit register.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(__m512);

    // SAFETY of every block below: the trait's contract puts these calls into a function compiled for, and run on, a
    // machine with AVX-512F; unaligned loads and stores get the caller's valid pointers.
    impl Simd for Avx512 {
        const WIDE: bool = true;
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
    }

    /// Two 256-bit registers.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256, __m256);

    // SAFETY of every block below: as above, with AVX2 and FMA.
    impl Simd for Avx2 {
        const WIDE: bool = false;
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
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

/// Defines `fn name(isa, args…)`, which runs the generic kernel `body::<S>(args…)` compiled for `isa`.
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? = $body:ident) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "the instruction set comes on top of the kernel's own")]
        $vis fn $name(isa: $crate::backend::simd::Isa, $($arg: $type),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx2,fma")]
            unsafe fn avx512($($arg: $type),*) $(-> $out)? {
                unsafe { $body::<$crate::backend::simd::Avx512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2($($arg: $type),*) $(-> $out)? {
                unsafe { $body::<$crate::backend::simd::Avx2>($($arg),*) }
            }
            // SAFETY: an `Isa` value names an instruction set that `Isa::all` found on this machine; the kernels'
            // own contracts are checked by their slices.
            unsafe {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    $crate::backend::simd::Isa::Avx512 => avx512($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::backend::simd::Isa::Avx2 => avx2($($arg),*),
                    $crate::backend::simd::Isa::Scalar => $body::<$crate::backend::simd::Scalar>($($arg),*),
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
                _ => x.tanh(),
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
            for which in 0..3 {
                let want = run(Isa::Scalar, &x, which).map(f32::to_bits);
                for isa in Isa::all() {
                    assert_eq!(run(isa, &x, which).map(f32::to_bits), want, "{isa:?} {which} {x:?}");
                }
            }
        }
    }

    #[test]
    fn exp_of_minus_infinity_is_zero() {
        assert_eq!(run(Isa::best(), &[f32::NEG_INFINITY; LANES], 0), [0.0; LANES]);
    }
}
