//! Parameters on disk: safetensors, written to a temporary file, synced, then renamed, so that nothing half-written
//! survives under its final name.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorInfo};

use crate::backend::Element;
use crate::error::{Error, Result};

/// The format written; a reader refuses a newer one.
const FORMAT: u32 = 1;

/// Writes `bytes` to `path` by way of a temporary file beside it, `NAME.tmp-PROCESS`.
///
/// Whenever the process or the machine stops, `path` holds what it held before or all of `bytes`: the content is on the
/// disk before the name points at it, and renaming over a file is one act of the file system. The name is on the disk when
/// this returns. What a killed process left beside it, [`remove_leftovers`] removes.
///
/// # Errors
/// [`Error::File`]; the temporary file is removed then.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    write_parts(path, &[bytes])
}

/// [`write_atomically`] of parts that are not copied together before.
fn write_parts(path: &Path, parts: &[&[u8]]) -> Result<()> {
    let mut name = path.file_name().ok_or_else(|| Error::file(path, "expected a file name"))?.to_os_string();
    name.push(format!("{LEFTOVER}{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = std::fs::File::create(&temporary)
        .and_then(|mut file| parts.iter().try_for_each(|part| file.write_all(part)).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path))
        .and_then(|()| sync_directory(path));
    written.map_err(|error| {
        // Already reporting one failure: that the clean-up failed as well adds nothing.
        let _ = std::fs::remove_file(&temporary);
        Error::file(path, format!("cannot be written: {error}"))
    })
}

/// What stands between the name of a file and the number of the process that was writing it.
const LEFTOVER: &str = ".tmp-";

/// Puts the names in the directory of `path` on the disk.
fn sync_directory(path: &Path) -> io::Result<()> {
    // Elsewhere a directory cannot be opened, and renaming is as safe as the system makes it.
    if cfg!(unix) { std::fs::File::open(directory(path))?.sync_all() } else { Ok(()) }
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removes what processes left that were killed while they wrote `path`; no other may be writing it now.
///
/// # Errors
/// [`Error::File`]: a directory that cannot be read, a file that cannot be removed.
pub fn remove_leftovers(path: &Path) -> Result<()> {
    let bad = |error: io::Error| {
        Error::file(path, format!("expected a directory that can be read and written, got: {error}"))
    };
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let is_leftover = |other: &[u8]| {
        let process = other.strip_prefix(name).and_then(|rest| rest.strip_prefix(LEFTOVER.as_bytes()));
        process.is_some_and(|process| !process.is_empty() && process.iter().all(u8::is_ascii_digit))
    };
    for entry in std::fs::read_dir(directory(path)).map_err(bad)? {
        let entry = entry.map_err(bad)?;
        if is_leftover(entry.file_name().as_encoded_bytes()) {
            std::fs::remove_file(entry.path()).map_err(bad)?;
        }
    }
    Ok(())
}

/// A type that a file has tensors of.
pub(crate) trait Stored: Element {
    const TYPE: Dtype;
}

impl Stored for f32 {
    const TYPE: Dtype = Dtype::F32;
}
impl Stored for f64 {
    const TYPE: Dtype = Dtype::F64;
}
impl Stored for u32 {
    const TYPE: Dtype = Dtype::U32;
}
impl Stored for u64 {
    const TYPE: Dtype = Dtype::U64;
}

/// A tensor to write: its name, and its values with their type and shape.
pub(crate) struct Tensor<'a> {
    name: String,
    shape: Vec<usize>,
    kind: Dtype,
    bytes: &'a [u8],
}

impl<'a> Tensor<'a> {
    pub fn new<T: Stored>(name: impl Into<String>, shape: &[usize], values: &'a [T]) -> Self {
        Tensor { name: name.into(), shape: shape.to_vec(), kind: T::TYPE, bytes: bytemuck::cast_slice(values) }
    }
}

/// A fingerprint of bytes that follow those of fingerprint `before`, 0 where they are the first: another for any change
/// within 8 bytes, and for all but one in 2⁶⁴ of other changes that happen by accident.
pub fn digest(before: u64, bytes: &[u8]) -> u64 {
    let mut digest = Digest { state: before, rest: [0; 8], held: 0, len: 0 };
    digest.feed(bytes);
    digest.finish()
}

/// A fingerprint under way: of parts it is that of the whole.
struct Digest {
    state: u64,
    /// Bytes that are no whole word yet, and how many.
    rest: [u8; 8],
    held: usize,
    len: u64,
}

impl Digest {
    /// Each step is a permutation of the state for a given word, and of the word for a given state.
    fn mix(&mut self, word: u64) {
        self.state = (self.state ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    }

    fn feed(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len() as u64;
        if self.held > 0 {
            let (front, behind) = bytes.split_at(bytes.len().min(8 - self.held));
            self.rest[self.held..][..front.len()].copy_from_slice(front);
            (self.held, bytes) = (self.held + front.len(), behind);
            if self.held < 8 {
                return;
            }
            self.mix(u64::from_le_bytes(self.rest));
            self.held = 0;
        }
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.mix(u64::from_le_bytes(*word)));
        self.rest[..rest.len()].copy_from_slice(rest);
        self.held = rest.len();
    }

    fn finish(mut self) -> u64 {
        self.rest[self.held..].fill(0);
        self.mix(u64::from_le_bytes(self.rest));
        self.mix(self.len);
        self.state
    }
}

/// The header of a safetensors file, its names sorted: the same bytes for the same content.
#[derive(serde::Serialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    metadata: BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: BTreeMap<String, TensorInfo>,
}

