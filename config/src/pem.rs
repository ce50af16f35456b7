//! Reading certificate, key and CA files, for the start and for the check alike.

use std::path::Path;

/// The largest certificate or key file, in bytes: a full bundle of public CAs has a quarter of it.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The byte order mark that Windows editors put before UTF-8 text. A PEM parser looks for lines
/// that begin with dashes, and would not find the first one.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads a PEM file, without a byte order mark.
///
/// # Errors
/// What is wrong with the file, as the end of a sentence that begins with its path.
pub fn read_pem(path: &Path) -> Result<Vec<u8>, String> {
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            "does not exist; qmux-ctl certs makes certificates to start with".to_owned()
        }
        _ => format!("cannot be read: {error}"),
    })?;
    if !metadata.is_file() {
        return Err("is not a file".to_owned());
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(format!("is larger than {} KiB", FILE_BYTES_MAX >> 10));
    }
    let bytes = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    Ok(without_mark(&bytes).to_vec())
}

/// The bytes without a byte order mark at their beginning.
pub(crate) fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes)
}
