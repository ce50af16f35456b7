//! The way through a proxy for TLS connections: the dialogue of [`qmux_config::proxy`] on a socket.

use std::io;

use qmux_config::ProxyAddress;
use qmux_config::proxy::{ANSWER_BYTES_MAX, Dialogue, Place, Step};

use crate::sys::tcp::TcpSocket;

/// Opens a way to `place` through the proxy that `socket` is connected to. What the proxy sends is
/// read byte by byte, because TLS follows it.
///
/// # Errors
/// The proxy's refusal, in words.
pub(super) async fn open(
    socket: &TcpSocket,
    proxy: &ProxyAddress,
    place: &Place,
) -> Result<(), String> {
    let (mut dialogue, greeting) = Dialogue::begin(proxy, place)?;
    send(socket, &greeting).await?;
    let mut said = Vec::new();
    let mut in_all = 0;
    loop {
        let mut byte = [0; 1];
        match socket.try_read(&mut byte) {
            Ok(0) => return Err("it closed the connection without an answer".into()),
            Ok(_) => said.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.readable().await.map_err(|error| error.to_string())?;
                continue;
            }
            Err(error) => return Err(error.to_string()),
        }
        in_all += 1;
        match dialogue.next(&said)? {
            Step::Wait => {}
            Step::Through => return Ok(()),
            Step::Say(words) => {
                said.clear();
                send(socket, &words).await?;
            }
        }
        if in_all >= ANSWER_BYTES_MAX {
            return Err(format!(
                "it answers with more than {ANSWER_BYTES_MAX} bytes, so it is no such proxy"
            ));
        }
    }
}

async fn send(socket: &TcpSocket, mut words: &[u8]) -> Result<(), String> {
    while !words.is_empty() {
        match socket.try_write(words) {
            Ok(count) => words = &words[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.writable().await.map_err(|error| error.to_string())?;
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}
