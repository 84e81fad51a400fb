//! Event files as TensorBoard reads them: records of the TFRecord format, each a protocol-buffer `Event`.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Observer;
use crate::error::{Error, Result};
use crate::tune::Record;
use crate::weights::Estimate;

/// Scalars of each evaluation for TensorBoard, over the draws made so far: `loss`, `gradient_norm`,
/// `gradient_norm_deviation`, `kl/policy`, `kl/proposal`, `tv/policy`, `ess`, `log_z`, `log_z_error`, `log_z_now`, `clipped`,
/// `swaps` and `moments/NAME`. What is unknown at an evaluation has no point there.
///
/// `tensorboard --logdir DIRECTORY` shows the directory and those below it, one run each.
#[derive(Debug)]
pub struct TensorBoard {
    path: PathBuf,
    file: File,
    /// Tags of the moments, one a feature.
    moments: Vec<String>,
    /// The time that `seconds` count from.
    began: f64,
    /// Those of the last event that was there when the file was opened.
    seconds: f64,
}

// TensorBoard knows event files by the first part of their names.
const PREFIX: &str = "events.out.tfevents.";
const SUFFIX: &str = ".ebm-dpg";

/// The event files of this crate in a directory, the oldest first.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let bad = |error: io::Error| Error::file(directory, error);
    let names: io::Result<Vec<_>> =
        std::fs::read_dir(directory).map_err(bad)?.map(|entry| entry.map(|entry| entry.file_name())).collect();
    let mut names = names.map_err(bad)?;
    names.retain(|name| name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX)));
    // The numbers have as many digits.
    names.sort();
    Ok(names.into_iter().map(|name| directory.join(name)).collect())
}

fn tags(features: &[String]) -> Vec<String> {
    features.iter().map(|name| format!("moments/{name}")).collect()
}

impl TensorBoard {
    /// Starts an event file in `directory`, which must exist, for features of these names.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn create(directory: &Path, features: &[String]) -> Result<Self> {
        let began = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        let path = directory.join(format!("{PREFIX}{:010}{SUFFIX}", began as u64));
        let file = File::create(&path).map_err(|error| Error::file(&path, error))?;
        let mut board = TensorBoard { path, file, moments: tags(features), began, seconds: 0.0 };
        // Event.file_version, field 3.
        board.write(&[time(began), bytes(3, b"brain.Event:2")].concat())?;
        Ok(board)
    }

    /// Goes on with the newest event file in `directory`, of a run that was interrupted, from a checkpoint with this
    /// history: events behind it, half ones too, are cut off, and where the file lacks some of it they are added, at the
    /// time of the event before. Without a file, a new one is started.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn resume(directory: &Path, features: &[String], history: &[Record]) -> Result<Self> {
        let newest = files(directory)?.pop();
        let (mut board, kept) = match newest.map(|path| TensorBoard::reopen(path, features, history)).transpose()? {
            Some(Some(reopened)) => reopened,
            _ => (TensorBoard::create(directory, features)?, 0),
        };
        let seconds = board.seconds;
        history[kept..].iter().try_for_each(|record| board.record(seconds, record))?;
        Ok(board)
    }

    /// The file cut behind `history`, and how many of its records it has; `None` where it does not begin as one of ours.
    fn reopen(path: PathBuf, features: &[String], history: &[Record]) -> Result<Option<(Self, usize)>> {
        let bad = |error: io::Error| Error::file(&path, error);
        let file = std::fs::read(&path).map_err(bad)?;
        let Some((version, mut length)) = event(&file) else { return Ok(None) };
        let Some(began) = time_of(version) else { return Ok(None) };
        let (mut seconds, mut kept) = (0.0, 0);
        for record in history {
            let Some((data, bytes)) = event(&file[length..]) else { break };
            if step_of(data) != Some(record.samples as u64) {
                break;
            }
            seconds = time_of(data).map_or(seconds, |time| time - began);
            (kept, length) = (kept + 1, length + bytes);
        }
        let mut file = OpenOptions::new().write(true).open(&path).map_err(bad)?;
        file.set_len(length as u64).and_then(|()| file.seek(io::SeekFrom::End(0))).map_err(bad)?;
        Ok(Some((TensorBoard { path, file, moments: tags(features), began, seconds }, kept)))
    }

    /// Removes the event files of earlier runs in `directory`, which TensorBoard would show as one with those of the next.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn remove(directory: &Path) -> Result<()> {
        let remove = |path: PathBuf| std::fs::remove_file(&path).map_err(|error| Error::file(&path, error));
        files(directory)?.into_iter().try_for_each(remove)
    }

    /// Where the events go.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// length, CRC of the length, data, CRC of the data.
    fn write(&mut self, event: &[u8]) -> Result<()> {
        let length = (event.len() as u64).to_le_bytes();
        let record = [&length[..], &masked_crc(&length), event, &masked_crc(event)].concat();
        self.file.write_all(&record).map_err(|error| Error::file(&self.path, error))
    }
}