/// Writes tensors and a JSON object of metadata. A digest of the tensors tells a reader of damage.
pub(crate) fn save(path: &Path, metadata: &serde_json::Value, mut tensors: Vec<Tensor<'_>>) -> Result<()> {
    // The widest first, so that each is aligned.
    tensors.sort_by(|a, b| b.kind.bitsize().cmp(&a.kind.bitsize()).then(a.name.cmp(&b.name)));
    let mut whole = Digest { state: 0, rest: [0; 8], held: 0, len: 0 };
    tensors.iter().for_each(|tensor| whole.feed(tensor.bytes));
    let plain = [("format", FORMAT.to_string()), ("digest", format!("\"{:016x}\"", whole.finish()))];
    let mut header =
        Header { metadata: plain.map(|(key, value)| (key.to_string(), value)).into(), tensors: BTreeMap::new() };
    for (key, value) in metadata.as_object().into_iter().flatten() {
        header.metadata.insert(key.clone(), value.to_string());
    }
    let mut end = 0;
    for tensor in &tensors {
        let data_offsets = (end, end + tensor.bytes.len());
        let info = TensorInfo { dtype: tensor.kind, shape: tensor.shape.clone(), data_offsets };
        header.tensors.insert(tensor.name.clone(), info);
        end = data_offsets.1;
    }
    let mut text = serde_json::to_vec(&header).map_err(|error| Error::file(path, error))?;
    text.resize(text.len().next_multiple_of(8), b' ');
    let length = (text.len() as u64).to_le_bytes();
    let parts: Vec<&[u8]> = [&length[..], &text].into_iter().chain(tensors.iter().map(|tensor| tensor.bytes)).collect();
    write_parts(path, &parts)
}

/// A safetensors file in memory.
pub(crate) struct Saved {
    path: PathBuf,
    metadata: HashMap<String, String>,
    bytes: Vec<u8>,
}

