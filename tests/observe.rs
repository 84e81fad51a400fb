//! What observers leave behind, and what alarms them.

use std::time::{Duration, Instant};

use ebm_dpg::backend::Cpu;
use ebm_dpg::features::{Feature, FeatureSet};
use ebm_dpg::models::{Lstm, LstmShape, Markov};
use ebm_dpg::observe::{Alarms, JsonLines, Observer, TensorBoard};
use ebm_dpg::potential::{Potential, Role};
use ebm_dpg::tokens::Space;
use ebm_dpg::tune::{Record, Source, Target, TuneData, TuneOptions, tune};
use ebm_dpg::weights::Estimate;

fn record(samples: usize) -> Record {
    let kl = Some(Estimate { value: 0.25, standard_error: 0.01 });
    Record { samples, updates: 3, loss: 0.5, kl, ess: 0.8, moments: vec![Estimate::exact(0.125)], ..Record::default() }
}

#[test]
fn lines_of_json_have_null_for_what_is_unknown() {
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("tuning.jsonl");
    let mut lines = JsonLines::create(&path).unwrap();
    lines.record(1.5, &record(64)).unwrap();
    lines.record(2.5, &Record { loss: f64::NAN, kl: None, ..record(128) }).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!((lines[0]["seconds"].as_f64(), lines[0]["samples"].as_u64()), (Some(1.5), Some(64)));
    assert_eq!(lines[0]["kl"]["value"].as_f64(), Some(0.25));
    assert!(lines[1]["loss"].is_null() && lines[1]["kl"].is_null());
}

/// The records of an event file: their lengths must lead from one to the next, to the end.
fn events(file: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut events) = (file, Vec::new());
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        events.push(&rest[12..12 + length]);
        rest = &rest[12 + length + 4..];
    }
    events
}

#[test]
fn event_files_hold_a_version_and_an_event_a_record() {
    let room = tempfile::tempdir().unwrap();
    let mut board = TensorBoard::create(room.path(), &["motif".to_string()]).unwrap();
    board.record(1.0, &record(300)).unwrap();
    board.record(2.0, &Record { kl: None, loss: f64::NAN, ..record(600) }).unwrap();
    let file = std::fs::read(board.path()).unwrap();
    let events = events(&file);
    assert_eq!(events.len(), 3);
    let holds = |event: &[u8], text: &str| event.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(holds(events[0], "brain.Event:2"));
    let tags = ["loss", "kl/policy", "ess", "log_z", "log_z_error", "clipped", "swaps", "moments/motif"];
    assert!(tags.iter().all(|tag| holds(events[1], tag)));
    assert!(!holds(events[1], "kl/proposal") && !holds(events[2], "kl/policy") && !holds(events[2], "loss"));
    // Step 300 is the varint ac 02 after the tag of field 2.
    assert!(events[1].windows(3).any(|part| part == [16, 0xac, 2]));
}

#[test]
fn files_that_cannot_be_made_or_grow_are_errors() {
    let room = tempfile::tempdir().unwrap();
    let nowhere = room.path().join("no such directory");
    assert!(JsonLines::create(&nowhere.join("a")).unwrap_err().to_string().contains("no such directory"));
    assert!(TensorBoard::create(&nowhere, &[]).is_err());
    // The device that is always full.
    let full = std::path::Path::new("/dev/full");
    if full.exists() {
        let error = JsonLines::create(full).unwrap().record(0.0, &record(1)).unwrap_err().to_string();
        assert!(error.contains("/dev/full"), "{error}");
    }
}

#[test]
fn resumed_files_have_each_record_once() {
    let history: Vec<_> = [64, 128, 192].map(record).into();
    let names = vec!["first".to_string()];
    // Records that the killed run wrote, and bytes of one more; then the checkpoint's history is two of them.
    for written in 0..=3 {
        for half in [0, 1, 30] {
            let room = tempfile::tempdir().unwrap();
            let path = room.path().join("tuning.jsonl");
            let mut lines = JsonLines::create(&path).unwrap();
            let mut board = TensorBoard::create(room.path(), &names).unwrap();
            let event_file = board.path().to_path_buf();
            for (at, record) in history[..written].iter().enumerate() {
                lines.record(at as f64 + 0.5, record).unwrap();
                board.record(at as f64 + 0.5, record).unwrap();
            }
            drop((lines, board));
            for path in [&path, &event_file] {
                let mut bytes = std::fs::read(path).unwrap();
                bytes.extend(bytes.clone().iter().take(half));
                std::fs::write(path, bytes).unwrap();
            }
            let mut lines = JsonLines::resume(&path, &history[..2]).unwrap();
            let mut board = TensorBoard::resume(room.path(), &names, &history[..2]).unwrap();
            assert_eq!(lines.seconds(), [0.0, 0.5, 1.5, 1.5][written]);
            lines.record(9.0, &history[2]).unwrap();
            board.record(9.0, &history[2]).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            let samples: Vec<_> = text
                .lines()
                .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["samples"].as_u64().unwrap())
                .collect();
            assert_eq!(samples, [64, 128, 192], "{written} written and {half} bytes");
            assert_eq!(board.path(), event_file);
            let file = std::fs::read(&event_file).unwrap();
            let steps: Vec<_> = events(&file)[1..].iter().map(|event| event[9..12].to_vec()).collect();
            assert_eq!(steps, [vec![16, 64, 42], vec![16, 128, 1], vec![16, 192, 1]], "{written} and {half}");
        }
    }
}

