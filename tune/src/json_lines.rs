//! Files with one JSON value per line. A writer that is killed loses at most the line that it was writing.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Result, TuneError};

/// A file open for appending lines of JSON.
#[derive(Debug)]
pub struct Appender {
    path: PathBuf,
    file: File,
}

impl Appender {
    /// Opens or creates a file for appending. An unfinished last line is cut off; an object that only lacks its line break
    /// gets it. While the appender is open, no other appender can open the file.
    ///
    /// # Errors
    /// [`TuneError::Io`], including when another appender has the file open.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = || TuneError::io("write", path);
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(path).map_err(failed())?;
        file.try_lock().map_err(|error| match error {
            TryLockError::Error(error) => failed()(error),
            TryLockError::WouldBlock => {
                let reason = "another process is writing to it";
                failed()(io::Error::new(io::ErrorKind::ResourceBusy, reason))
            }
        })?;
        let end = end_of_lines(&mut file).map_err(failed())?;
        file.seek(SeekFrom::Start(end)).map_err(failed())?;
        let mut last = Vec::new();
        file.read_to_end(&mut last).map_err(failed())?;
        if is_whole_object(&last) {
            file.write_all(b"\n").map_err(failed())?;
        } else {
            file.set_len(end).map_err(failed())?;
            file.seek(SeekFrom::Start(end)).map_err(failed())?;
        }
        Ok(Self { path: path.into(), file })
    }

    /// Appends a value as a line; when this returns, the operating system has the line.
    ///
    /// # Errors
    /// [`TuneError::Io`].
    pub fn append(&mut self, value: &impl Serialize) -> Result<()> {
        let failed = || TuneError::io("write", &self.path);
        let mut line = serde_json::to_vec(value).map_err(io::Error::from).map_err(failed())?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(failed())
    }
}

/// Reads the values of a JSON-lines file; a missing file has none. An unfinished last line is left out; an object that
/// only lacks its line break is not.
///
/// # Errors
/// [`TuneError::Io`], or [`TuneError::File`] naming the first line that is not a `T`.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let failed = || TuneError::io("read", path);
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file.map_err(failed())?,
    };
    let mut reader = BufReader::new(file);
    let mut values = Vec::new();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        reader.read_until(b'\n', &mut line).map_err(failed())?;
        if line.last() != Some(&b'\n') && !is_whole_object(&line) {
            break;
        }
        let value = serde_json::from_slice(&line).map_err(|error| TuneError::File {
            path: path.into(),
            reason: format!("line {number}: {error}"),
        })?;
        values.push(value);
    }
    Ok(values)
}

/// Returns whether a line is a whole JSON object. The brace at an object's end shows that nothing of it is missing; a
/// number could go on.
pub(crate) fn is_whole_object(line: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(line).is_ok()
}

/// Returns the offset after a file's last line break, searched from the end.
fn end_of_lines(file: &mut File) -> io::Result<u64> {
    const BLOCK: u64 = 1 << 16;
    let mut end = file.metadata()?.len();
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(start))?;
        block.clear();
        Read::take(&mut *file, end - start).read_to_end(&mut block)?;
        if let Some(last) = block.iter().rposition(|&byte| byte == b'\n') {
            return Ok(start + last as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_line_that_was_not_finished_is_lost_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines.jsonl");
        assert!(read::<u32>(&path).unwrap().is_empty());
        let mut lines = Appender::open(&path).unwrap();
        lines.append(&1).unwrap();
        lines.append(&2).unwrap();
        drop(lines);
        let mut text = fs::read(&path).unwrap();
        text.extend(vec![b'3'; 200_000]);
        fs::write(&path, &text).unwrap();
        assert_eq!(read::<u32>(&path).unwrap(), [1, 2]);
        Appender::open(&path).unwrap().append(&4).unwrap();
        assert_eq!(read::<u32>(&path).unwrap(), [1, 2, 4]);
        fs::write(&path, "5").unwrap();
        Appender::open(&path).unwrap().append(&6).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "6\n");
    }

    /// An editor may leave out the last line break.
    #[test]
    fn an_object_without_a_line_break_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines.jsonl");
        let object = |n: u32| serde_json::json!({ "n": n });
        fs::write(&path, "{\"n\":1}\n{\"n\":2}").unwrap();
        assert_eq!(read::<serde_json::Value>(&path).unwrap(), [object(1), object(2)]);
        Appender::open(&path).unwrap().append(&object(3)).unwrap();
        assert_eq!(read::<serde_json::Value>(&path).unwrap(), [object(1), object(2), object(3)]);
        for unfinished in ["{\"n\":4", "{\"n\":4}}", "4"] {
            fs::write(&path, format!("{{\"n\":1}}\n{unfinished}")).unwrap();
            assert_eq!(read::<serde_json::Value>(&path).unwrap(), [object(1)], "{unfinished}");
        }
    }

    #[test]
    fn one_writer_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines.jsonl");
        let _first = Appender::open(&path).unwrap();
        let error = Appender::open(&path).unwrap_err().to_string();
        assert!(error.ends_with("another process is writing to it"), "{error}");
    }

    #[test]
    fn a_garbled_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines.jsonl");
        fs::write(&path, "1\n{\n3\n").unwrap();
        let error = read::<u32>(&path).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }
}