/// Reads a file that [`save`] wrote.
///
/// # Errors
/// [`Error::File`]: unreadable, truncated, no safetensors, a newer format, damaged.
pub(crate) fn load(path: &Path) -> Result<Saved> {
    let unreadable = |error| Error::file(path, format!("expected a file that can be read, got: {error}"));
    let bytes = std::fs::read(path).map_err(unreadable)?;
    let broken = |error: safetensors::SafeTensorError| {
        Error::file(path, format!("expected a whole safetensors file, got {} bytes: {error}", bytes.len()))
    };
    let (header_len, header) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
    SafeTensors::deserialize(&bytes).map_err(broken)?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let saved = Saved { path: path.to_path_buf(), metadata, bytes };
    let format: u32 = saved.field("format")?;
    if format > FORMAT {
        return Err(Error::file(path, format!("expected format {FORMAT} or older, got {format}: update ebm-dpg")));
    }
    // Files of the first versions have none.
    if saved.metadata.contains_key("digest") {
        let whole = digest(0, &saved.bytes[8 + header_len..]);
        let (expected, got): (String, _) = (saved.field("digest")?, format!("{whole:016x}"));
        if expected != got {
            return Err(Error::file(path, format!("damaged: expected tensors of digest {expected}, got {got}")));
        }
    }
    Ok(saved)
}

impl Saved {
    /// A metadata field.
    pub(crate) fn field<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<T> {
        let text = self.metadata.get(key);
        let text = text.ok_or_else(|| Error::file(&self.path, format!("expected metadata '{key}', got none")))?;
        serde_json::from_str(text).map_err(|error| Error::file(&self.path, format!("metadata '{key}': {error}")))
    }

    /// `Ok` where the file holds a model of this kind.
    pub(crate) fn expect_kind(&self, kind: &str) -> Result<()> {
        let got: String = self.field("kind")?;
        if got == kind {
            Ok(())
        } else {
            Err(Error::file(&self.path, format!("expected a model of kind {kind}, got {got}")))
        }
    }

    /// The shape and values of a tensor of parameters, none of which may be NaN.
    pub(crate) fn tensor(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let (shape, values) = self.values::<f32>(name)?;
        if let Some(at) = values.iter().position(|v| v.is_nan()) {
            return Err(Error::file(&self.path, format!("tensor {name}: not a number at {at}")));
        }
        Ok((shape, values))
    }

