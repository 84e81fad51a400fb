//! `--config FILE`: a TOML file whose keys are the options' names. What the command line gives beats the file.
//!
//! ```toml
//! motif = "01011101101"
//! data-size = 2000
//! learning-rate = 0.005
//! baseline = true
//! ```

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, Command};
use serde_json::Value;
use toml::de::{DeTable, DeValue};

use super::options::{Options, Stop, escaped};

/// The words of a command line with those of its `--config` before them; unchanged where it has none. Each key is
/// checked alone, so that what is wrong with it can be told with its line.
pub fn expand<E: Options>(words: Vec<OsString>, command: &Command) -> Result<Vec<OsString>, Stop> {
    let Some(path) = value_of(&words, "config") else { return Ok(words) };
    let path = Path::new(&path);
    let bad = |line: Option<usize>, reason: String| {
        let line = line.map_or(String::new(), |line| format!(", line {line}"));
        Stop::Bad(format!("--config {}{line}: {reason}", path.display()))
    };
    let text = std::fs::read_to_string(path)
        .map_err(|error| bad(None, format!("expected a file that can be read, got: {error}")))?;
    let line_at = |at: usize| text[..at].matches('\n').count() + 1;
    let table = DeTable::parse(&text).map_err(|error| {
        bad(error.span().map(|span| line_at(span.start)), format!("expected TOML, got: {}", error.message()))
    })?;
    let mut given = Vec::new();
    for (key, value) in table.get_ref() {
        let bad = |reason: String| bad(Some(line_at(key.span().start)), reason);
        let name = key.get_ref().as_ref();
        let words_of_key = words_of(command, name, value.get_ref()).map_err(bad)?;
        check::<E>(command, name, value.get_ref(), &words_of_key).map_err(bad)?;
        if value_of(&words, name).is_none() {
            given.push((name.to_string(), words_of_key));
        }
    }
    // A value without a name may be among the words: only the parser knows which of them it is.
    let beaten = |name: &str| {
        let positional = |option: &&Arg| option.get_id().as_str() == name && option.is_positional();
        command.get_arguments().find(positional).is_some_and(|option| has_value(command, &words, option))
    };
    let given = given.iter().filter(|(name, _)| !beaten(name)).flat_map(|(_, words)| words);
    // The program's name comes first.
    Ok(words.iter().take(1).chain(given).chain(words.iter().skip(1)).cloned().collect())
}

/// Whether a command line gives a value to an option.
fn has_value(command: &Command, words: &[OsString], option: &Arg) -> bool {
    let matches = command.clone().ignore_errors(true).try_get_matches_from(words);
    matches.is_ok_and(|matches| matches.value_source(option.get_id().as_str()) == Some(ValueSource::CommandLine))
}

/// What follows `--name` or `--name=` in a command line; empty where it stands alone.
fn value_of(words: &[OsString], name: &str) -> Option<OsString> {
    let flag = format!("--{name}");
    words.iter().enumerate().find_map(|(at, word)| match word.to_str()?.strip_prefix(&flag)? {
        "" => Some(words.get(at + 1).cloned().unwrap_or_default()),
        rest => rest.strip_prefix('=').map(OsString::from),
    })
}

/// A key and its value as a command line has them; an array repeats the option.
fn words_of(command: &Command, name: &str, value: &DeValue<'_>) -> Result<Vec<OsString>, String> {
    let values = match value {
        DeValue::Array(values) if values.is_empty() => {
            return Err("expected one value or more, got an empty array".into());
        }
        DeValue::Array(values) => values.iter().map(|value| plain(value.get_ref())).collect::<Result<_, _>>()?,
        value => vec![plain(value)?],
    };
    let Some(option) = command.get_arguments().find(|a| a.get_long().unwrap_or(a.get_id().as_str()) == name) else {
        return Err(format!("expected an option of --help as a key, got {}", escaped(name)));
    };
    if name == "config" {
        return Err("expected an option other than config itself, got config".into());
    }
    // A switch is there or not.
    if let (ArgAction::SetTrue, DeValue::Boolean(on)) = (option.get_action(), value) {
        return Ok(on.then(|| OsString::from(format!("--{name}"))).into_iter().collect());
    }
    let word = |value: String| if option.is_positional() { value } else { format!("--{name}={value}") };
    Ok(values.into_iter().map(|value| OsString::from(word(value))).collect())
}

fn plain(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        // In decimal, however it was written.
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
            .map(|number| number.to_string())
            .map_err(|_| format!("expected a number of at most 127 bits, got {number}")),
        DeValue::Float(number) => Ok(number.to_string()),
        DeValue::Boolean(value) => Ok(value.to_string()),
        other => Err(format!("expected a string, a number or a truth value, got {}", kind(other))),
    }
}

/// What the option itself says of its value, and whether the value is of the type that the report shows.
fn check<E: Options>(command: &Command, name: &str, value: &DeValue<'_>, words: &[OsString]) -> Result<(), String> {
    let line = [OsStr::new(command.get_name())].into_iter().chain(words.iter().map(OsString::as_os_str));
    let options = match command.clone().try_get_matches_from(line).and_then(|m| E::from_arg_matches(&m)) {
        Ok(options) => options,
        Err(error) => match Stop::from(error) {
            Stop::Bad(reason) | Stop::Help(reason) => return Err(reason),
        },
    };
    let shown = options.as_json().map_err(|error| error.to_string())?;
    let expected = match (&shown[name.replace('-', "_")], value) {
        (Value::Number(_), DeValue::Integer(_) | DeValue::Float(_)) | (Value::String(_), DeValue::String(_)) => {
            return Ok(());
        }
        (Value::Number(_), _) => "a number",
        (Value::String(_), _) => "a string",
        // Paths are shown as given or not; wanted moments as objects.
        _ => return Ok(()),
    };
    Err(format!("{name}: expected {expected}, got {}", kind(value)))
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "a truth value",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}
