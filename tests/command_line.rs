//! Bad options of the examples: one line with what was expected and what was got, exit status 2, nothing written. And
//! runs that are interrupted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tune::Checkpoint;

/// An example that `cargo test` has built, beside the directory of this test.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let profile = test.ancestors().nth(2).expect("target/<profile>/deps/<test>");
    profile.join("examples").join(name).with_extension(std::env::consts::EXE_EXTENSION)
}

fn run(name: &str, words: &[&str], out: &Path) -> Output {
    let mut command = Command::new(example(name));
    command.args(words);
    if !words.iter().any(|word| word.starts_with("--out")) {
        command.arg("--out").arg(out);
    }
    command.output().expect("cargo test builds the examples; with --test alone, build them by --examples first")
}

/// Runs with bad options, checks what a user sees, and returns its first line.
fn refused(name: &str, words: &[&str], status: i32) -> String {
    let room = tempfile::tempdir().expect("a temporary directory");
    let out = room.path().join("out");
    let output = run(name, words, &out);
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    let first = stderr.lines().next().unwrap_or_default().to_string();
    let case = format!("{name} {words:?}: {stderr}");
    assert_eq!(output.status.code(), Some(status), "{case}");
    assert!(first.starts_with("error: ") && first.contains("expected") && first.contains("got"), "{case}");
    assert!(!stderr.contains("panicked"), "{case}");
    assert!(output.stdout.is_empty(), "{case}");
    assert!(!out.exists(), "{case}: an output directory was made");
    first
}

#[test]
fn counts_of_zero_and_no_counts() {
    for option in ["--batch", "--hidden", "--layers", "--length", "--data-size", "--samples"] {
        for value in ["0", "-1", "1.5", "many", "", "99999999999999999999999"] {
            let line = refused("motif", &[option, value], 2);
            assert!(line.starts_with(&format!("error: {option}:")), "{line}");
        }
        refused("motif", &[option], 2);
    }
}

#[test]
fn counts_that_no_memory_holds() {
    for option in ["--batch", "--hidden", "--layers", "--data-size", "--samples"] {
        let line = refused("motif", &[option, "1000000000000000000"], 2);
        assert!(line.contains(option) && line.contains("GB"), "{line}");
        refused("motif", &[option, &usize::MAX.to_string()], 2);
        refused("text", &[option, &usize::MAX.to_string()], 2);
    }
    refused("motif", &["--length", "4294967294", "--data-size", "100000000"], 2);
}

#[test]
fn learning_rates() {
    for value in ["nan", "NaN", "inf", "-inf", "0", "-0.1", "1e-60", "1e60", "fast"] {
        refused("motif", &["--learning-rate", value], 2);
        refused("text", &[&format!("--learning-rate={value}")], 2);
    }
}

#[test]
fn motifs_and_flags() {
    for value in ["", "012", "abc", "0 1", "é", "1\n0"] {
        refused("motif", &["--motif", value], 2);
    }
    let line = refused("motif", &["--motif", "10001011111000", "--length", "13"], 2);
    assert!(line.contains("at most 13 bits") && line.contains("14 bits"), "{line}");
    for value in ["", "100111", "10011111", "1001112", "v", "x1001111", "1001111M", "m1001111"] {
        refused("motif", &["--features", value], 2);
    }
}

