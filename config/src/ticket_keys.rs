//! Session ticket keys in a file, so that several servers share them and they survive a restart.
//!
//! One key a line, as base64 or hexadecimal; or the whole file is one key in raw bytes, the form
//! that other servers use. The first key seals new tickets, all of them open tickets.

use std::fmt;
use std::path::Path;

use boring::base64;

/// The most keys of a file: one that seals tickets, and as many old ones as rotation may keep.
pub const TICKET_KEYS_MAX: usize = 1 + crate::server::TICKET_KEY_ROTATION_OVERLAP_MAX as usize;

/// The largest file, in bytes: the most keys in the longest form, with room for comments.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Bytes of a key's name, which is part of every ticket that it seals (RFC 5077, section 4).
pub const TICKET_KEY_NAME_BYTES: usize = 16;

/// Bytes of a key with 128-bit secrets, and of one with 256-bit secrets.
const KEY_BYTES: [usize; 2] = [48, 80];

/// The form of a line, for messages.
const FORM: &str =
    "48 or 80 bytes in base64 or hexadecimal, for example from: openssl rand -hex 80";

/// One session ticket key: a name, and the secrets that seal and open tickets.
#[derive(Clone, PartialEq, Eq)]
pub struct TicketKey {
    bytes: Vec<u8>,
}

impl TicketKey {
    /// Bytes of the longer form, for drawing a key.
    pub const BYTES: usize = 80;

    /// A key of 48 bytes (AES-128, a MAC key of 128 bits) or 80 (256 bits each): name, MAC key,
    /// cipher key. `None` for any other length.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        KEY_BYTES
            .contains(&bytes.len())
            .then_some(TicketKey { bytes })
    }

    /// Draws a key with 256-bit secrets; `None` if the system gives no randomness.
    #[must_use]
    pub fn draw() -> Option<Self> {
        let mut bytes = vec![0; Self::BYTES];
        boring::rand::rand_bytes(&mut bytes).ok()?;
        Self::new(bytes)
    }

    /// The line of a file for this key. The caller keeps it out of logs.
    #[must_use]
    pub fn to_line(&self) -> String {
        self.bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// The name, which is no secret.
    #[must_use]
    pub fn name(&self) -> [u8; TICKET_KEY_NAME_BYTES] {
        // Both lengths are larger than a name.
        self.bytes.first_chunk().copied().unwrap_or_default()
    }

    /// The key of the MAC, 16 or 32 bytes. The caller keeps it out of logs.
    #[must_use]
    pub fn mac_key(&self) -> &[u8] {
        self.secrets().0
    }

    /// The key of the cipher, 16 or 32 bytes. The caller keeps it out of logs.
    #[must_use]
    pub fn cipher_key(&self) -> &[u8] {
        self.secrets().1
    }

    fn secrets(&self) -> (&[u8], &[u8]) {
        let secrets = &self.bytes[TICKET_KEY_NAME_BYTES..];
        secrets.split_at(secrets.len() / 2)
    }
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TicketKey(redacted)")
    }
}

/// Reads the keys of a file; the first one seals tickets.
///
/// # Errors
/// A text that continues a sentence which starts with the file's path. It shows nothing of
/// the file.
pub fn read_ticket_keys(path: &Path) -> Result<Vec<TicketKey>, String> {
    let cannot = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            "does not exist; qmux-ctl ticket-key makes one to start with".to_owned()
        }
        _ => format!("cannot be read: {error}"),
    };
    let metadata = std::fs::metadata(path).map_err(cannot)?;
    if !metadata.is_file() {
        return Err("is not a file".to_owned());
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(format!("is larger than {} KiB", FILE_BYTES_MAX >> 10));
    }
    parse_ticket_keys(&std::fs::read(path).map_err(cannot)?)
}

/// Reads the keys from a file's content, as [`read_ticket_keys`] does.
///
/// # Errors
/// As for [`read_ticket_keys`].
pub fn parse_ticket_keys(content: &[u8]) -> Result<Vec<TicketKey>, String> {
    // A random key of 48 bytes is text once in some 10^14 times; text with a comment may well be 48
    // or 80 bytes long.
    if !content.is_ascii()
        && let Some(key) = TicketKey::new(content.to_vec())
    {
        return Ok(vec![key]);
    }
    let Ok(text) = std::str::from_utf8(content) else {
        return Err(format!(
            "is neither text nor one key of 48 or 80 raw bytes; each line must be {FORM}"
        ));
    };
    let mut keys: Vec<(usize, TicketKey)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let (number, line) = (index + 1, line.trim());
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some(key) = decode(line).and_then(TicketKey::new) else {
            return Err(format!("has no key in line {number}; it must be {FORM}"));
        };
        if let Some((other, _)) = keys.iter().find(|(_, known)| known.name() == key.name()) {
            return Err(format!(
                "has the same name (the first 16 bytes) in the keys of lines {other} and {number}; \
                 every key must have its own"
            ));
        }
        if keys.len() == TICKET_KEYS_MAX {
            return Err(format!(
                "has one key too many in line {number}; there may be {TICKET_KEYS_MAX}"
            ));
        }
        keys.push((number, key));
    }
    if keys.is_empty() {
        return Err(format!("holds no key; each line must be {FORM}"));
    }
    Ok(keys.into_iter().map(|(_, key)| key).collect())
}

