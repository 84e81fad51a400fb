//! Parameters on disk: safetensors, written to a temporary file, synced, then renamed, so that nothing half-written
//! survives under its final name.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::error::{Error, Result};

/// The format written; a reader refuses a newer one.
const FORMAT: u32 = 1;

/// Writes `bytes` to `path` by way of a temporary file beside it.
///
/// # Errors
/// [`Error::File`]; the temporary file is removed then.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().ok_or_else(|| Error::file(path, "expected a file name"))?.to_os_string();
    name.push(format!(".tmp-{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = std::fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|error| {
        // Already reporting one failure: that the clean-up failed as well adds nothing.
        let _ = std::fs::remove_file(&temporary);
        Error::file(path, format!("cannot be written: {error}"))
    })
}

/// Writes named f32 tensors and a JSON object of metadata.
pub(crate) fn save(path: &Path, metadata: &serde_json::Value, tensors: &[(&str, Vec<usize>, &[f32])]) -> Result<()> {
    let mut header = HashMap::from([("format".to_string(), FORMAT.to_string())]);
    for (key, value) in metadata.as_object().into_iter().flatten() {
        header.insert(key.clone(), value.to_string());
    }
    let views = tensors
        .iter()
        .map(|(name, shape, values)| {
            TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values)).map(|view| (*name, view))
        })
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|error| Error::file(path, error))?;
    let bytes = safetensors::serialize(views, Some(header)).map_err(|error| Error::file(path, error))?;
    write_atomically(path, &bytes)
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
/// [`Error::File`]: unreadable, truncated, no safetensors, a newer format.
pub(crate) fn load(path: &Path) -> Result<Saved> {
    let unreadable = |error| Error::file(path, format!("expected a file that can be read, got: {error}"));
    let bytes = std::fs::read(path).map_err(unreadable)?;
    let broken = |error: safetensors::SafeTensorError| {
        Error::file(path, format!("expected a whole safetensors file, got {} bytes: {error}", bytes.len()))
    };
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
    SafeTensors::deserialize(&bytes).map_err(broken)?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let saved = Saved { path: path.to_path_buf(), metadata, bytes };
    let format: u32 = saved.field("format")?;
    if format > FORMAT {
        return Err(Error::file(path, format!("expected format {FORMAT} or older, got {format}: update ebm-dpg")));
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

    /// A tensor's shape and values.
    pub(crate) fn tensor(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let file = SafeTensors::deserialize(&self.bytes).map_err(|error| Error::file(&self.path, error))?;
        let view = file.tensor(name).map_err(|error| Error::file(&self.path, error))?;
        if view.dtype() != Dtype::F32 {
            return Err(Error::file(&self.path, format!("tensor {name}: expected F32, got {:?}", view.dtype())));
        }
        let values: Vec<f32> = view.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        if let Some(at) = values.iter().position(|v| v.is_nan()) {
            return Err(Error::file(&self.path, format!("tensor {name}: not a number at {at}")));
        }
        Ok((view.shape().to_vec(), values))
    }
}