#[test]
fn options_and_values_that_do_not_exist() {
    let cases: &[&[&str]] = &[
        &["--bogus"],
        &["--features", "0000000"],
        &["--bogus=3"],
        &["-x"],
        &["stray"],
        &["--mode", "x"],
        &["--fit", "adam"],
        &["--moments", "exact"],
        &["--method", "ppo"],
        &["--proposal", "policy"],
        &["--target", "false"],
        &["--init", "zero"],
        &["--multiple", "5"],
        &["--seed", "-1"],
        &["--seed", "x"],
        &["--device", "tpu"],
        &["--device", "cuda:x"],
        &["--baseline=yes"],
        &["--divergence", "hellinger"],
        &["--divergence", "alpha:1"],
        &["--divergence", "alpha:nan"],
        &["--clip-weights", "0"],
        &["--beta", "0.5"],
        &["--baseline=leave-one-out"],
        &["--method", "reinforce", "--divergence", "js"],
        &["--method", "kl-control", "--clip-weights", "2"],
        &["--defensive", "1"],
        &["--defensive", "-0.1"],
        &["--defensive", "nan"],
        &["--defensive", "0.1", "--swap", "never"],
        &["--defensive", "0.1", "--method", "distill"],
        &["--defensive", "0.1", "--batch", "1"],
        &["--seed", "1", "--seed", "2"],
    ];
    for words in cases {
        refused("motif", words, 2);
    }
    for (words, what) in [
        (&["--sub-lambda", "0.5"][..], "--sub-lambda: expected --method sub-balance, got --method dpg-off"),
        (&["--sub-prefixes", "3"], "--sub-prefixes: expected --method sub-balance, got --method dpg-off"),
        (&["--method", "sub-balance", "--sub-lambda", "0"], "--sub-lambda: expected a positive"),
        (&["--method", "sub-balance", "--sub-prefixes", "1"], "prefixes of sub-trajectory balance: expected 2 or more"),
        (&["--method", "sub-balance", "--baseline=leave-one-out"], "leave-one-out baseline"),
    ] {
        let line = refused("motif", words, 2);
        assert!(line.contains(what), "{line}");
    }
    for value in ["maybe", "every", "every:", "every:0", "every:-1", "every:x", "KL"] {
        refused("motif", &["--swap", value], 2);
    }
}

#[test]
fn wanted_moments() {
    for value in
        ["ing", "=.5", "^=.5", "$=.5", "^$=.5", "ing=", "ing=x", "ing=nan", "ing=1.5", "ing=-0.1", "ing=50%", ""]
    {
        let line = refused("text", &["--want", value], 2);
        assert!(line.starts_with("error: --want:"), "{line}");
    }
    let contradictions: &[[&str; 2]] =
        &[["ing=.5", "ing=.4"], ["re=.2", "^re=.3"], ["^re$=.3", "re$=.2"], ["string=.5", "ing=.4"]];
    for [a, b] in contradictions {
        refused("text", &["--want", a, "--want", b], 2);
        refused("text", &["--want", b, "--want", a], 2);
    }
}

#[test]
fn wanted_moments_that_the_lines_cannot_have() {
    let line = refused("text", &["--want", "ing=.5", "--want", "z\u{df}=.3"], 1);
    assert!(line.contains("z\u{df}") && line.contains("symbol 2") && line.contains("got \"\u{df}\""), "{line}");
    refused("text", &["--want", "a\tb=.3"], 1);
    let line = refused("text", &["--want", "/a(b/=.3"], 1);
    assert!(line.contains("/a(b/") && line.contains("unclosed group at byte 1"), "{line}");
    let line = refused("text", &["--want", "abcdef=.3", "--length", "5"], 2);
    assert!(line.contains("at most 5 symbols"), "{line}");
}

/// The third distractor is cut to half the motif: nothing is left of it for a motif of one bit.
#[test]
fn flags_that_do_not_fit_the_motif() {
    let line = refused("motif", &["--motif", "0"], 1);
    assert!(line.contains("distractor") && line.contains("got 0"), "{line}");
}

#[test]
fn files_that_hold_no_lines() {
    let room = tempfile::tempdir().expect("a temporary directory");
    let cases: &[(&str, &[u8], &str)] = &[
        ("empty", b"", "at least one line"),
        ("blank", b"\n\r\n\n", "at least one line"),
        ("latin", b"ab\ncaf\xe9\n", "line 2, byte 4: expected UTF-8, got 0xe9"),
        ("few", b"a\nb\n", "3 or more"),
    ];
    for (name, bytes, reason) in cases {
        let file = room.path().join(name);
        std::fs::write(&file, bytes).expect("a file");
        let line = refused("text", &[file.to_str().expect("UTF-8")], 1);
        assert!(line.contains(name) && line.contains(reason), "{line}");
    }
    refused("text", &[room.path().to_str().expect("UTF-8")], 1);
    refused("text", &[room.path().join("none").to_str().expect("UTF-8")], 1);
    let line = refused("text", &["--data-size", "15810"], 1);
    assert!(line.contains("at most 12648"), "{line}");
}

