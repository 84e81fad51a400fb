//! The kernels over whole sequences: tokens, potential, weights, statistics.

use ebm_dpg::backend::gpu::{Gpu, Launcher};
use ebm_dpg::backend::{Cpu, Memory};
use ebm_dpg::models::Scorer;
use ebm_dpg::potential::{Potential, Product, Reward, Role, model, reward as reward_of};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Contexts, Space};
use ebm_dpg::weights::{WeightedRows, mix, statistics, weights};

mod support;
use support::{bits, bits64, download, noise, on_every_backend, upload};

on_every_backend!(
    rows_move_as_on_the_cpu,
    rows_begin_as_on_the_cpu,
    potentials_have_the_bits_of_the_cpu,
    products_of_scorers_have_the_bits_of_the_cpu,
    weights_follow_the_cpu_and_name_the_first_bad_row,
    mixtures_follow_the_cpu_and_keep_infinity_and_nan,
    statistics_follow_the_cpu,
    statistics_name_bad_rows,
);

mod cases {
    use super::*;

    /// Sequences of every length, some cut.
    fn batch(space: Space, rows: usize) -> Batch {
        let sequence = |row: usize| {
            let length = row % space.longest as usize;
            let mut tokens: Vec<u32> = (0..length).map(|t| ((row * 7 + t * 3) % 4) as u32).collect();
            tokens.push(if length + 1 == space.longest as usize && row.is_multiple_of(2) { 1 } else { space.eos });
            tokens
        };
        let mut batch = Batch::from_sequences(space, &(0..rows).map(sequence).collect::<Vec<_>>()).unwrap();
        for row in 0..rows {
            (batch.given[row], batch.context[row]) = (row as u32 % batch.lengths[row], 3 * row as u32);
        }
        batch
    }

    fn on_device<L: Launcher>(gpu: &Gpu<L>, batch: &Batch) -> Batch<Gpu<L>> {
        let (tokens, lengths) = (upload(gpu, &batch.tokens), upload(gpu, &batch.lengths));
        let (given, context) = (upload(gpu, &batch.given), upload(gpu, &batch.context));
        Batch { space: batch.space, rows: batch.rows, tokens, lengths, given, context }
    }

