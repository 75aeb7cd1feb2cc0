//! Append-only files of one JSON value a line.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

/// A line that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum JsonLinesError {
    /// The file could not be opened.
    #[error("{path} cannot be opened for appending")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The value has no JSON form.
    #[error("a record for {path} has no JSON form")]
    Encode {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The line did not reach the file.
    #[error("{path}: a line of {bytes} bytes could not be written")]
    Write {
        /// The file.
        path: PathBuf,
        /// Length of the line.
        bytes: usize,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Appends one JSON value a line. A line is one `write`, so that a killed process leaves whole
/// lines; the torn end that a full disk can leave is cut off when the file is opened again.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    file: File,
}

impl JsonLines {
    /// Opens or creates a file at its end.
    ///
    /// # Errors
    /// [`JsonLinesError::Open`] names the file and the cause.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, JsonLinesError> {
        let path = path.into();
        let open = |path: &Path| -> std::io::Result<File> {
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(path)?;
            let mut text = Vec::new();
            file.read_to_end(&mut text)?;
            let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            file.set_len(whole as u64)?;
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        match open(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(JsonLinesError::Open { path, source }),
        }
    }

    /// Opens a file that is empty, whatever stood there.
    ///
    /// # Errors
    /// [`JsonLinesError::Open`] names the file and the cause.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, JsonLinesError> {
        let path = path.into();
        match File::create(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(JsonLinesError::Open { path, source }),
        }
    }

    /// Appends one value.
    ///
    /// # Errors
    /// The value has no JSON form, or the disk refused the line; the file keeps whole lines.
    pub fn append(&mut self, value: &impl Serialize) -> Result<(), JsonLinesError> {
        let mut line = serde_json::to_vec(value)
            .map_err(|source| JsonLinesError::Encode { path: self.path.clone(), source })?;
        line.push(b'\n');
        let end = self.file.stream_position().unwrap_or(0);
        self.file.write_all(&line).map_err(|source| {
            // Half a line may stand there now; the next reader must not see it.
            let _ = self.file.set_len(end).and_then(|()| self.file.seek(SeekFrom::Start(end)));
            JsonLinesError::Write { path: self.path.clone(), bytes: line.len(), source }
        })
    }

    /// Keeps only the lines whose value `keep` accepts. The file is replaced as a whole; what is
    /// no JSON goes.
    ///
    /// # Errors
    /// The file could not be read or replaced; it is then as before.
    pub fn retain(
        &mut self,
        keep: impl Fn(&serde_json::Value) -> bool,
    ) -> Result<(), JsonLinesError> {
        let mut temporary = self.path.as_os_str().to_owned();
        temporary.push(".tmp");
        let temporary = PathBuf::from(temporary);
        let replace = || -> std::io::Result<()> {
            let kept = |line: &[u8]| serde_json::from_slice(line).is_ok_and(|value| keep(&value));
            let mut lines = BufReader::new(File::open(&self.path)?);
            let mut out = BufWriter::new(File::create(&temporary)?);
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line)? > 0 {
                if kept(&line) {
                    out.write_all(&line)?;
                }
                line.clear();
            }
            out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
            std::fs::rename(&temporary, &self.path)
        };
        if let Err(source) = replace() {
            let _ = std::fs::remove_file(&temporary);
            return Err(JsonLinesError::Open { path: self.path.clone(), source });
        }
        *self = Self::open(&self.path)?;
        Ok(())
    }

    /// The file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_appended_and_a_torn_end_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"a\":1}\n{\"a\":").unwrap();
        let mut lines = JsonLines::open(&path).unwrap();
        lines.append(&serde_json::json!({"a": 2})).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"a\":1}\n{\"a\":2}\n");
    }

    #[test]
    fn lines_are_taken_back_and_others_follow() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut lines = JsonLines::open(&path).unwrap();
        for a in [1, 2, 3] {
            lines.append(&serde_json::json!({ "a": a })).unwrap();
        }
        lines.retain(|line| line["a"].as_u64() < Some(3)).unwrap();
        lines.append(&serde_json::json!({ "a": 4 })).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"a\":1}\n{\"a\":2}\n{\"a\":4}\n");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = JsonLines::open("/no/such/folder/m.jsonl").unwrap_err();
        assert_eq!(error.to_string(), "/no/such/folder/m.jsonl cannot be opened for appending");
    }

    #[test]
    fn a_full_disk_is_an_error_that_names_the_file() {
        // /dev/full refuses every write; it exists on Linux only, as the project does.
        let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut lines = JsonLines { path: "/dev/full".into(), file };
        let error = lines.append(&serde_json::json!({"a": 1})).unwrap_err();
        assert!(error.to_string().contains("/dev/full"), "{error}");
    }
}
