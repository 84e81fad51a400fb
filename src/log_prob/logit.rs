//! The types that logits come in, and how they become probabilities.

use half::{bf16, f16};

use crate::backend::{Cpu, Element, Memory};
use crate::error::{Error, Result, expect_len};

/// A logit's type: f32, f16 or bf16. Everything is computed in f32 or better.
pub trait Logit: Element + private::Sealed {
    /// The value in f32, exact.
    fn to_f32(self) -> f32;
    /// The nearest value.
    fn from_f32(value: f32) -> Self;
    /// One of three things for f32, f16 and bf16.
    #[doc(hidden)]
    fn pick<K>(of: [K; 3]) -> K;
}

mod private {
    pub trait Sealed {}
}

macro_rules! logit {
    ($($type:ty, $at:literal, $to:expr, $from:expr;)*) => {
        $(impl private::Sealed for $type {}
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
    f32, 0, std::convert::identity, std::convert::identity;
    f16, 1, f16::to_f32, f16::from_f32;
    bf16, 2, bf16::to_f32, bf16::from_f32;
}

/// Which softmax: of `scale`·logits, over the tokens that `mask` allows.
pub struct SoftmaxOptions<'a, B: Memory> {
    /// The inverse temperature, above 0.
    pub scale: f32,
    /// Bit t mod 32 of word ⌊t/32⌋ says that token t may occur, `[⌈V/32⌉]`; none: all may. The logit of any other token
    /// counts as −∞, whatever it is.
    pub mask: Option<B::View<'a, u32>>,
}

impl<B: Memory> Default for SoftmaxOptions<'_, B> {
    /// The plain softmax.
    fn default() -> Self {
        SoftmaxOptions { scale: 1.0, mask: None }
    }
}

impl<B: Memory> SoftmaxOptions<'_, B> {
    pub(crate) fn check(&self, vocab: usize) -> Result<()> {
        if !(self.scale > 0.0 && self.scale.is_finite()) {
            return Err(Error::argument("scale of the logits", "a positive finite number", self.scale));
        }
        self.mask.as_ref().map_or(Ok(()), |mask| expect_len("words of the mask", vocab.div_ceil(32), B::view_len(mask)))
    }
}

impl SoftmaxOptions<'_, Cpu> {
    /// The row in f32 with −∞ for what the mask forbids: itself where it is that already, else in `room`.
    pub(crate) fn row<'r, T: Logit>(&self, row: &'r [T], room: &'r mut Vec<f32>) -> &'r [f32] {
        if let (Some(row), None) = (T::pick([bytemuck::try_cast_slice(row).ok(), None, None]), self.mask) {
            return row;
        }
        room.clear();
        room.extend(row.iter().map(|logit| logit.to_f32()));
        if let Some(mask) = self.mask {
            let forbidden = |token: usize| mask[token / 32] >> (token % 32) & 1 == 0;
            (0..room.len()).filter(|&token| forbidden(token)).for_each(|token| room[token] = f32::NEG_INFINITY);
        }
        room
    }
}
