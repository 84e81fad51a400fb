//! Timing passes that a device runs one behind the other, as users launch them.

use std::time::Instant;

use criterion::Bencher;

/// Launches every pass of a sample, then waits once: a wait takes a GPU longer than a short pass does.
pub fn pipelined<W>(bencher: &mut Bencher, work: &mut W, mut launch: impl FnMut(&mut W), wait: impl Fn(&W)) {
    bencher.iter_custom(|passes| {
        let started = Instant::now();
        (0..passes).for_each(|_| launch(work));
        wait(work);
        started.elapsed()
    });
}