#[test]
fn bases_that_are_no_models_of_these_strings() {
    let room = tempfile::tempdir().expect("a temporary directory");
    let out = room.path().join("small");
    let small = "--hidden 4 --layers 1 --length 6 --data-size 50 --samples 64 --batch 32 --motif 101";
    let made = run("motif", &small.split(' ').collect::<Vec<_>>(), &out);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let whole = out.join("base.safetensors");
    let cut = room.path().join("cut.safetensors");
    std::fs::write(&cut, &std::fs::read(&whole).expect("the base")[..600]).expect("a file");
    let none = room.path().join("none.safetensors");
    for name in ["motif", "text"] {
        // The whole one is over other strings: the defaults are longer.
        for base in [&whole, &cut, &none] {
            let line = refused(name, &["--base", base.to_str().expect("UTF-8")], 1);
            assert!(line.contains("safetensors"), "{line}");
        }
    }
}

#[test]
fn devices_that_this_build_lacks() {
    let line = refused("motif", &["--device", "cuda:0"], 2);
    assert!(line.contains("cuda:0"), "{line}");
}

#[test]
fn targets_that_only_the_cpu_has() {
    let line = refused("motif", &["--target", "true", "--device", "cuda:0"], 2);
    assert!(line.contains("--target true: expected --device cpu"), "{line}");
}

#[test]
fn output_that_cannot_be_written() {
    let room = tempfile::tempdir().expect("a temporary directory");
    let file = room.path().join("file");
    std::fs::write(&file, "in the way").expect("a file");
    for name in ["motif", "text"] {
        for out in [file.clone(), file.join("out")] {
            refused(name, &[&format!("--out={}", out.display())], 1);
        }
    }
    assert_eq!(std::fs::read(&file).expect("still there"), b"in the way");
}

#[test]
fn help_is_no_error() {
    for name in ["motif", "text"] {
        let output = run(name, &["--help"], Path::new("never-made"));
        assert!(output.status.success() && output.stderr.is_empty());
        assert!(String::from_utf8_lossy(&output.stdout).contains("--learning-rate"));
    }
}

/// Runs with `--config` on a file of this text.
fn refused_config(name: &str, text: &str, more: &[&str], status: i32) -> String {
    let room = tempfile::tempdir().expect("a temporary directory");
    let file = room.path().join("run.toml");
    std::fs::write(&file, text).expect("a file");
    let words = [&["--config", file.to_str().expect("UTF-8")], more].concat();
    let line = refused(name, &words, status);
    assert!(line.contains("run.toml"), "{line}");
    line
}

#[test]
fn config_files_name_the_line_that_is_wrong() {
    let cases = [
        ("seed = 1\n\nsamplse = 5\n", "line 3", "expected an option of --help as a key, got samplse"),
        ("# a comment\nsamples = \"many\"\n", "line 2", "--samples: expected a count of 1 or more, got many"),
        ("samples = \"64\"\n", "line 1", "samples: expected a number, got a string"),
        ("motif = 101\n", "line 1", "motif: expected a string, got a number"),
        ("hidden = true\n", "line 1", "--hidden: expected a count"),
        ("hidden = 0\n", "line 1", "got 0"),
        ("hidden = -3\n", "line 1", "got -3"),
        ("learning-rate = nan\n", "line 1", "positive finite"),
        ("baseline = 3\n", "line 1", "--baseline"),
        ("seed = [1, 2]\n", "line 1", "--seed: expected once, got twice"),
        ("seed = 1\nseed = 2\n", "line 2", "expected TOML"),
        ("[tune]\nsamples = 5\n", "line 1", "got a table"),
        ("config = \"other.toml\"\n", "line 1", "other than config itself"),
        ("seed = \n", "line 1", "expected TOML"),
        ("method = \"ppo\"\n", "line 1", "expected one of"),
        ("seed = 1979-05-27\n", "line 1", "got a date"),
        ("seed = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF\n", "line 1", "at most 127 bits"),
        ("dry-run = 1\n", "line 1", "--dry-run: expected no value, got 1"),
    ];
    for (text, line, reason) in cases {
        let said = refused_config("motif", text, &[], 2);
        assert!(said.contains(line) && said.contains(reason), "{text:?}: {said}");
    }
    let said = refused_config("text", "want = [\"ing=.5\", \"ing\"]\n", &[], 2);
    assert!(said.contains("line 1: --want: expected PATTERN=MOMENT"), "{said}");
    let said = refused_config("text", "want = []\n", &[], 2);
    assert!(said.contains("line 1: expected one value or more, got an empty array"), "{said}");
    let none = refused("motif", &["--config", "no-such.toml"], 2);
    assert!(none.contains("no-such.toml") && none.contains("can be read"), "{none}");
}

