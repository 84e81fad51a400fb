//! The types that logits come in, and how they become probabilities.

use half::{bf16, f16};

use crate::backend::simd::Simd;
use crate::backend::{Cpu, Element, Memory};
use crate::error::{Error, Result, expect_len};

/// A logit's type: f32, f16 or bf16. Everything is computed in f32 or better.
pub trait Logit: Element + private::Lanes {
    /// The value in f32, exact.
    fn to_f32(self) -> f32;
    /// The nearest value.
    fn from_f32(value: f32) -> Self;
    /// One of three things for f32, f16 and bf16.
    #[doc(hidden)]
    fn pick<K>(of: [K; 3]) -> K;
}

mod private {
    use super::Simd;

    /// Sixteen values at a time.
    pub trait Lanes {
        /// # Safety
        /// As for [`Simd`]: 16 values at `from`.
        unsafe fn load<S: Simd>(from: *const Self) -> S;
        /// # Safety
        /// As for [`Simd`]: room for 16 values at `to`.
        unsafe fn store<S: Simd>(from: S, to: *mut Self);
        /// Thirty-two, lane by lane those that [`lanes_of_two`](Lanes::lanes_of_two) says.
        /// # Safety
        /// As for [`Simd`]: 32 values at `from`.
        unsafe fn load_two<S: Simd>(from: *const Self) -> [S; 2];
        /// # Safety
        /// As for [`Simd`]: room for 32 values at `to`.
        unsafe fn store_two<S: Simd>(from: [S; 2], to: *mut Self);
        /// The bits of thirty-two values by vector and lane.
        fn lanes_of_two(bits: u32) -> [u16; 2];
    }
}

macro_rules! logit {
    ($($type:ty, $at:literal, $to:expr, $from:expr, $load:ident, $store:ident, $load_two:ident, $store_two:ident, $lanes:ident;)*) => {
        $(impl private::Lanes for $type {
            #[inline(always)]
            unsafe fn load<S: Simd>(from: *const Self) -> S {
                unsafe { S::$load(from) }
            }
            #[inline(always)]
            unsafe fn store<S: Simd>(from: S, to: *mut Self) {
                unsafe { from.$store(to) }
            }
            #[inline(always)]
            unsafe fn load_two<S: Simd>(from: *const Self) -> [S; 2] {
                unsafe { S::$load_two(from) }
            }
            #[inline(always)]
            unsafe fn store_two<S: Simd>(from: [S; 2], to: *mut Self) {
                unsafe { S::$store_two(from, to) }
            }
            fn lanes_of_two(bits: u32) -> [u16; 2] {
                $lanes(bits)
            }
        }
        impl Logit for $type {
            fn to_f32(self) -> f32 {
                $to(self)
            }
            fn from_f32(value: f32) -> Self {
                $from(value)
            }
            fn pick<K>(of: [K; 3]) -> K {
                let [f32, f16, bf16] = of;
                [Some(f32), Some(f16), Some(bf16)][$at].take().expect("there")
            }
        })*
    };
}
logit! {
    f32, 0, std::convert::identity, std::convert::identity, load, store, load_two, store_two, halves;
    f16, 1, f16::to_f32, f16::from_f32, load_f16, store_f16, load_two_f16, store_two_f16, halves;
    bf16, 2, bf16::to_f32, bf16::from_f32, load_bf16, store_bf16, load_two_bf16, store_two_bf16, even_and_odd;
}

fn halves(bits: u32) -> [u16; 2] {
    [bits as u16, (bits >> 16) as u16]
}

/// The bits in even places, and those in odd ones.
fn even_and_odd(bits: u32) -> [u16; 2] {
    [bits, bits >> 1].map(|bits| {
        let mut bits = bits & 0x5555_5555;
        for (by, places) in [(1, 0x3333_3333), (2, 0x0F0F_0F0F), (4, 0x00FF_00FF), (8, 0x0000_FFFF)] {
            bits = (bits | bits >> by) & places;
        }
        bits as u16
    })
}

/// Which softmax: of `scale`·logits, over the tokens that `mask` allows, in rows `stride` apart.
pub struct SoftmaxOptions<'a, B: Memory> {
    /// The inverse temperature, from 1e-30 to 1e30.
    pub scale: f32,
    /// Bit t mod 32 of word ⌊t/32⌋ says that token t may occur, `[⌈V/32⌉]`; none: all may. The logit of any other token
    /// counts as −∞, whatever it is.
    pub mask: Option<B::View<'a, u32>>,
    /// Values from the beginning of one row of logits to that of the next, V or more; none: V. What lies between two rows
    /// is neither read nor written.
    pub stride: Option<usize>,
}

impl<B: Memory> Clone for SoftmaxOptions<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B: Memory> Copy for SoftmaxOptions<'_, B> {}

impl<B: Memory> Default for SoftmaxOptions<'_, B> {
    /// The plain softmax of rows without gaps.
    fn default() -> Self {
        SoftmaxOptions { scale: 1.0, mask: None, stride: None }
    }
}

impl<B: Memory> SoftmaxOptions<'_, B> {
    /// `Ok` where the options are in their ranges and `logits` values are `rows` rows of a vocabulary that exists.
    pub(crate) fn check(&self, vocab: usize, rows: usize, logits: usize) -> Result<()> {
        if vocab == 0 || u32::try_from(vocab).is_err() {
            return Err(Error::argument("vocabulary", "1 to 2³² − 1 tokens", vocab));
        }
        if !(1e-30..=1e30).contains(&self.scale) {
            return Err(Error::argument("scale of the logits", "1e-30 to 1e30", self.scale));
        }
        let stride = self.stride(vocab);
        if stride < vocab {
            return Err(Error::argument("stride of the logits", format!("{vocab} values or more"), stride));
        }
        self.mask
            .as_ref()
            .map_or(Ok(()), |mask| expect_len("words of the mask", vocab.div_ceil(32), B::view_len(mask)))?;
        // The last row need not be followed by a gap.
        let most = rows.saturating_mul(stride);
        let least = most.saturating_sub(stride - vocab);
        if stride > vocab && (least..most).contains(&logits) { Ok(()) } else { expect_len("logits", most, logits) }
    }

    /// Values from one row to the next.
    pub(crate) fn stride(&self, vocab: usize) -> usize {
        self.stride.unwrap_or(vocab)
    }
}

impl SoftmaxOptions<'_, Cpu> {
    /// Whether the mask lets a token occur.
    pub(crate) fn allows(&self, token: usize) -> bool {
        self.mask.is_none_or(|mask| mask[token / 32] >> (token % 32) & 1 == 1)
    }

    /// A row in f32 with −∞ for what the mask forbids.
    pub(crate) fn row<T: Logit>(&self, row: &[T]) -> Vec<f32> {
        let logit = |(token, logit): (usize, &T)| if self.allows(token) { logit.to_f32() } else { f32::NEG_INFINITY };
        row.iter().enumerate().map(logit).collect()
    }
}