#[test]
fn files_that_are_no_event_files_are_left_alone() {
    let room = tempfile::tempdir().unwrap();
    let names = vec!["first".to_string()];
    let foreign = room.path().join("events.out.tfevents.0000000001.host");
    let empty = room.path().join("events.out.tfevents.0000000002.ebm-dpg");
    std::fs::write(&foreign, "foreign").unwrap();
    std::fs::write(&empty, "").unwrap();
    let board = TensorBoard::resume(room.path(), &names, &[record(64)]).unwrap();
    assert!(board.path() != empty && events(&std::fs::read(board.path()).unwrap()).len() == 2);
    TensorBoard::remove(room.path()).unwrap();
    assert!(foreign.exists() && !empty.exists() && !board.path().exists());
    let bad = room.path().join("none");
    assert!(TensorBoard::resume(&bad, &names, &[]).is_err() && JsonLines::resume(&bad.join("a"), &[]).is_err());
}

#[test]
fn each_alarm_is_raised_once_and_says_when() {
    let mut alarms = Alarms::new();
    let mut raised = |record: Record| {
        alarms.record(0.0, &record).unwrap();
        alarms.take()
    };
    // A poor proposal at the start is no collapse.
    assert!(raised(Record { kl: None, ess: 0.001, ..record(1) }).is_empty());
    assert!(raised(record(2)).is_empty());
    let collapse = raised(Record { kl: None, ess: 0.001, ..record(3) });
    assert!(collapse.len() == 1 && collapse[0].starts_with("after 3 draws") && collapse[0].contains("collapsed"));
    assert!(raised(Record { kl: None, ess: 0.001, ..record(4) }).is_empty());
    let infinite = Some(Estimate { value: f64::INFINITY, standard_error: f64::INFINITY });
    assert!(raised(Record { kl: infinite, ..record(5) })[0].contains("no longer draws"));
    assert!(raised(Record { loss: f64::INFINITY, ..record(6) })[0].contains("π = 0"));
    assert!(raised(Record { moments: vec![Estimate::exact(f64::NAN)], ..record(7) })[0].contains("not a number"));
    // Half of p's mass is left where noise does not explain it, against all draws or an earlier judgement.
    let now = |value| Some(Estimate { value, standard_error: 0.1 });
    assert!(raised(Record { log_z_now: now(-0.3), log_z_error: 0.05, ..record(8) }).is_empty());
    let lost = raised(Record { log_z_now: now(-0.7), log_z_error: 0.05, ..record(9) });
    assert!(lost.len() == 1 && lost[0].contains("after 9 draws: q shows 5.0e-1 of the mass"), "{lost:?}");
    let mut later = Alarms::new();
    later.record(0.0, &Record { log_z_now: now(0.0), ..record(1) }).unwrap();
    later.record(0.0, &Record { log_z_now: now(-0.7), log_z: -0.7, ..record(2) }).unwrap();
    assert!(later.take()[0].contains("after 2 draws: q shows 5.0e-1 of the mass"));
    // From .25 to .6 by much more than .01, and further than twice; from .25 to .4 is no alarm.
    let kl = |value| Some(Estimate { value, standard_error: 0.01 });
    assert!(raised(Record { kl: kl(0.4), ..record(10) }).is_empty());
    assert!(raised(Record { kl: Some(Estimate { value: 0.6, standard_error: 0.2 }), ..record(11) }).is_empty());
    let away = raised(Record { kl: kl(0.6), ..record(12) });
    assert!(away[0].contains("has risen to 0.600 from 0.250 after 2"), "{away:?}");
    // No update yet: the loss is NaN, and that is no alarm.
    assert!(raised(Record { loss: f64::NAN, updates: 0, ..record(8) }).is_empty());
}

/// The measurement that README.md quotes: everything that is written at an evaluation, against the run.
#[test]
#[ignore = "a measurement: half a minute"]
fn observers_take_less_than_a_fiftieth_of_a_run() {
    let space = Space::new(2, 31).unwrap();
    let set = FeatureSet::new(space).with("11", Feature::Contains(vec![1, 1])).unwrap();
    let (features, potential) = (set.compile(&Cpu).unwrap(), Potential::new(&Cpu, &[Role::Tilt(1.0)]).unwrap());
    let mut base = Markov::noise(space, 30).unwrap();
    let mut target =
        Target { base: &mut base, features: &features, potential: &potential, guide: None, contexts: None };
    let mut policy = Lstm::new(space, LstmShape { layers: 1, hidden: 64, dropout: 0.0 }, 1).unwrap();
    let mut options = TuneOptions::default();
    (options.proposal, options.samples) = (Source::Base, 8_000);
    let room = tempfile::tempdir().unwrap();
    let mut lines = JsonLines::create(&room.path().join("tuning.jsonl")).unwrap();
    let mut board = TensorBoard::create(room.path(), &["11".to_string()]).unwrap();
    let mut alarms = Alarms::new();
    let (began, mut observed) = (Instant::now(), Duration::ZERO);
    let tuned = tune(&Cpu, &mut target, &mut policy, &options, TuneData::default(), |now| {
        if let Some(record) = now.record {
            let began = Instant::now();
            let observers: [&mut dyn Observer; 3] = [&mut lines, &mut board, &mut alarms];
            observers.into_iter().for_each(|observer| observer.record(1.0, record).unwrap());
            observed += began.elapsed();
        }
    });
    let (whole, records) = (began.elapsed(), tuned.unwrap().history.len() as u32);
    let share = observed.as_secs_f64() / whole.as_secs_f64();
    println!("{records} records, {:?} each, {share:.1e} of {whole:.1?}", observed / records);
    assert!(share < 0.02, "{share}");
}
