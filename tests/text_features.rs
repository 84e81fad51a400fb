//! Features of the text of tokens, large word lists, what a table consists of and how it is stored, and bad input.

use ebm_dpg::Error;
use ebm_dpg::backend::Cpu;
use ebm_dpg::features::{Custom, Feature, FeatureSet, FeatureTable, Spelling};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Lines, Space, Token, Unit, Vocab};

mod strings;

fn evaluate(table: &FeatureTable, batch: &Batch) -> Vec<f32> {
    let mut phi = vec![f32::NAN; batch.rows * table.len()];
    table.evaluate(&Cpu, batch, &mut phi).unwrap();
    phi
}

/// A number below `below`.
fn number(draw: Draw, index: usize, at: usize, below: u32) -> u32 {
    (draw.uniform(index as u64, at as u32) * below as f32) as u32
}

/// Random contents of up to `longest` tokens of `space`.
fn contents(space: Space, symbols: u32, rows: usize, seed: u64) -> Vec<Vec<Token>> {
    let draw = Draw::new(seed, Purpose::User);
    let content = |row| {
        let length = number(draw, row, 0, space.longest + 1) as usize;
        (1..=length).map(|at| number(draw, row, at, symbols)).collect()
    };
    (0..rows).map(content).collect()
}

fn batch(space: Space, contents: &[Vec<Token>]) -> Batch {
    let sequences: Vec<_> = contents.iter().map(|content| strings::sequence(space, content)).collect();
    Batch::from_sequences(space, &sequences).unwrap()
}

/// Tokens that are parts of characters: é and € split in the middle, and bytes that are no UTF-8 at all.
#[test]
fn tokens_that_split_characters() {
    let tokens: [&[u8]; 10] =
        [b"a", b"\xC3", b"\xA9", b"\xC3\xA9", b"\xE2\x82", b"\xAC", b"ab\xE2", b"\x82\xAC!", b"\xFF", b""];
    let space = Space::new(10, 9).unwrap();
    let spelling = Spelling::new(tokens.iter().map(|token| token.to_vec()).chain([const { Vec::new() }; 3]));
    let patterns = [
        "\u{e9}",
        "\u{20ac}",
        "a\u{e9}|\u{e9}a",
        "^.$",
        r"^\w+$",
        r"\u{e9}{2}",
        r"(?-u:\xFF)",
        r"(?s-u:^.{4}$)",
        "[\u{80}-\u{ff}].*\u{20ac}",
        "^$",
        r"(?i)AB",
        r"(?-u:\b)ab",
        "(?m)^a$",
    ];
    let set = FeatureSet::new(space).spelled(spelling).unwrap();
    let set = patterns.iter().fold(set, |set, p| set.with(*p, Feature::Regex(p.to_string())).unwrap());
    let contents = contents(space, 10, 2000, 1);
    let phi = evaluate(&set.compile(&Cpu).unwrap(), &batch(space, &contents));
    let which: Vec<usize> = (0..set.len()).collect();
    for (k, pattern) in patterns.iter().enumerate() {
        let regex = regex::bytes::Regex::new(pattern).unwrap();
        let automaton = set.automaton(&which[k..=k], 1000).unwrap();
        let mut found = 0;
        for (row, content) in contents.iter().enumerate() {
            let want = f32::from(u8::from(regex.is_match(&set.spelling().unwrap().text(content).unwrap())));
            assert_eq!(phi[row * set.len() + k], want, "{pattern} in {content:?}");
            assert_eq!(automaton.values(automaton.run(content))[0], want, "{pattern} in {content:?}");
            found += u32::from(want == 1.0);
        }
        assert!(found > 0, "{pattern} was never found");
    }
}

