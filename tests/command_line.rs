//! Bad options of the examples: one line with what was expected and what was got, exit status 2, nothing written.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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
        &["--seed", "1", "--seed", "2"],
    ];
    for words in cases {
        refused("motif", words, 2);
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
    ];
    for (text, line, reason) in cases {
        let said = refused_config("motif", text, &[], 2);
        assert!(said.contains(line) && said.contains(reason), "{text:?}: {said}");
    }
    let said = refused_config("text", "want = [\"ing=.5\", \"ing\"]\n", &[], 2);
    assert!(said.contains("line 1: --want: expected PATTERN=MOMENT"), "{said}");
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
