//! Counter-based randomness: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
//!
//! A draw is a pure function of (seed, global sequence number, position, purpose), so that results do not depend on
//! thread counts or batch splits, and CPU and GPU draw the same uniforms.

/// What a random number is for. Two purposes never share a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum Purpose {
    /// Synthetic data sets.
    Data = 1,
    /// Initial parameters.
    Init = 2,
    /// The order of training examples.
    Shuffle = 3,
    /// Dropout masks.
    Dropout = 4,
    /// Samples that fit the coefficients (Training-1).
    Fit = 5,
    /// Samples that train the policy (Training-2).
    Tune = 6,
    /// Samples that only judge: swap tests, reported estimates.
    Evaluate = 7,
    /// Accept or reject.
    Accept = 8,
    /// A user's own draws.
    User = 9,
    /// Which of the weighted samples live on.
    Resample = 10,
    /// Where sequences are ended to be held against themselves.
    Prefix = 11,
}

/// Where a batch of sequences takes its uniforms from: sequence `i` of the batch uses the counter
/// `(first + i, position, purpose)` under the key `seed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// The key.
    pub seed: u64,
    /// What the draws are for.
    pub purpose: Purpose,
    /// The global number of the batch's first sequence.
    pub first: u64,
}

impl Draw {
    /// Draws for `purpose` under `seed`, from sequence 0 on.
    pub fn new(seed: u64, purpose: Purpose) -> Self {
        Draw { seed, purpose, first: 0 }
    }

    /// The same stream, starting `sequences` later.
    pub fn skip(self, sequences: u64) -> Self {
        Draw { first: self.first + sequences, ..self }
    }

    /// The uniform of sequence `first + index` at `position`: a multiple of 2⁻²⁴ in [0, 1).
    #[inline]
    pub fn uniform(&self, index: u64, position: u32) -> f32 {
        to_unit(philox(self.seed, self.first + index, position, self.purpose as u32)[0])
    }

    /// A uniform of 53 bits in [0, 1), a multiple of 2⁻⁵³: for decisions of probabilities below 2⁻²⁴.
    #[inline]
    pub fn fine_uniform(&self, index: u64, position: u32, lane: u32) -> f64 {
        let [high, low, ..] = self.words(index, position, lane);
        ((u64::from(high) << 32 | u64::from(low)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Four independent words for (sequence `first + index`, `position`); `lane` below 2²⁴ separates further draws.
    #[inline]
    pub fn words(&self, index: u64, position: u32, lane: u32) -> [u32; 4] {
        debug_assert!(lane < 1 << 24);
        philox(self.seed, self.first + index, position, self.purpose as u32 | lane << 8)
    }
}

/// The top 24 bits of a word as a multiple of 2⁻²⁴ in [0, 1): exact in f32, never 1.
#[inline]
pub fn to_unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// Philox4x32-10: key = `seed`, counter = (`sequence` low, `sequence` high, `position`, `purpose`).
#[inline]
pub fn philox(seed: u64, sequence: u64, position: u32, purpose: u32) -> [u32; 4] {
    let mut counter = [sequence as u32, (sequence >> 32) as u32, position, purpose];
    let mut key = [seed as u32, (seed >> 32) as u32];
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
    }
    counter
}

/// A permutation of 0..n, the same for the same (draw, n): Fisher–Yates with Philox words at `position`.
pub fn permutation(draw: Draw, position: u32, n: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    for i in (1..n).rev() {
        // Multiply-shift instead of a remainder; its bias is below n / 2³².
        let word = draw.words(i as u64, position, 0)[0];
        order.swap(i, ((u64::from(word) * (i as u64 + 1)) >> 32) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox(0, 0, 0, 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = u32::MAX;
        assert_eq!(philox(u64::MAX, u64::MAX, ones, ones), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let (sequence, seed) = (0x85a3_08d3_243f_6a88, 0x299f_31d0_a409_3822);
        assert_eq!(
            philox(seed, sequence, 0x1319_8a2e, 0x0370_7344),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn unit_interval_is_half_open() {
        assert_eq!(to_unit(0), 0.0);
        assert!(to_unit(u32::MAX) < 1.0);
    }
}