impl Observer for TensorBoard {
    fn record(&mut self, seconds: f64, record: &Record) -> Result<()> {
        let of = |estimate: Option<Estimate>| estimate.map_or(f64::NAN, |estimate| estimate.value);
        let named = [
            ("loss", record.loss),
            ("gradient_norm", record.gradient_norm),
            ("gradient_norm_deviation", record.gradient_norm_deviation),
            ("kl/policy", of(record.kl)),
            ("kl/proposal", of(record.kl_proposal)),
            ("tv/policy", of(record.tv)),
            ("ess", record.ess),
            ("log_z", record.log_z),
            ("log_z_error", record.log_z_error),
            ("log_z_now", of(record.log_z_now)),
            ("clipped", record.clipped),
            ("swaps", record.swaps as f64),
        ];
        let moments = self.moments.iter().zip(&record.moments).map(|(tag, moment)| (tag.as_str(), moment.value));
        let scalars = named.into_iter().chain(moments).filter(|(_, value)| !value.is_nan());
        let summary: Vec<u8> = scalars.flat_map(|(tag, value)| bytes(1, &scalar(tag, value as f32))).collect();
        // Event.step is field 2, Event.summary field 5.
        let step = [vec![2 << 3], varint(record.samples as u64)].concat();
        self.write(&[time(self.began + seconds), step, bytes(5, &summary)].concat())
    }
}

/// The data of the first record of a file, and the record's length; `None` where it is cut or damaged.
fn event(file: &[u8]) -> Option<(&[u8], usize)> {
    let (length, rest) = file.split_first_chunk::<8>()?;
    let (length_crc, rest) = rest.split_first_chunk::<4>()?;
    // A damaged length would lead anywhere.
    let size = usize::try_from(u64::from_le_bytes(*length)).ok().filter(|_| masked_crc(length) == *length_crc)?;
    let (data, rest) = rest.split_at_checked(size)?;
    let whole = masked_crc(data) == *rest.first_chunk::<4>()?;
    whole.then_some((data, 16 + size))
}

/// The time of an event.
fn time_of(event: &[u8]) -> Option<f64> {
    let (tag, rest) = event.split_first()?;
    (*tag == 1 << 3 | 1).then_some(f64::from_le_bytes(*rest.first_chunk::<8>()?))
}

/// The step of an event with scalars.
fn step_of(event: &[u8]) -> Option<u64> {
    let digits = event.get(9..)?.strip_prefix(&[2 << 3])?;
    let mut step = 0;
    for (at, digit) in digits.iter().enumerate().take(10) {
        step |= u64::from(digit & 0x7f) << (7 * at);
        if digit & 0x80 == 0 {
            return Some(step);
        }
    }
    None
}

/// Event.wall_time: field 1, a double.
fn time(seconds: f64) -> Vec<u8> {
    [&[1 << 3 | 1], &seconds.to_le_bytes()[..]].concat()
}

/// Summary.Value: tag, field 1; simple_value, field 2, a float.
fn scalar(tag: &str, value: f32) -> Vec<u8> {
    [bytes(1, tag.as_bytes()), vec![2 << 3 | 5], value.to_le_bytes().to_vec()].concat()
}

/// A field of bytes: its number with wire type 2, their count, they.
fn bytes(field: u8, content: &[u8]) -> Vec<u8> {
    [vec![field << 3 | 2], varint(content.len() as u64), content.to_vec()].concat()
}

/// Seven bits a byte, the lowest first, the top bit set on all but the last.
fn varint(mut value: u64) -> Vec<u8> {
    let mut digits = Vec::new();
    while value >= 0x80 {
        digits.push(value as u8 | 0x80);
        value >>= 7;
    }
    digits.push(value as u8);
    digits
}

/// The CRC-32C of the data, rotated and offset as the TFRecord format wants it.
fn masked_crc(data: &[u8]) -> [u8; 4] {
    let crc = crc32c(data);
    (crc.rotate_right(15).wrapping_add(0xa282_ead8)).to_le_bytes()
}

/// CRC-32C (Castagnoli), bit by bit: an event has some hundred bytes.
fn crc32c(data: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let step = |crc: u32, _| crc >> 1 ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
    !data.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of the catalogue of CRCs, and RFC 3720, B.4: 32 bytes of zeros.
    #[test]
    fn crc32c_known_answers() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn varints_of_one_byte_and_more() {
        assert_eq!(varint(0), [0]);
        assert_eq!(varint(127), [127]);
        assert_eq!(varint(300), [0xac, 2]);
        assert_eq!(varint(u64::MAX).len(), 10);
    }
}
