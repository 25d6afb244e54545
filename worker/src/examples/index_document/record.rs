//! Records on disk: complete or not there at all, and no two keys share one.

use std::{fmt::Write as _, fs, io, path::Path};

use super::Index;

/// Longest name before the extension: file systems take 255 bytes.
const MAX_NAME_BYTES: usize = 200;

/// A file name for any key: what is not safe is written `%XX`, so that different keys never share a file.
pub(super) fn file_name(key: &str) -> String {
    let mut name = String::with_capacity(key.len() + 5);
    for byte in key.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => name.push(char::from(byte)),
            // Not at the start: such a file would be hidden.
            b'.' if !name.is_empty() => name.push('.'),
            _ => {
                let _ = write!(name, "%{byte:02X}");
            }
        }
    }
    if name.len() > MAX_NAME_BYTES {
        name.truncate(MAX_NAME_BYTES);
        let _ = write!(name, "-{:016x}", fingerprint(key));
    }
    name.push_str(".json");
    name
}

/// Writes a record so that nobody ever sees half of it, also when two workers write it at once.
pub(super) fn write(path: &Path, task: &str, attempt: u32, record: &Index) -> io::Result<()> {
    let unfinished = path.with_file_name(format!(".{}-{attempt}-{task}.tmp", std::process::id()));
    let mut json = serde_json::to_vec_pretty(record)?;
    json.push(b'\n');
    fs::write(&unfinished, json)
        .and_then(|()| fs::rename(&unfinished, path))
        .map_err(|error| {
            let _ = fs::remove_file(&unfinished);
            io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()))
        })
}

/// FNV-1a: the same in every process and release.
fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
