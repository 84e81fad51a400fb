//! SIMD, chosen at run time.