#[test]
fn a_config_file_says_what_the_command_line_would_and_the_command_line_beats_it() {
    let room = tempfile::tempdir().expect("a temporary directory");
    let file = room.path().join("run.toml");
    let text = "hidden = 4\nlayers = 1\nlength = 6\ndata-size = 50\nsamples = 64\nbatch = 32\nmotif = \"101\"\nseed = 7\nbaseline = true\n";
    std::fs::write(&file, text).expect("a file");
    let report = |words: &[&str], name: &str| {
        let out = room.path().join(name);
        let made = run("motif", words, &out);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let report = std::fs::read_to_string(out.join("report.json")).expect("a report");
        report.split("\"seconds\"").next().expect("seconds come last").to_string()
    };
    let config = ["--config", file.to_str().expect("UTF-8"), "--seed", "9"];
    let small =
        "--hidden 4 --layers 1 --length 6 --data-size 50 --samples 64 --batch 32 --motif 101 --baseline --seed 9";
    let (by_file, by_words) = (report(&config, "a"), report(&small.split(' ').collect::<Vec<_>>(), "b"));
    assert!(by_file.contains("\"seed\": 9") && by_file.contains("\"baseline\": true"), "{by_file}");
    assert_eq!(by_file, by_words);
    // The run leaves its records, one line each, and its events.
    let files = |name: &str| std::fs::read_dir(room.path().join(name)).expect("a directory").count();
    let records = std::fs::read_to_string(room.path().join("a/tuning.jsonl")).expect("records");
    assert!(records.lines().count() > 0 && records.lines().all(|line| line.starts_with("{\"seconds\":")));
    assert_eq!(files("a"), files("b"));
}