    pub fn rows_move_as_on_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        for longest in [1, 3, 32, 33] {
            let space = Space::new(4, longest).unwrap();
            let host = batch(space, 19);
            let device = on_device(gpu, &host);
            let mut to_host = Batch::with_capacity(&Cpu, space, 24).unwrap();
            let mut to_device = Batch::with_capacity(gpu, space, 24).unwrap();
            for rows in [vec![], vec![18], (0..19).rev().collect(), vec![3; 24]] {
                to_host.gather(&Cpu, &host, &rows).unwrap();
                to_device.gather(gpu, &device, &rows).unwrap();
                let at = rows.len().min(23);
                to_host.copy_rows(&Cpu, &host, &[7], at).unwrap();
                to_device.copy_rows(gpu, &device, &[7], at).unwrap();
                assert_same_rows(gpu, &to_device, &to_host);
            }
            assert!(to_device.gather(gpu, &device, &[19]).is_err());
        }
    }

    #[track_caller]
    fn assert_same_rows<L: Launcher>(gpu: &Gpu<L>, device: &Batch<Gpu<L>>, host: &Batch) {
        assert_eq!(download(gpu, &device.lengths), host.lengths);
        assert_eq!(download(gpu, &device.tokens), host.tokens);
        assert_eq!(
            (download(gpu, &device.given), download(gpu, &device.context)),
            (host.given.clone(), host.context.clone())
        );
    }

    /// Fewer contexts than a batch takes up and more, a batch that begins within a context's turn, more rows than warps.
    pub fn rows_begin_as_on_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        for (longest, count, draws, first, rows) in
            [(3, 1, 1, 0, 1), (33, 3, 4, 6, 50), (35, 40, 2, 77, 19), (3, 2, 100, 1 << 40, 300)]
        {
            let space = Space::new(4, longest).unwrap();
            let context = |number: usize| (0..number % longest as usize).map(|t| ((number + t) % 4) as u32).collect();
            let contexts: Vec<Vec<u32>> = (0..count).map(context).collect();
            let contexts = Contexts::new(space, &contexts, draws).unwrap();
            let (mut host, mut device) =
                (Batch::with_capacity(&Cpu, space, rows).unwrap(), Batch::with_capacity(gpu, space, rows).unwrap());
            let draw = Draw::new(0, Purpose::User).skip(first);
            host.begin(&Cpu, &contexts, draw).unwrap();
            device.begin(gpu, &contexts.upload(gpu).unwrap(), draw).unwrap();
            assert_same_rows(gpu, &device, &host);
        }
    }

    pub fn potentials_have_the_bits_of_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        let kinds = [Role::Tilt(0.37), Role::Ignore, Role::Require(1.0), Role::Tilt(-0.0), Role::Require(0.0)];
        for (features, rows) in [(0, 5), (1, 257), (4, 300), (7, 300), (12, 1), (5, 0)] {
            let roles: Vec<Role> = (0..features).map(|f| kinds[f * 3 % kinds.len()]).collect();
            let mut phi: Vec<f32> = noise(1, rows * features).iter().map(|v| (v * 4.0).round() / 4.0).collect();
            let odd = [f32::NAN, 1.0, 0.0, f32::INFINITY];
            (0..phi.len()).for_each(|i| phi[i] = if i % 5 < 4 { odd[i / 5 % 3] } else { phi[i] });
            (0..phi.len()).step_by(61).for_each(|i| phi[i] = f32::NAN);
            let mut base: Vec<f64> = noise(2, rows).iter().map(|&v| f64::from(v) * 40.0).collect();
            base.iter_mut().step_by(11).for_each(|b| *b = f64::NEG_INFINITY);
            base.iter_mut().skip(3).step_by(17).for_each(|b| *b = f64::NAN);
            let mut want = vec![0.0; rows];
            Potential::new(&Cpu, &roles).unwrap().log_potential(&Cpu, &base, &phi, &mut want).unwrap();
            let potential = Potential::new(gpu, &roles).unwrap();
            let (base, phi, mut out) = (upload(gpu, &base), upload(gpu, &phi), upload(gpu, &vec![7.0_f64; rows]));
            let (base, phi) = (Gpu::<L>::view(&base, rows), Gpu::<L>::view(&phi, rows * features));
            potential.log_potential(gpu, base, phi, Gpu::<L>::view_mut(&mut out, rows)).unwrap();
            assert_eq!(bits64(&download(gpu, &out)), bits64(&want), "{features} features, {rows} rows");
        }
    }

    pub fn products_of_scorers_have_the_bits_of_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        fn scores<B: ebm_dpg::backend::Backend>(backend: &B, space: Space, batch: &Batch<B>) -> Vec<f64> {
            let reward = |seed: u64| {
                let value =
                    move |row: usize| if row % 9 == 4 { f64::NEG_INFINITY } else { noise(seed, row + 1)[row].into() };
                Reward::new(backend, space, move |batch| (0..batch.rows).map(value).collect())
            };
            let (mut one, mut two, mut three) = (reward(1), reward(2), reward(3));
            let formula = model("one").pow(0.3) * reward_of("two", 0.7) * model("three");
            let parts: Vec<(&str, &mut dyn Scorer<B>)> =
                vec![("three", &mut three), ("one", &mut one), ("two", &mut two)];
            let mut product = Product::new(backend, &formula, parts).unwrap();
            let mut out = backend.zeros(batch.rows, "scores").unwrap();
            product.score(batch, B::view_mut(&mut out, batch.rows)).unwrap();
            let mut host = vec![0.0; batch.rows];
            backend.download(&out, &mut host).unwrap();
            host
        }
        for rows in [0, 1, 300] {
            let space = Space::new(4, 5).unwrap();
            let host = batch(space, rows);
            let (got, want) = (scores(gpu, space, &on_device(gpu, &host)), scores(&Cpu, space, &host));
            assert_eq!(bits64(&got), bits64(&want), "{rows} rows");
        }
    }

    /// (log P, log q), some P zero.
    fn drawn(rows: usize) -> (Vec<f64>, Vec<f64>) {
        let log_q: Vec<f64> = noise(3, rows).iter().map(|&v| f64::from(v) * 5.0 - 20.0).collect();
        let off = noise(4, rows);
        let log_p = (0..rows).map(|i| if i % 7 == 2 { f64::NEG_INFINITY } else { log_q[i] + f64::from(off[i]) * 3.0 });
        (log_p.collect(), log_q)
    }

    pub fn weights_follow_the_cpu_and_name_the_first_bad_row<L: Launcher>(gpu: &Gpu<L>) {
        let run = |log_p: &[f64], log_q: &[f64]| {
            let rows = log_p.len();
            let (log_p, log_q) = (upload(gpu, log_p), upload(gpu, log_q));
            let (mut log_w, mut w) = (upload(gpu, &vec![7.0_f64; rows]), upload(gpu, &vec![7.0_f32; rows]));
            let (p, q) = (Gpu::<L>::view(&log_p, rows), Gpu::<L>::view(&log_q, rows));
            let out = (Gpu::<L>::view_mut(&mut log_w, rows), Gpu::<L>::view_mut(&mut w, rows));
            weights(gpu, p, q, 0.25, out.0, out.1).unwrap();
            let fault = gpu.check();
            (download(gpu, &log_w), download(gpu, &w), fault)
        };
        let (mut log_p, mut log_q) = drawn(517);
        let (mut want, mut want_w) = (vec![0.0; 517], vec![0.0; 517]);
        weights(&Cpu, &log_p, &log_q, 0.25, &mut want, &mut want_w).unwrap();
        let (got, got_w, fault) = run(&log_p, &log_q);
        fault.unwrap();
        assert_eq!(got, want);
        for (a, b) in got_w.iter().zip(&want_w) {
            assert!((a - b).abs() <= b * 1.2e-7, "{a} and {b}");
        }
        (log_p[400], log_p[300], log_q[301], log_p[302]) = (f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 200.0);
        assert!(weights(&Cpu, &log_p, &log_q, 0.25, &mut want, &mut want_w).is_err());
        let (got, got_w, fault) = run(&log_p, &log_q);
        assert!(fault.unwrap_err().to_string().ends_with("row 300"));
        assert_eq!((bits64(&got), got_w[400].is_nan()), (bits64(&want), true));
        assert_eq!(bits(&got_w).iter().filter(|&&w| w == f32::NAN.to_bits()).count(), 4);
        run(&[], &[]).2.unwrap();
    }

    pub fn mixtures_follow_the_cpu_and_keep_infinity_and_nan<L: Launcher>(gpu: &Gpu<L>) {
        for rows in [0, 1, 300, 1025] {
            let (mut log_other, mut log_q) = drawn(rows);
            log_q.iter_mut().skip(4).step_by(5).for_each(|log_q| *log_q = f64::NEG_INFINITY);
            log_q.iter_mut().skip(3).step_by(13).for_each(|log_q| *log_q = f64::NAN);
            log_other.iter_mut().skip(5).step_by(17).for_each(|log_other| *log_other = f64::NAN);
            let shares = [0.2_f64.ln(), 0.8_f64.ln()];
            let (mut device, other) = (upload(gpu, &log_q), upload(gpu, &log_other));
            mix(gpu, Gpu::<L>::view_mut(&mut device, rows), Gpu::<L>::view(&other, rows), shares).unwrap();
            let before = log_q.clone();
            mix(&Cpu, &mut log_q, &log_other, shares).unwrap();
            for (row, (got, want)) in download(gpu, &device).iter().zip(&log_q).enumerate() {
                let given = format!("{rows} rows, {row}: {} and {}", before[row], log_other[row]);
                assert_eq!(got.is_nan(), before[row].is_nan() || log_other[row].is_nan(), "{given}");
                let close = (got - want).abs() <= 1e-14 * want.abs();
                assert!(got == want || got.is_nan() && want.is_nan() || close, "{given}: {got}, CPU {want}");
            }
            // Both components may be unable to draw a row.
            assert_eq!(rows > 100, log_q.contains(&f64::NEG_INFINITY));
        }
    }

    pub fn statistics_follow_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        for (rows, features) in [(1, 3), (1023, 0), (2100, 2), (1024, 1)] {
            let (log_p, log_q) = drawn(rows);
            let log_w: Vec<f64> = log_p.iter().zip(&log_q).map(|(p, q)| p - q).collect();
            let log_pi: Vec<f64> = log_q.iter().zip(noise(5, rows)).map(|(q, v)| q + f64::from(v)).collect();
            let phi: Vec<f32> = noise(6, rows * features).iter().map(|v| v.abs()).collect();
            let host = WeightedRows::<Cpu> { log_w: &log_w, log_q: &log_q, log_pi: Some(&log_pi), phi: &phi };
            let want = statistics(&Cpu, &host, features, 0.125).unwrap();
            let [w, q, pi] = [&log_w, &log_q, &log_pi].map(|values| upload(gpu, values));
            let phi = upload(gpu, &phi);
            let phi = Gpu::<L>::view(&phi, rows * features);
            let [log_w, log_q, pi] = [&w, &q, &pi].map(|values| Gpu::<L>::view(values, rows));
            for log_pi in [Some(pi), None] {
                let device = WeightedRows { log_w, log_q, log_pi, phi };
                let got = statistics(gpu, &device, features, 0.125).unwrap();
                assert_eq!((got.largest, got.rows), (want.largest, want.rows));
                let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-12 * b.abs(), "{rows} rows: {a} and {b}");
                close(got.log_z, want.log_z);
                close(got.ess, want.ess);
                got.moments.iter().zip(&want.moments).for_each(|(a, b)| close(*a, *b));
                assert_eq!(got.divergences.is_some(), log_pi.is_some());
                if let (Some(got), Some(want)) = (got.divergences, want.divergences) {
                    close(got.kl, want.kl);
                    close(got.tv, want.tv);
                }
            }
        }
    }

    pub fn statistics_name_bad_rows<L: Launcher>(gpu: &Gpu<L>) {
        let (log_p, log_q) = drawn(40);
        let log_w: Vec<f64> = log_p.iter().zip(&log_q).map(|(p, q)| p - q).collect();
        let run = |log_w: &[f64], log_pi: &[f64]| {
            let [w, q, pi] = [log_w, &log_q, log_pi].map(|values| upload(gpu, values));
            let [log_w, log_q, pi] = [&w, &q, &pi].map(|values| Gpu::<L>::view(values, 40));
            let phi = upload::<L, f32>(gpu, &[]);
            let rows = WeightedRows { log_w, log_q, log_pi: Some(pi), phi: Gpu::<L>::view(&phi, 0) };
            statistics(gpu, &rows, 0, 0.0)
        };
        for bad in [f64::NAN, f64::INFINITY] {
            let (mut bad_w, mut bad_pi) = (log_w.clone(), log_q.clone());
            (bad_w[31], bad_pi[17]) = (bad, bad);
            assert_eq!(run(&bad_w, &log_q).unwrap_err().to_string(), "importance weight: not a number at row 31");
            assert!(run(&bad_w, &bad_pi).unwrap_err().to_string().starts_with("log-prob of the policy"));
        }
        let impossible = vec![f64::NEG_INFINITY; 40];
        let none = run(&impossible, &log_q).unwrap();
        assert_eq!((none.log_z, none.ess), (f64::NEG_INFINITY, 0.0));
        assert_eq!(run(&log_w, &impossible).unwrap().divergences.unwrap().kl, f64::INFINITY);
    }
}