#[test]
fn words_are_separated_by_a_blank() {
    let lines = Lines::from_text("to be or not to be\nor to\nbe\n", Unit::Words, None, None).unwrap();
    let longest = lines.batch.space.longest;
    let set = FeatureSet::over(&lines.vocab, longest).unwrap();
    let patterns = ["o b", "^to", "be$", "^be$", "^or to$", "t t", "  ", "^ "];
    let set = patterns.iter().fold(set, |set, p| set.with(*p, Feature::Regex(p.to_string())).unwrap());
    let set = set.with("text", Feature::AnyText(vec!["r no".into(), "r t".into()])).unwrap();
    let phi = evaluate(&set.compile(&Cpu).unwrap(), &lines.batch);
    assert_eq!(phi[..9], [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0]);
    assert_eq!(phi[9..18], [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
    assert_eq!(phi[18..], [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
}

/// Pronounceable tokens of one to four syllables, some of them beginning with a blank: enough for a large vocabulary.
fn syllables(count: usize) -> Vec<String> {
    let (first, second) = (b"bcdfghjklmnprstvz", b"aeiou");
    let syllable = |n: usize| [first[n % 17] as char, second[n / 17 % 5] as char].iter().collect::<String>();
    let token = |n: usize| {
        let blank = if n.is_multiple_of(3) { " " } else { "" };
        let mut text = format!("{blank}{}", syllable(n));
        let mut rest = n / 85;
        while rest > 0 {
            text += &syllable(rest);
            rest /= 85;
        }
        text
    };
    (0..count).map(token).collect()
}

/// A list of words that are mostly split across the tokens of a large vocabulary, a short expression, and the list.
fn word_list(symbols: u32, words: usize) -> (FeatureSet, Vec<String>) {
    let space = Space::new(symbols, 20).unwrap();
    let tokens = syllables(symbols as usize);
    let draw = Draw::new(5, Purpose::User);
    let word = |n| pieces(draw, n).map(|piece| &tokens[piece as usize][..]).concat();
    let list: Vec<String> = (0..words).map(word).collect();
    let spelling = Spelling::new(tokens.iter().cloned().chain([const { String::new() }; 3]));
    let set = FeatureSet::new(space).spelled(spelling).unwrap();
    let set = set.with("list", Feature::AnyText(list.clone())).unwrap();
    (set.with("few", Feature::Regex(FEW.into())).unwrap(), list)
}

/// The tokens of word n: two without blanks.
fn pieces(draw: Draw, n: usize) -> [Token; 2] {
    [0, 1].map(|at| 3 * number(draw, n, at, 2300) + 1)
}

const FEW: &str = "(?:ba|ce)(?:di|fo)";

/// Seconds and bytes, for the record: `cargo test --release --test text_features -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_word_list() {
    let (set, _) = word_list(50_000, 5_000);
    let peak = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap().to_string();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() >> 10
    };
    let (before, started) = (peak(), std::time::Instant::now());
    let table = set.compile(&Cpu).unwrap();
    println!("{:.2} s, peak {before} → {} MiB\n{}", started.elapsed().as_secs_f64(), peak(), table.report());
}

#[test]
fn a_word_list_against_a_large_vocabulary() {
    let symbols = 50_000;
    let (set, list) = word_list(symbols, 5_000);
    let space = set.space();
    let table = set.compile(&Cpu).unwrap();
    let report = table.report();
    assert!(report.bytes < 200 << 20, "{report}");
    assert_eq!(report.entries.iter().filter(|entry| entry.path == "spelled automaton").count(), 1, "{report}");
    let mut contents = contents(space, symbols, 3000, 3);
    for (n, content) in contents.iter_mut().enumerate().skip(1500).filter(|(_, content)| content.len() > 3) {
        let at = n % (content.len() - 1);
        content[at..at + 2].copy_from_slice(&pieces(Draw::new(5, Purpose::User), n));
    }
    let phi = evaluate(&table, &batch(space, &contents));
    let regex = regex::bytes::Regex::new(FEW).unwrap();
    let finder = regex::bytes::RegexSet::new([list.join("|")]).unwrap();
    let mut found = 0.0;
    for (row, content) in contents.iter().enumerate() {
        let text = set.spelling().unwrap().text(content).unwrap();
        assert_eq!(phi[2 * row], f32::from(u8::from(finder.is_match(&text))), "{content:?}");
        assert_eq!(phi[2 * row + 1], f32::from(u8::from(regex.is_match(&text))), "{content:?}");
        found += phi[2 * row];
    }
    assert!((100.0..2900.0).contains(&found), "{found} of 3000");
}

#[test]
fn a_list_of_many_tokens_is_spelled_in_digits() {
    let space = Space::new(30_000, 30).unwrap();
    let draw = Draw::new(7, Purpose::User);
    for (alphabet, paths) in [(200, "automaton"), (1000, "spelled automaton"), (29_000, "spelled automaton")] {
        let word = |n| (0..2 + n % 2).map(|at| number(draw, n, at, alphabet)).collect::<Vec<_>>();
        let words: Vec<_> = (0..1500).map(word).collect();
        let set = FeatureSet::new(space).with("list", Feature::AnyOf(words.clone())).unwrap();
        let set = set.with("other", Feature::Contains(vec![29_999])).unwrap();
        let table = set.compile(&Cpu).unwrap();
        assert_eq!(table.report().entries[0].path, paths, "{}", table.report());
        let mut contents = contents(space, alphabet, 600, 8);
        for (content, word) in contents.iter_mut().zip(&words).step_by(3).filter(|(content, _)| content.len() > 3) {
            content.truncate(content.len() - 3);
            content.extend(word);
        }
        let phi = evaluate(&table, &batch(space, &contents));
        for (row, content) in contents.iter().enumerate() {
            let found = words.iter().any(|word| content.windows(word.len()).any(|window| window == word));
            assert_eq!(phi[2 * row], f32::from(u8::from(found)), "{alphabet}: {content:?}");
        }
        assert!(phi.iter().step_by(2).sum::<f32>() > 100.0);
    }
}

/// What counts: places, not searches one behind the other; anchors and boundaries, which the next byte decides; marks in
/// tokens of several bytes, several in one token.
#[test]
fn counts_over_text() {
    let spelling = Spelling::new(["a", "aa", "b", " ", "ba b", "", "", ""]);
    let set = FeatureSet::new(Space::new(5, 6).unwrap()).spelled(spelling).unwrap();
    let regex = |pattern: &str| Feature::Regex(pattern.into()).count(8);
    let set = [regex("a"), regex("a+"), regex(r"\w+(?-u:\b)"), regex("a$"), regex("^a"), regex("b ?b")]
        .into_iter()
        .chain([Feature::AnyText(["a", "aa", "b b"].map(String::from).to_vec()).count(8)])
        .fold(set, |set, feature| set.with(format!("{feature:?}"), feature).unwrap());
    let cases: [(&[Token], [u8; 7]); 5] = [
        (&[0, 1], [3, 3, 1, 1, 1, 0, 3]),
        (&[1, 3, 4, 2], [3, 3, 3, 0, 1, 1, 3]),
        (&[4, 4], [2, 2, 3, 0, 0, 1, 2]),
        (&[1, 1, 1, 1, 1, 1], [8, 8, 1, 1, 1, 0, 8]),
        (&[], [0; 7]),
    ];
    let contents: Vec<_> = cases.iter().map(|(content, _)| content.to_vec()).collect();
    let phi = evaluate(&set.compile(&Cpu).unwrap(), &batch(set.space(), &contents));
    for ((content, want), phi) in cases.iter().zip(phi.chunks(set.len())) {
        assert_eq!(phi, want.map(|count| f32::from(count) / 8.0), "{content:?}");
    }
}

/// A count of a list against the text of many tokens is walked byte by byte, and told apart from the list itself.
#[test]
fn counts_of_a_list_are_spelled() {
    let (set, list) = word_list(7000, 200);
    let set = set.with("count", Feature::AnyText(list.clone()).count(3)).unwrap();
    let mut contents = contents(set.space(), 7000, 400, 3);
    for (row, content) in contents.iter_mut().enumerate().filter(|(_, content)| content.len() > 5) {
        for word in 0..row % 3 {
            content[3 * word..][..2].copy_from_slice(&pieces(Draw::new(5, Purpose::User), (row + word) % 200));
        }
    }
    let table = set.compile(&Cpu).unwrap();
    let spelled = |name| table.report().entries.iter().any(|e| e.path == "spelled automaton" && e.features == [name]);
    assert!(spelled("count"), "{}", table.report());
    let phi = evaluate(&table, &batch(set.space(), &contents));
    for (content, phi) in contents.iter().zip(phi.chunks(3)) {
        let text = set.spelling().unwrap().text(content).unwrap();
        let places = (1..=text.len()).filter(|&end| list.iter().any(|word| text[..end].ends_with(word.as_bytes())));
        let places = places.count().min(3);
        assert_eq!((phi[0], phi[2]), (f32::from(u8::from(places > 0)), places as f32 / 3.0), "{content:?}");
    }
    assert!(phi.chunks(3).any(|phi| phi[2] > 0.5));
}

fn many_paths() -> FeatureSet {
    let vocab = Vocab::from_symbols(["a", "b", "c"], Unit::Characters).unwrap();
    let motif = |n: u32| Feature::Motif((0..5).map(|at| (at != 2).then_some((n + at * n / 2) % 3)).collect());
    let set = FeatureSet::over(&vocab, 40).unwrap();
    let set = (0..16).fold(set, |set, n| set.with(format!("motif {n}"), motif(n)).unwrap());
    set.with("length", Feature::Length)
        .and_then(|set| set.with("count", Feature::Contains(vec![0, 1, 2]).count(40)))
        .and_then(|set| set.with("multiple", Feature::MultipleOf { modulus: 2000, zero: 0, one: 1 }))
        .and_then(|set| set.with("regex", Feature::Regex("ab*c$".into())))
        .and_then(|set| set.with("distance", Feature::EditDistance(vec![0, 1, 2, 0])))
        .and_then(|set| set.with("substring", Feature::LongestCommonSubstring(vec![0, 1, 2, 0])))
        .and_then(|set| set.with("distinct", Feature::DistinctFraction & !Feature::EditDistance(vec![0, 1])))
        .and_then(|set| set.with("word", Feature::Contains(vec![0, 1, 1, 2, 0])))
        .and_then(|set| set.with("list", Feature::AnyOf(vec![vec![2, 2], vec![0, 1, 0]])))
        .and_then(|set| set.with("places", Feature::AnyText(vec!["ab".into(), "cc".into()]).count(5)))
        .and_then(|set| set.with("far", Feature::Contains(vec![0; 33]) | Feature::EndsWith(vec![1])))
        .unwrap()
}

#[test]
fn the_report_tells_the_paths() {
    let table = many_paths().compile(&Cpu).unwrap();
    let report = table.report();
    let paths = |path| report.entries.iter().filter(|entry| entry.path == path).collect::<Vec<_>>();
    assert_eq!(paths("shift-and").len(), 1, "{report}");
    assert_eq!(paths("shift-and")[0].features.len(), 16, "{report}");
    assert_eq!(paths("words").len(), 1, "{report}");
    assert_eq!(paths("words")[0].features, ["word", "list"], "{report}");
    assert_eq!(paths("length").len() + paths("suffix automaton").len() + paths("distinct tokens").len(), 3, "{report}");
    assert_eq!(paths("bit-parallel edit distance").len(), 2, "{report}");
    let combined = &paths("combination")[..];
    assert_eq!(
        combined.iter().flat_map(|entry| &entry.features).collect::<Vec<_>>(),
        ["(part)", "distinct"],
        "{report}"
    );
    assert!(report.bytes == table.words().len() * 4 && report.hot_bytes < report.bytes);
    assert!(report.entries.iter().map(|entry| entry.bytes).sum::<usize>() <= report.bytes, "{report}");
}

#[test]
fn equal_tables_have_equal_bytes() {
    let table = many_paths().compile(&Cpu).unwrap();
    let bytes = table.to_bytes().unwrap();
    assert_eq!(bytes, many_paths().compile(&Cpu).unwrap().to_bytes().unwrap());
    let read = FeatureTable::from_bytes(&bytes).unwrap();
    assert_eq!(read.to_bytes().unwrap(), bytes);
    let batch = batch(table.space(), &contents(table.space(), 3, 500, 2));
    assert_eq!(evaluate(&read, &batch), evaluate(&table, &batch));
}

#[test]
fn damaged_tables_are_refused_or_harmless() {
    let table = many_paths().compile(&Cpu).unwrap();
    let bytes = table.to_bytes().unwrap();
    let batch = batch(table.space(), &contents(table.space(), 3, 20, 2));
    for cut in [0, 7, 8, 11, 12, 40, bytes.len() / 2 / 4 * 4, bytes.len() - 1, bytes.len() - 4] {
        assert!(FeatureTable::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    let draw = Draw::new(3, Purpose::User);
    let mut refused = 0;
    for n in 0..3000 {
        let mut bytes = bytes.clone();
        let head = bytes.len() - 4 * table.words().len();
        // The first words more often than the others: they say where all else is.
        let words = if n % 2 == 0 { 300 } else { table.words().len() as u32 };
        let at = head + 4 * number(draw, n, 0, words) as usize + n % 4;
        bytes[at] ^= 1 << number(draw, n, 1, 8);
        match FeatureTable::from_bytes(&bytes) {
            Ok(table) => drop(evaluate(&table, &batch)),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 500, "{refused}");
}

#[test]
fn closures_are_asked_for_a_whole_batch() {
    let space = Space::new(3, 6).unwrap();
    let last = Custom::new(|batch| (0..batch.rows).map(|row| batch.content(row).len() as f32 / 6.0).collect());
    let set = FeatureSet::new(space).with("motif", Feature::Contains(vec![1])).unwrap();
    let set = set.with("size", Feature::Custom(last.clone())).unwrap();
    let set = set.with("long", Feature::Custom(last).at_least(0.5) & Feature::Contains(vec![1])).unwrap();
    assert!(!set.is_automaton(1) && !set.is_automaton(2));
    let table = set.compile(&Cpu).unwrap();
    let batch = batch(space, &[vec![1, 0, 1], vec![1], vec![0, 0, 0, 0, 0, 0]]);
    assert_eq!(evaluate(&table, &batch), [1.0, 0.5, 1.0, 1.0, 1.0 / 6.0, 0.0, 0.0, 1.0, 0.0]);
    let error = table.to_bytes().unwrap_err().to_string();
    assert!(error.contains("closure 'size'"), "{error}");
}

#[test]
fn bad_closures_are_errors_and_write_nothing() {
    let space = Space::new(3, 6).unwrap();
    let batch = batch(space, &[vec![1, 0, 1], vec![1]]);
    let returning = |values: Vec<f32>| {
        let set = FeatureSet::new(space).with("mine", Feature::Custom(Custom::new(move |_| values.clone()))).unwrap();
        let mut phi = [7.0; 2];
        let error = set.compile(&Cpu).unwrap().evaluate(&Cpu, &batch, &mut phi).unwrap_err();
        assert_eq!(phi, [7.0; 2]);
        error
    };
    assert_eq!(returning(vec![0.5, f32::NAN]), Error::not_a_number("feature 'mine'", "row 1"));
    assert_eq!(returning(vec![0.5]), Error::argument("feature 'mine'", "2 values", 1));
    assert_eq!(returning(vec![0.5, 1.5]), Error::argument("feature 'mine' of row 1", "a value in [0, 1]", 1.5));
}

fn refused(set: FeatureSet, feature: Feature) -> String {
    let error = set.with("ding", feature).unwrap_err().to_string();
    assert!(error.contains("'ding'") && !error.contains('\n'), "{error}");
    error
}

#[test]
fn bad_patterns_are_errors_that_say_where() {
    let space = Space::new(3, 6).unwrap();
    let plain = || FeatureSet::new(space);
    let spelled = || plain().spelled(Spelling::new(["a", "b", "c", "", "", ""])).unwrap();
    for (pattern, at) in
        [("a(b", "byte 1"), ("a[b-a]", "byte 2"), ("*", "byte 0"), (r"a\p{Foo}", "byte 1"), ("a{2", "byte 1")]
    {
        let error = refused(spelled(), Feature::Regex(pattern.into()));
        assert!(error.contains(at), "{pattern}: {error}");
    }
    assert!(refused(spelled(), Feature::Regex(String::new())).contains("nothing"));
    assert!(refused(spelled(), Feature::Regex(r"\bab\b".into())).contains(r"(?-u:\b)"));
    assert!(refused(plain(), Feature::Regex("a".into())).contains("FeatureSet::spelled"));
    assert!(refused(plain(), !Feature::AnyText(vec!["a".into()])).contains("FeatureSet::spelled"));
    assert!(refused(spelled(), Feature::AnyText(vec![])).contains("at least one"));
    assert!(refused(spelled(), Feature::AnyText(vec!["a".into(), String::new()])).contains("word 1"));
    assert!(refused(spelled(), Feature::Regex("a*".into()).count(2)).contains("empty text"));
    assert!(refused(spelled(), Feature::Regex("a(".into()).count(2)).contains("byte 1"));
    assert!(refused(spelled(), Feature::Regex("a".into()).count(0)).contains("1 to 65536"));
    assert!(refused(spelled(), Feature::AnyText(vec![String::new()]).count(2)).contains("word 0"));
    assert!(refused(plain(), Feature::AnyText(vec!["a".into()]).count(2)).contains("FeatureSet::spelled"));
    assert!(plain().spelled(Spelling::new(["a", "b"])).is_err());
    let tokens = [
        Feature::Motif(vec![]),
        Feature::Motif(vec![None; 7]),
        Feature::Motif(vec![Some(3)]),
        Feature::AnyOf(vec![]),
        Feature::AnyOf(vec![vec![1], vec![]]),
        Feature::AnyOf(vec![vec![1, 4]]),
        Feature::AnyOf(vec![vec![1; 7]]),
        Feature::All(vec![]),
        Feature::Any(vec![]),
        Feature::Contains(vec![1]) & !Feature::Contains(vec![]),
        Feature::Contains(vec![1]).count(0),
        Feature::Contains(vec![1]).count(7),
        Feature::Length.count(2),
        Feature::StartsWith(vec![1]).count(2),
    ];
    tokens.into_iter().for_each(|feature| drop(refused(plain(), feature)));
}

#[test]
fn thresholds_that_no_sequence_reaches_are_errors() {
    let set = || FeatureSet::new(Space::new(3, 6).unwrap());
    for value in [0.0, -1.0, 1.5, f32::NAN] {
        assert!(refused(set(), Feature::Length.at_least(value)).contains("threshold"), "{value}");
    }
    // Six tokens hold two of them side by side, and overlapping ones four times.
    assert!(refused(set(), Feature::Contains(vec![0, 1, 2]).count(3).at_least(0.9)).contains("reaches"));
    assert!(set().with("fits", Feature::Contains(vec![0, 1, 2]).count(3).at_least(0.6)).is_ok());
    assert!(set().with("fits", Feature::Contains(vec![0, 0, 0]).count(4).at_least(1.0)).is_ok());
    let both = Feature::StartsWith(vec![1]) & Feature::StartsWith(vec![0]);
    assert!(refused(set(), both.at_least(1.0)).contains("reaches"));
    assert!(set().with("half", Feature::LongestCommonSubstring(vec![0, 1]).at_least(0.5)).is_ok());
}

#[test]
fn a_table_over_the_limit_names_the_pattern() {
    let vocab = Vocab::from_symbols(["a", "b", "c"], Unit::Characters).unwrap();
    let set = || FeatureSet::over(&vocab, 40).unwrap().with("small", Feature::Contains(vec![1])).unwrap();
    let large = [
        Feature::MultipleOf { modulus: 30_000, zero: 0, one: 1 },
        Feature::Regex("^(?:a|b)*a(?:a|b){14}$".into()),
        Feature::AnyText(
            (0..5000_u32)
                .map(|n| format!("{:020b}", n.wrapping_mul(2_654_435_761) >> 12).replace('0', "a").replace('1', "b"))
                .collect(),
        ),
        Feature::EditDistance(vec![0; 40]) & Feature::MultipleOf { modulus: 30_000, zero: 0, one: 1 },
    ];
    for feature in large {
        let set = set().with("large", feature).unwrap().with("after", Feature::Length).unwrap();
        let Err(error) = set.compile_within(&Cpu, 100_000) else { panic!("should be too large") };
        let error = error.to_string();
        assert!(error.contains("'large'") && !error.contains('\n'), "{error}");
    }
    assert!(set().compile_within(&Cpu, 100_000).is_ok());
    let regex = set().with("large", Feature::Regex("^(?:a|b)*a(?:a|b){14}$".into())).unwrap();
    let error = regex.automaton(&[0, 1], 1000).unwrap_err().to_string();
    assert!(error.contains("'large'") && error.contains("1000"), "{error}");
}

#[test]
fn features_serialise_as_people_write_them() {
    let feature = Feature::Regex("^a".into()) & !Feature::Contains(vec![1, 0]).count(3).at_least(0.5);
    let json = serde_json::to_string(&feature).unwrap();
    let want = r#"{"all":[{"regex":"^a"},{"not":{"at_least":{"of":{"count":{"of":{"contains":[1,0]},"most":3}},"value":0.5}}}]}"#;
    assert_eq!(json, want);
    assert_eq!(serde_json::from_str::<Feature>(&json).unwrap(), feature);
    let closure = Feature::Custom(Custom::new(|batch| vec![0.0; batch.rows]));
    assert!(serde_json::to_string(&closure).is_err());
}
