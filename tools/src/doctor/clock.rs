//! The time by another clock (SNTP, RFC 4330), and whether this host's clock explains that a
//! certificate is not valid.

use std::net::UdpSocket;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boring::x509::X509;

use super::credentials::{is_begun_at, is_valid_at};

/// Port of NTP.
const NTP_PORT: u16 = 123;
/// Number of questions, because one may get lost.
const TRIES: u32 = 3;
/// How long each answer may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of a message without extensions.
const MESSAGE_BYTES: usize = 48;
/// The first byte of a client's question: no leap warning, version 4.
const QUESTION: u8 = 0b00_100_011;
/// Mode of a server's answer.
const MODE_SERVER: u8 = 4;
/// Offset of the time at which the answer was sent, in seconds.
const TRANSMITTED_AT: usize = 40;
/// Offset of the time that the answer repeats from the question.
const ORIGINATED_AT: usize = 24;
/// Seconds from 1900, the epoch of NTP, to 1970, that of Unix.
const NTP_TO_UNIX_S: i64 = 2_208_988_800;
/// Seconds until NTP's count begins anew, as in 2036.
const NTP_ERA_S: i64 = 1 << 32;

/// This host's time, in seconds of Unix time.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |it| i64::try_from(it.as_secs()).unwrap_or(i64::MAX))
}

/// The time by an NTP server, given as HOST or HOST:PORT; `None` if there is no answer.
pub(super) fn asked(server: &str) -> Option<i64> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    let reached = match server.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => socket.connect(server),
        _ => socket.connect((server, NTP_PORT)),
    };
    reached.ok()?;
    socket.set_read_timeout(Some(PATIENCE)).ok()?;
    (0..TRIES).find_map(|_| {
        let mut question = [0; MESSAGE_BYTES];
        question[0] = QUESTION;
        // A random number that the answer must repeat.
        let mark: [u8; 8] = super::connection::random();
        question[TRANSMITTED_AT..].copy_from_slice(&mark);
        socket.send(&question).ok()?;
        let mut answer = [0; MESSAGE_BYTES];
        let length = socket.recv(&mut answer).ok()?;
        read(&answer[..length], mark)
    })
}

/// The time in an answer.
fn read(answer: &[u8], mark: [u8; 8]) -> Option<i64> {
    if answer.len() < MESSAGE_BYTES {
        return None;
    }
    let (mode, stratum) = (answer.first()? & 0b111, *answer.get(1)?);
    let repeated = answer.get(ORIGINATED_AT..ORIGINATED_AT + mark.len())?;
    // Stratum 0 is a refusal.
    if mode != MODE_SERVER || stratum == 0 || repeated != mark {
        return None;
    }
    let seconds = answer.get(TRANSMITTED_AT..)?.first_chunk::<4>()?;
    let seconds = i64::from(u32::from_be_bytes(*seconds));
    // A time before 1970 by the first era belongs to the second one.
    let era = if seconds < NTP_TO_UNIX_S {
        NTP_ERA_S
    } else {
        0
    };
    Some(seconds + era - NTP_TO_UNIX_S)
}

/// The facts when a certificate is not valid by this host's clock.
pub(super) struct Evidence<'a> {
    /// This host's time.
    pub(super) now: i64,
    /// The time of `time_server`, if it answered.
    pub(super) elsewhere: Option<i64>,
    pub(super) time_server: &'a str,
    /// Every certificate that must be valid: the server's, the client's, the CA's.
    pub(super) certs: &'a [X509],
    /// Certificates among them that this host has in its own files.
    pub(super) own: &'a [X509],
    /// Whether the server has checked this client's certificate, and accepted it.
    pub(super) own_was_accepted: bool,
}

/// A sentence that explains why the clock is wrong; `None` if it is not known to be.
pub(super) fn is_wrong(evidence: &Evidence<'_>) -> Option<String> {
    const REMEDY: &str = "set it (timedatectl set-ntp true), because certificates are judged by it";
    let Evidence {
        now, certs, own, ..
    } = *evidence;
    let all_valid_at = |at| certs.iter().all(|cert| is_valid_at(cert, at));
    if let Some(there) = evidence.elsewhere {
        let off = difference(now, there);
        let source = evidence.time_server;
        return (all_valid_at(there) && !all_valid_at(now)).then(|| {
            format!(
                "this host's clock says {}, which is {off} the time of {source}: {REMEDY}",
                shown(now)
            )
        });
    }
    if evidence.own_was_accepted && own.iter().any(|cert| !is_valid_at(cert, now)) {
        return Some(format!(
            "this host's clock says {}, and by it this client's own certificate is not valid, but \
            the server has accepted that certificate by its clock: this host's clock is wrong; \
            {REMEDY}",
            shown(now)
        ));
    }
    // Nobody issues certificates of the future.
    if own.iter().any(|cert| !is_begun_at(cert, now)) {
        return Some(format!(
            "this host's clock says {}, which is before the certificates in this client's own \
            files were made: it is behind; {REMEDY}",
            shown(now)
        ));
    }
    None
}

/// How far off a clock is, in words that go before "the time of".
fn difference(here: i64, there: i64) -> String {
    let off = here.abs_diff(there);
    let (days, hours, minutes) = (off / 86_400, off % 86_400 / 3_600, off % 3_600 / 60);
    let amount = match (days, hours) {
        (0, 0) => format!("{minutes} minutes"),
        (0, _) => format!("{hours} hours and {minutes} minutes"),
        _ => format!("{days} days and {hours} hours"),
    };
    format!(
        "{amount} {}",
        if here < there { "behind" } else { "ahead of" }
    )
}

/// A Unix time in words.
pub(super) fn shown(unix_s: i64) -> String {
    boring::asn1::Asn1Time::from_unix(unix_s).map_or_else(
        |_| format!("{unix_s} s after 1970"),
        |time| time.to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(first: u8, stratum: u8, seconds: u32, mark: [u8; 8]) -> [u8; MESSAGE_BYTES] {
        let mut answer = [0; MESSAGE_BYTES];
        (answer[0], answer[1]) = (first, stratum);
        answer[ORIGINATED_AT..ORIGINATED_AT + 8].copy_from_slice(&mark);
        answer[TRANSMITTED_AT..TRANSMITTED_AT + 4].copy_from_slice(&seconds.to_be_bytes());
        answer
    }

    #[test]
    fn an_answer_tells_the_time_in_either_era() {
        let mark = [7; 8];
        assert_eq!(
            read(&answer(0x24, 2, 3_913_056_000, mark), mark),
            Some(1_704_067_200)
        );
        // 2040-01-01.
        assert_eq!(
            read(&answer(0x24, 2, 123_010_304, mark), mark),
            Some(2_208_988_800)
        );
    }

    #[test]
    fn what_answers_another_question_or_refuses_tells_nothing() {
        let mark = [7; 8];
        assert_eq!(read(&answer(0x24, 2, 3_913_056_000, [8; 8]), mark), None);
        assert_eq!(read(&answer(0x24, 0, 3_913_056_000, mark), mark), None);
        assert_eq!(read(&answer(QUESTION, 2, 3_913_056_000, mark), mark), None);
        let whole = answer(0x24, 2, 3_913_056_000, mark);
        assert_eq!(read(&whole[..47], mark), None);
        assert_eq!(read(&[], mark), None);
    }

    #[test]
    fn a_difference_has_an_amount_and_a_direction() {
        assert_eq!(difference(0, 90_000), "1 days and 1 hours behind");
        assert_eq!(difference(7_260, 0), "2 hours and 1 minutes ahead of");
        assert_eq!(difference(600, 0), "10 minutes ahead of");
    }
}
