//! What lies between the two sides of a tunnel, as given on the command line.

use anyhow::Result;
use std::str::FromStr;
use std::time::Duration;

use crate::harness::place::Place;
use qmux_link::{Loss, PRESETS, Preset, Profile, preset};

/// The MTU of Ethernet, which `veth` has unless it is told another.
const VETH_MTU_DEFAULT: u32 = 1_500;

/// `loopback`, `veth[:MTU]` or `link:NAME[,KEY=VALUE…]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Path {
    Loopback,
    /// A pair of virtual Ethernet devices with this MTU.
    Veth(u32),
    Link(Box<Link>),
}

/// A known link, perhaps with changes, and its name with these changes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) preset: Preset,
}

impl Path {
    /// Sets the path up. The calling thread must be the one that starts everything else.
    pub(crate) fn open(&self) -> Result<Place> {
        match self {
            Self::Loopback => Ok(Place::loopback()),
            Self::Veth(mtu) => Place::veth(*mtu),
            Self::Link(link) => {
                let mut place = Place::link(&link.preset)?;
                if link.name != link.preset.name {
                    place.name = format!("link {}", link.name);
                }
                Ok(place)
            }
        }
    }

    pub(crate) fn is_slow(&self) -> bool {
        matches!(self, Self::Link(_))
    }
}

impl FromStr for Path {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':').unwrap_or((text, "")) {
            ("loopback", "") => Ok(Self::Loopback),
            ("veth", "") => Ok(Self::Veth(VETH_MTU_DEFAULT)),
            ("veth", mtu) => {
                let mtu = mtu.parse().map_err(|_| format!("{mtu:?} is no MTU"))?;
                Ok(Self::Veth(mtu))
            }
            ("link", link) => Ok(Self::Link(Box::new(link.parse()?))),
            _ => Err(format!(
                "{text:?} is no path; there are loopback, veth, veth:MTU and link:NAME"
            )),
        }
    }
}

impl FromStr for Link {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let name = parts.next().unwrap_or_default();
        let mut preset = preset(name).ok_or_else(|| {
            let known: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
            format!("{name:?} is no link; there are {}", known.join(", "))
        })?;
        for change in parts {
            let both = [&mut preset.left_to_right, &mut preset.right_to_left];
            for profile in both {
                apply(profile, change)?;
            }
        }
        for profile in [&preset.left_to_right, &preset.right_to_left] {
            profile.check().map_err(|error| error.to_string())?;
        }
        Ok(Self {
            name: text.to_owned(),
            preset,
        })
    }
}

fn apply(profile: &mut Profile, change: &str) -> Result<(), String> {
    let wrong = || {
        format!(
            "{change:?} is no change of a link; there are rate-mbit=, delay-ms= (one way), loss-percent=, \
             jitter-ms= and mtu=, each with a number"
        )
    };
    let (key, value) = change.split_once('=').ok_or_else(wrong)?;
    let number: f64 = value.parse().map_err(|_| wrong())?;
    if !number.is_finite() || number < 0.0 {
        return Err(wrong());
    }
    let time = || Duration::from_secs_f64(number / 1_000.0);
    match key {
        "rate-mbit" => profile.rate_bits_per_s = Some((number * 1e6) as u64),
        "delay-ms" => profile.delay = time(),
        "jitter-ms" => profile.jitter = time(),
        "loss-percent" => profile.loss = Loss::Random { p: number / 100.0 },
        "mtu" => profile.mtu = number as u16,
        _ => return Err(wrong()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read() {
        for (text, path) in [
            ("loopback", Path::Loopback),
            ("veth", Path::Veth(1_500)),
            ("veth:9000", Path::Veth(9_000)),
        ] {
            assert_eq!(text.parse(), Ok(path));
        }
        for wrong in [
            "veth:big",
            "wire",
            "loopback:1",
            "link:carrier-pigeon",
            "link:reference,loss",
            "link:reference,loss-percent=many",
            "link:reference,mtu=-1",
            "link:reference,colour=3",
        ] {
            assert!(wrong.parse::<Path>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn links_can_be_changed() {
        let link: Link = "reference,loss-percent=0.1,delay-ms=5,rate-mbit=100"
            .parse()
            .expect("a link");
        for profile in [&link.preset.left_to_right, &link.preset.right_to_left] {
            assert_eq!(profile.rate_bits_per_s, Some(100_000_000));
            assert_eq!(profile.delay, Duration::from_millis(5));
            assert_eq!(profile.loss, Loss::Random { p: 0.001 });
        }
    }
}