    /// The shape of any tensor, and its values bit for bit.
    pub(crate) fn values<T: Stored>(&self, name: &str) -> Result<(Vec<usize>, Vec<T>)> {
        let file = SafeTensors::deserialize(&self.bytes).map_err(|error| Error::file(&self.path, error))?;
        let view = file.tensor(name).map_err(|error| Error::file(&self.path, format!("tensor {name}: {error}")))?;
        if view.dtype() != T::TYPE {
            let (expected, got) = (T::TYPE, view.dtype());
            return Err(Error::file(&self.path, format!("tensor {name}: expected {expected:?}, got {got:?}")));
        }
        let values = view.data().chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect();
        Ok((view.shape().to_vec(), values))
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.bytes).is_ok_and(|file| file.tensor(name).is_ok())
    }

    /// Where the file was read from.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    #[test]
    fn every_bit_survives_and_the_same_content_is_the_same_bytes() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("all.safetensors");
        let odd = f64::from_bits(0x7ff8_0000_dead_beef);
        let (f32s, f64s) = ([f32::NAN, -0.0, f32::MIN_POSITIVE / 2.0], [odd, f64::NEG_INFINITY, 0.1]);
        let (u32s, u64s) = ([u32::MAX, 0], [u64::MAX, 1 << 53 | 1]);
        let write = || {
            let tensors = vec![
                Tensor::new("a", &[3], &f32s),
                Tensor::new("b", &[3, 1], &f64s),
                Tensor::new("c", &[2], &u32s),
                Tensor::new("d", &[1, 2], &u64s),
                Tensor::new::<f64>("none", &[0], &[]),
            ];
            let metadata = serde_json::json!({ "kind": "test", "one": 1, "two": "zwei \"\u{1f600}\"", "three": [3.5] });
            save(&path, &metadata, tensors).unwrap();
            std::fs::read(&path).unwrap()
        };
        let first = write();
        for _ in 0..20 {
            assert_eq!(write(), first);
        }
        let file = load(&path).unwrap();
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(file.values("a").unwrap().1), f32s.map(f32::to_bits));
        let (shape, values) = file.values::<f64>("b").unwrap();
        assert_eq!(
            (shape, values.iter().map(|v| v.to_bits()).collect()),
            (vec![3, 1], f64s.map(f64::to_bits).to_vec())
        );
        assert_eq!(file.values("c").unwrap(), (vec![2], u32s.to_vec()));
        assert_eq!(file.values("d").unwrap(), (vec![1, 2], u64s.to_vec()));
        assert!(file.values::<f64>("none").unwrap().1.is_empty());
        assert_eq!(file.field::<String>("two").unwrap(), "zwei \"\u{1f600}\"");
        let error = file.values::<u32>("d").unwrap_err().to_string();
        assert!(error.contains("tensor d: expected U32, got U64"), "{error}");
        assert!(file.tensor("a").unwrap_err().to_string().contains("not a number at 0"));
    }

    /// As the first versions wrote files.
    #[test]
    fn a_file_without_a_digest_is_read() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("old.safetensors");
        let (header, values) = (HashMap::from([("format".into(), "1".into())]), [0.5f32, -0.5]);
        let view = TensorView::new(Dtype::F32, vec![2], bytemuck::cast_slice(&values)).unwrap();
        std::fs::write(&path, safetensors::serialize([("a", view)], Some(header)).unwrap()).unwrap();
        assert_eq!(load(&path).unwrap().tensor("a").unwrap(), (vec![2], values.to_vec()));
    }

    #[test]
    fn a_flipped_bit_is_damage_wherever_it_is() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("flipped.safetensors");
        save(&path, &serde_json::json!({}), vec![Tensor::new("a", &[5], &[1.0f32, 2.0, 3.0, 4.0, 5.0])]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for bit in 0..8 * 20 {
            let mut flipped = whole.clone();
            let at = whole.len() - 20 + bit / 8;
            flipped[at] ^= 1 << (bit % 8);
            std::fs::write(&path, &flipped).unwrap();
            let error = load(&path).err().expect("damaged").to_string();
            assert!(error.contains("damaged: expected tensors of digest") && !error.contains('\n'), "{error}");
        }
        // Of parts, however they are cut, it is that of the whole.
        for cuts in [vec![0, 3, 20], vec![8, 8, 17], vec![1, 2, 9], vec![20]] {
            let mut parts = Digest { state: 7, rest: [0; 8], held: 0, len: 0 };
            let mut from = 0;
            for to in cuts.into_iter().chain([20]) {
                parts.feed(&whole[from..to]);
                from = to;
            }
            assert_eq!(parts.finish(), digest(7, &whole[..20]));
        }
        let zeros = digest(0, &[0; 8]);
        assert_ne!(zeros, digest(0, &[0; 7]));
        assert_ne!(zeros, digest(1, &[0; 8]));
    }

    #[test]
    fn leftovers_of_this_file_alone_are_removed() {
        let room = tempfile::tempdir().unwrap();
        let keep = ["a.st", "b.st.tmp-12", "a.st.tmp-", "a.st.tmp-1x", "xa.st.tmp-12"];
        for name in keep.iter().chain(&["a.st.tmp-1", "a.st.tmp-4194304"]) {
            std::fs::write(room.path().join(name), name).unwrap();
        }
        remove_leftovers(&room.path().join("a.st")).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(room.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        let mut keep = keep.map(std::ffi::OsString::from);
        keep.sort();
        assert_eq!(left, keep);
        assert!(remove_leftovers(&room.path().join("no directory/a.st")).is_err());
    }

    /// A directory in the way of the last act, and none at all: what was there stays, and nothing beside it.
    #[test]
    fn what_cannot_be_written_leaves_no_temporary_file() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("taken");
        std::fs::create_dir_all(path.join("inside")).unwrap();
        let error = write_atomically(&path, b"new").unwrap_err().to_string();
        assert!(error.contains("taken: cannot be written"), "{error}");
        assert!(write_atomically(&room.path().join("none/file"), b"new").is_err());
        assert_eq!(std::fs::read_dir(room.path()).unwrap().count(), 1);
    }
}
