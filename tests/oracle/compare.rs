//! Comparators that know NaN, infinities and units in the last place.

/// A float whose precision a comparison respects.
pub trait Value: Copy {
    fn wide(self) -> f64;
    /// The distance from |at| to the next representable number above it.
    fn ulp(at: f64) -> f64;
}

impl Value for f32 {
    fn wide(self) -> f64 {
        f64::from(self)
    }

    fn ulp(at: f64) -> f64 {
        let at = at.abs() as f32;
        f64::from(at.next_up()) - f64::from(at)
    }
}

impl Value for f64 {
    fn wide(self) -> f64 {
        self
    }

    fn ulp(at: f64) -> f64 {
        at.abs().next_up() - at.abs()
    }
}

/// Each `got` lies within max(`tolerance`, 1 ulp of its type) of `want`; NaN matches NaN only, an infinity itself only.
#[track_caller]
pub fn assert_close<G: Value, W: Value>(name: &str, got: &[G], want: &[W], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{name}: number of values");
    let close = |got: f64, want: f64| {
        if want.is_nan() || want.is_infinite() {
            return got == want || (got.is_nan() && want.is_nan());
        }
        // A NaN difference fails.
        (got - want).abs() <= tolerance.max(G::ulp(want))
    };
    let pairs = || got.iter().zip(want).map(|(got, want)| (got.wide(), want.wide())).enumerate();
    let wrong: Vec<_> = pairs().filter(|&(_, (got, want))| !close(got, want)).collect();
    let first: Vec<_> = (wrong.iter().take(8))
        .map(|(at, (got, want))| format!("[{at}] got {got:e}, want {want:e}, off by {:e}", got - want))
        .collect();
    let (count, total) = (wrong.len(), got.len());
    assert!(wrong.is_empty(), "{name}: {count} of {total} differ by more than {tolerance:e}:\n{}", first.join("\n"));
}

/// ‖got − want‖ ≤ `tolerance`·‖want‖ over a whole parameter block (Euclidean); a block of zeros must be zeros.
#[track_caller]
pub fn assert_block_close<G: Value, W: Value>(name: &str, got: &[G], want: &[W], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{name}: number of values");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let off = norm(&mut got.iter().zip(want).map(|(got, want)| got.wide() - want.wide()));
    let size = norm(&mut want.iter().map(|want| want.wide()));
    // A NaN is not within anything.
    let within = off <= tolerance * size;
    if within {
        return;
    }
    let deviation = |i: &usize| (got[*i].wide() - want[*i].wide()).abs();
    let worst = (0..got.len()).max_by(|a, b| deviation(a).total_cmp(&deviation(b))).expect("not empty");
    let (got, want) = (got[worst].wide(), want[worst].wide());
    panic!("{name}: off by {off:e} of {size:e} (tolerance {tolerance:e}); worst [{worst}] {got:e}, want {want:e}");
}