fn decode(line: &str) -> Option<Vec<u8>> {
    if !line.is_ascii() {
        return None;
    }
    let digits = line.bytes().all(|byte| byte.is_ascii_hexdigit());
    if digits && KEY_BYTES.iter().any(|bytes| line.len() == 2 * bytes) {
        return line
            .as_bytes()
            .chunks(2)
            .map(|pair| {
                let digits = std::str::from_utf8(pair).ok()?;
                u8::from_str_radix(digits, 16).ok()
            })
            .collect();
    }
    base64::decode_block(line).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn key(seed: u8, length: usize) -> Vec<u8> {
        (0..length).map(|at| seed.wrapping_add(at as u8)).collect()
    }

    #[test]
    fn keys_come_in_hexadecimal_base64_and_raw_bytes() {
        let text = format!(
            "# today's\n{}\n\n  {}\n# old ones\n{}\n{}",
            hex(&key(1, 80)),
            hex(&key(2, 48)).to_uppercase(),
            base64::encode_block(&key(3, 80)),
            base64::encode_block(&key(4, 48)),
        );
        let keys = parse_ticket_keys(text.as_bytes()).expect("keys");
        let expected: Vec<_> = [(1, 80), (2, 48), (3, 80), (4, 48)]
            .map(|(seed, length)| TicketKey::new(key(seed, length)).expect("a key"))
            .into();
        assert_eq!(keys, expected);
        for length in KEY_BYTES {
            let raw = key(200, length);
            let keys = parse_ticket_keys(&raw).expect("a raw key");
            assert_eq!(keys, [TicketKey::new(raw).expect("a key")]);
        }
    }

    #[test]
    fn the_three_parts_of_a_key_do_not_overlap() {
        for (length, secret) in [(48, 16), (80, 32)] {
            let bytes = key(7, length);
            let key = TicketKey::new(bytes.clone()).expect("a key");
            let parts = [&key.name()[..], key.mac_key(), key.cipher_key()].concat();
            assert_eq!(parts, bytes);
            assert_eq!(
                (key.mac_key().len(), key.cipher_key().len()),
                (secret, secret)
            );
        }
    }

    #[test]
    fn what_is_no_key_is_refused_with_its_line() {
        let good = hex(&key(1, 80));
        for (content, expected) in [
            (String::new(), "holds no key"),
            ("# nothing\n\n".into(), "holds no key"),
            (format!("{good}\nabc\n"), "no key in line 2"),
            (format!("{good}\n\n{}", &good[2..]), "no key in line 3"),
            (good.replace("01", "0x"), "no key in line 1"),
            ("é".repeat(48), "no key in line 1"),
            (base64::encode_block(&key(1, 64)), "no key in line 1"),
            (format!("{good}\n{good}"), "the keys of lines 1 and 2"),
            (
                (0..18).map(|seed| hex(&key(seed, 48)) + "\n").collect(),
                "one key too many in line 18",
            ),
        ] {
            let error = parse_ticket_keys(content.as_bytes()).expect_err("refused");
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains(&good[..8]), "{error} shows the key");
        }
        let error = parse_ticket_keys(&[0xff; 47]).expect_err("refused");
        assert!(error.contains("neither text nor one key"), "{error}");
    }

    #[test]
    fn a_drawn_key_is_read_back_from_its_line() {
        let (one, other) = (TicketKey::draw(), TicketKey::draw());
        let (one, other) = (one.expect("random"), other.expect("random"));
        assert_ne!(one, other);
        let text = format!("{}\n{}\n", one.to_line(), other.to_line());
        assert_eq!(parse_ticket_keys(text.as_bytes()), Ok(vec![one, other]));
    }

    #[test]
    fn a_key_never_prints_itself() {
        let printed = format!("{:?}", TicketKey::new(key(65, 80)).expect("a key"));
        assert_eq!(printed, "TicketKey(redacted)");
    }
}
