//! A timer finer than the runtime's, whose wheel has steps of one millisecond: a `timerfd`.
//!
//! Pacing needs it: a packet that leaves a millisecond late leaves the line idle for that long, and
//! quiche's pacer does not make up for lost time.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// A timer that can be set again at any time, with the resolution of the kernel's clock.
#[derive(Debug)]
pub(crate) struct FineTimer {
    // The runtime can wait for the readiness of its own socket types only. This descriptor is not a
    // socket, and is never used as one: it is polled and read.
    io: monoio::net::unix::UnixDatagram,
}

impl FineTimer {
    /// Makes a timer that is not set. Must be called inside a core's runtime.
    pub(crate) fn new() -> io::Result<FineTimer> {
        let fd = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        Ok(FineTimer {
            io: monoio::net::unix::UnixDatagram::from_std(UnixDatagram::from(fd))?,
        })
    }

    /// Sets the timer to fire once, `after` from now, in place of the time that it was set to.
    pub(crate) fn set(&self, after: Duration) -> io::Result<()> {
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // A value of zero would switch it off.
        let after = after.max(Duration::from_nanos(1));
        let value = Timespec {
            tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: after.subsec_nanos().into(),
        };
        timerfd_settime(
            super::borrow(&self.io),
            TimerfdTimerFlags::empty(),
            &Itimerspec {
                it_interval: zero,
                it_value: value,
            },
        )?;
        Ok(())
    }

    /// Waits until the timer has fired. Cancel-safe.
    pub(crate) async fn fired(&self) -> io::Result<()> {
        loop {
            self.io.readable(false).await?;
            let mut count = [0u8; 8];
            match rustix::io::read(super::borrow(&self.io), &mut count) {
                Ok(_) => return Ok(()),
                // The timer was set again meanwhile.
                Err(rustix::io::Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn it_fires_when_it_was_last_set_to_and_never_early() {
        let mut runtime = monoio::RuntimeBuilder::<monoio::FusionDriver>::new()
            .enable_timer()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let timer = FineTimer::new().expect("a timer");
            let began = Instant::now();
            timer.set(Duration::from_secs(3_600)).expect("set");
            timer.set(Duration::from_micros(300)).expect("set again");
            timer.fired().await.expect("fired");
            assert!(began.elapsed() >= Duration::from_micros(300));
            timer.set(Duration::ZERO).expect("set to now");
            timer.fired().await.expect("fired");
        });
    }
}