#[test]
fn a_config_file_may_hold_switches_other_bases_of_numbers_and_the_file_of_lines() {
    let room = tempfile::tempdir().expect("a temporary directory");
    let (file, lines, out) = (room.path().join("run.toml"), room.path().join("lines"), room.path().join("out"));
    fs::write(&lines, "sing\nring\nrest\nreel\n".repeat(20)).expect("a file");
    let dry = |name: &str, text: &str, words: &[&str]| {
        fs::write(&file, text).expect("a file");
        let output = run(name, &[&["--config", file.to_str().expect("UTF-8")], words].concat(), &out);
        assert!(output.status.success(), "{text:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    dry("motif", "dry-run = true\nresume = false\nhidden = 0x4\nbatch = 0b100\nlength = 3_0\n", &[]);
    assert!(!out.exists());
    // The command line's file beats that of the config.
    let words = ["--dry-run", "--hidden", "4", lines.to_str().expect("UTF-8")];
    dry("text", "file = \"no-such-file\"\n", &words);
}

#[test]
fn two_runs_do_not_share_a_directory_and_the_next_takes_nothing_from_the_last() {
    let room = tempfile::tempdir().expect("a temporary directory");
    let (first, other) = (room.path().join("first"), room.path().join("other"));
    finished("motif", &tiny_motif(), &first);
    finished("motif", &tiny("--data-size 60 --motif 110"), &other);
    let held = fs::File::open(&first).expect("a directory");
    held.try_lock().expect("nobody else's");
    let before = results(&first);
    let refused = run("motif", &tiny_motif().iter().map(String::as_str).collect::<Vec<_>>(), &first);
    let line = String::from_utf8_lossy(&refused.stderr).to_string();
    assert!(refused.status.code() == Some(1) && line.contains("expected a directory of no other run"), "{line}");
    assert_eq!(results(&first), before);
    drop(held);
    // A run with a base of its own has no curve of training, whatever lay there.
    let base = other.join("base.safetensors").display().to_string();
    finished("motif", &tiny(&format!("--data-size 60 --motif 110 --base {base}")), &first);
    assert!(!first.join("base.svg").exists());
    let page = fs::read_to_string(first.join("report.html")).expect("a page");
    assert!(page.contains("Tuning the policy") && !page.contains("Training the base"));
}

#[test]
fn alarms_and_the_bias_of_clipping_are_in_the_report() {
    let room = tempfile::tempdir().expect("a temporary directory");
    let out = room.path().join("out");
    finished("motif", &tiny("--data-size 50 --motif 101 --clip-weights 0.5 --learning-rate 100"), &out);
    let (report, _, _) = results(&out);
    assert!(report.contains("weights were cut: what π was trained towards is up to 0."), "{report}");
    assert!(report.contains("KL(p‖π) has risen to"), "{report}");
    // On-policy draws that have no weight at the last evaluation leave nothing to cut there.
    let few =
        "--data-size 50 --length 9 --motif 101101 --method dpg-on --clip-weights 3 --init base --learning-rate 0.0001";
    let words: Vec<String> = tiny("").into_iter().filter(|word| word != "--length" && word != "6").collect();
    finished("motif", &words.into_iter().chain(few.split(' ').map(String::from)).collect::<Vec<_>>(), &out);
    assert!(!results(&out).0.contains("NaN"));
}

#[test]
fn objectives_without_requirements_say_what_makes_none() {
    let room = tempfile::tempdir().expect("a temporary directory");
    let words = tiny("--data-size 50 --motif 101 --method sub-balance");
    let refused = run("motif", &words.iter().map(String::as_str).collect::<Vec<_>>(), &room.path().join("out"));
    let told = String::from_utf8_lossy(&refused.stderr).to_string();
    assert!(refused.status.code() == Some(1) && told.contains("(--fit sgd makes none"), "{told}");
}

#[test]
fn dry_runs_estimate_and_leave_nothing() {
    for name in ["motif", "text"] {
        let room = tempfile::tempdir().expect("a temporary directory");
        let out = room.path().join("out");
        let output = run(name, &["--dry-run", "--hidden", "8", "--batch", "32"], &out);
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(output.status.success() && !out.exists(), "{text}");
        for what in ["memory, at most", "--hidden, --layers", "policy π", "judgement", "all of them"] {
            assert!(text.contains(what), "{text}");
        }
    }
}

// Runs that are interrupted

/// A run of a second; half of it is the policy's.
const TINY: &str = "--hidden 4 --layers 1 --length 6 --batch 32 --samples 2000 --at-most 300 --seed 5";

fn tiny(more: &str) -> Vec<String> {
    format!("{TINY} {more}").split_whitespace().map(String::from).collect()
}

fn tiny_motif() -> Vec<String> {
    tiny("--data-size 50 --motif 101")
}

/// `name` with `words` to its end.
#[track_caller]
fn finished(name: &str, words: &[String], out: &Path) {
    let made = run(name, &words.iter().map(String::as_str).collect::<Vec<_>>(), out);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// What a run says in the end but for its seconds, the policy byte by byte, and the records but for their seconds.
fn results(out: &Path) -> (String, Vec<u8>, Vec<String>) {
    let text = |name: &str| fs::read_to_string(out.join(name)).expect("a finished run's file");
    let report = text("report.json").split("\"seconds\"").next().expect("seconds come last").to_string();
    let record = |line: &str| line.split_once(",\"samples\"").expect("seconds come first").1.to_string();
    let policy = fs::read(out.join("policy.safetensors")).expect("a policy");
    (report, policy, text("tuning.jsonl").lines().map(record).collect())
}

/// Starts `name` with `--resume` again and again and kills each (SIGKILL) after a random time, a fresh run whenever one has
/// ended, until `least` were killed. Returns how many went on from a checkpoint.
fn kill(name: &str, words: &[String], least: u64) -> usize {
    let room = tempfile::tempdir().expect("a temporary directory");
    let (whole, out) = (room.path().join("whole"), room.path().join("out"));
    let started = Instant::now();
    finished(name, words, &whole);
    let (whole_time, wanted) = (started.elapsed().as_secs_f64(), results(&whole));
    let (moments, mut starts, mut killed, mut resumed) = (Draw::new(1, Purpose::User), 0, 0, 0);
    while killed < least {
        let mut samples = 0;
        loop {
            let log = fs::File::create(room.path().join("log")).expect("a file");
            let mut command = Command::new(example(name));
            command.args(words).arg("--resume").arg("--out").arg(&out).stdout(Stdio::null()).stderr(log);
            resumed += usize::from(samples > 0);
            let mut child = command.spawn().expect("started");
            starts += 1;
            // Up to the time of the whole run, so that kills reach its last acts, too.
            std::thread::sleep(Duration::from_secs_f64(whole_time * f64::from(moments.uniform(starts, 0))));
            child.kill().expect("killed, or ended already");
            let status = child.wait().expect("waited for");
            if status.success() {
                break;
            }
            let log = fs::read_to_string(room.path().join("log")).expect("a log");
            assert_eq!(status.code(), None, "killed, not failed: {log}");
            killed += 1;
            // No checkpoint is ever lost, nor half there.
            let now =
                Checkpoint::load(&out.join("checkpoint.safetensors")).map_or(0, |checkpoint| checkpoint.samples());
            assert!(now >= samples, "{now} draws after {samples}: {log}");
            samples = now;
        }
        assert!(results(&out) == wanted, "{name}, after {killed} kills");
        let names = |directory: &Path| -> Vec<_> {
            let mut names: Vec<_> = fs::read_dir(directory)
                .expect("a directory")
                .map(|entry| entry.expect("an entry").file_name())
                .collect();
            // The time stands in the name of the event file.
            names.retain(|name| !name.to_string_lossy().starts_with("events.out"));
            names.sort();
            names
        };
        assert_eq!(names(&out), names(&whole), "nothing is left over");
        fs::remove_dir_all(&out).expect("removed");
    }
    resumed
}

#[test]
fn killed_at_fifty_random_moments_motif_ends_as_if_it_never_was() {
    let resumed = kill("motif", &tiny_motif(), 50);
    assert!(resumed >= 10, "only {resumed} went on from a checkpoint");
}

#[test]
fn killed_at_random_moments_text_ends_as_if_it_never_was() {
    let room = tempfile::tempdir().expect("a temporary directory");
    let lines = room.path().join("lines");
    fs::write(&lines, "sing\nring\nrest\nreel\nlane\nbring\nking\nstar\n".repeat(20)).expect("a file");
    kill("text", &tiny(&format!("--want ing=.5 --swap tv {}", lines.display())), 8);
}

#[test]
fn resuming_a_finished_run_changes_nothing_and_other_options_are_refused() {
    let room = tempfile::tempdir().expect("a temporary directory");
    let out = room.path().join("out");
    finished("motif", &tiny_motif(), &out);
    let before = results(&out);
    let resume: Vec<String> = tiny_motif().into_iter().chain(["--resume".into()]).collect();
    finished("motif", &resume, &out);
    assert_eq!(results(&out), before);
    for (option, value, there) in [
        ("--samples", "1000", "samples, 2000"),
        ("--hidden", "8", "hidden, 4"),
        ("--data-size", "60", "data-size, 50"),
        ("--motif", "110", "motif, \"101\""),
        ("--learning-rate", "0.02", "learning-rate, 0.01"),
    ] {
        let mut words: Vec<&str> = resume.iter().map(String::as_str).collect();
        match words.iter().position(|&word| word == option) {
            Some(at) => words[at + 1] = value,
            None => words.extend([option, value]),
        }
        let refused = run("motif", &words, &out);
        let line = String::from_utf8_lossy(&refused.stderr).lines().next().unwrap_or_default().to_string();
        assert_eq!(refused.status.code(), Some(1), "{line}");
        assert!(
            line.starts_with("error: --resume ") && line.contains(&format!("expected its run's {there}, got ")),
            "{line}"
        );
        assert!(line.ends_with(value) || line.contains(value), "{line}");
        assert_eq!(results(&out), before);
    }
    // Without --resume the run of other options begins, and nothing of the other is taken for its own.
    let mut words = tiny_motif();
    words.extend(["--learning-rate".into(), "0.02".into()]);
    finished("motif", &words, &out);
    assert_ne!(results(&out), before);
}

#[test]
fn beginnings_are_continued_and_reported() {
    let room = tempfile::tempdir().expect("a temporary directory");
    let (lines, beginnings, out) = (room.path().join("lines"), room.path().join("beginnings"), room.path().join("out"));
    fs::write(&lines, "sing\nring\nrest\nreel\n".repeat(20)).expect("a file");
    fs::write(&beginnings, "re\ns\n").expect("a file");
    let file = beginnings.display();
    let words = tiny(&format!("--want ing=.5 --contexts {file} {}", lines.display()));
    let missing = room.path().join("missing").display().to_string();
    let line = refused("text", &[lines.to_str().expect("UTF-8"), "--contexts", &missing, "--want", "ing=.5"], 1);
    assert!(line.starts_with(&format!("error: {missing}: expected a file that can be read")), "{line}");
    finished("text", &words, &out);
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("report.json")).expect("a report")).expect("JSON");
    let contexts = report["contexts"].as_array().expect("a table");
    assert_eq!(contexts.iter().map(|context| &context["text"]).collect::<Vec<_>>(), ["re", "s"]);
    assert!(contexts.iter().all(|context| context["log_z"]["standard_error"].as_f64() > Some(0.0)));
    let said = |text: &str, more: &str, status: i32| {
        fs::write(&beginnings, text).expect("a file");
        let words = tiny(&format!("--want ing=.5 --contexts {file} {more} {}", lines.display()));
        refused("text", &words.iter().map(String::as_str).collect::<Vec<_>>(), status)
    };
    assert!(said("re\nz\n", "", 1).contains("line 2"));
    assert!(said("singsing\n", "", 1).contains("context 0: expected at most 6 tokens"));
    assert!(said("re\n", "--fit sgd", 2).contains("--contexts: expected --fit newton"));
}

#[test]
fn lines_that_changed_are_not_resumed() {
    let room = tempfile::tempdir().expect("a temporary directory");
    let (lines, out) = (room.path().join("lines"), room.path().join("out"));
    fs::write(&lines, "sing\nring\nrest\nreel\n".repeat(20)).expect("a file");
    let words = tiny(&format!("--want ing=.5 {}", lines.display()));
    finished("text", &words, &out);
    fs::write(&lines, "sing\nring\nrest\nreal\n".repeat(20)).expect("a file");
    let resume: Vec<&str> = words.iter().map(String::as_str).chain(["--resume"]).collect();
    let refused = run("text", &resume, &out);
    let line = String::from_utf8_lossy(&refused.stderr).to_string();
    assert!(
        refused.status.code() == Some(1) && line.contains("expected the lines that its run read, got others"),
        "{line}"
    );
}

/// No file may be larger than the first checkpoints: the disk is as good as full.
#[cfg(unix)]
#[test]
fn a_checkpoint_that_does_not_fit_leaves_the_last_one_and_the_run_goes_on_later() {
    let room = tempfile::tempdir().expect("a temporary directory");
    let (whole, out) = (room.path().join("whole"), room.path().join("out"));
    finished("motif", &tiny_motif(), &whole);
    let limited = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 200; exec \"$0\" \"$@\""])
        .arg(example("motif"))
        .args(tiny_motif())
        .arg("--out")
        .arg(&out)
        .output()
        .expect("sh");
    let told = String::from_utf8_lossy(&limited.stderr).to_string();
    let last = told.lines().last().unwrap_or_default();
    assert_eq!(limited.status.code(), Some(1), "{told}");
    let words = ["error: ", "checkpoint.safetensors: cannot be written: "];
    assert!(words.iter().all(|word| last.contains(word)) && !told.contains("panicked"), "{told}");
    let kept = Checkpoint::load(&out.join("checkpoint.safetensors")).expect("the last one that fitted");
    assert!(kept.samples() > 0 && kept.samples() < 2000);
    let left: Vec<_> =
        fs::read_dir(&out).expect("a directory").map(|entry| entry.expect("an entry").file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("tmp")), "{left:?}");
    assert!(!out.join("report.json").exists());
    let resume: Vec<String> = tiny_motif().into_iter().chain(["--resume".into()]).collect();
    finished("motif", &resume, &out);
    assert_eq!(results(&out), results(&whole));
}

#[test]
fn intervals_of_checkpoints() {
    for value in ["0", "-1", "often", "1.5", ""] {
        let line = refused("motif", &["--checkpoint-every", value], 2);
        assert!(line.starts_with("error: --checkpoint-every: expected a count of 1 or more"), "{line}");
    }
}
