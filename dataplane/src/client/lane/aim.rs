//! The server core that each lane is aimed at: the lanes of one client evenly around the server's
//! cores, the first lanes of many clients all over them.
//!
//! A visitor on a core without a lane of the client goes to the next core that has one, counted
//! around. So lanes with the same distance from each other get the same share of these visitors,
//! and each further lane halves the largest distance. Each client draws the core of its first lane
//! at random: otherwise the first cores of a server with many small clients would have all the
//! work.

/// The first byte of the connection id by which a lane is aimed. A server takes it modulo the
/// number of its cores, so the first lane arrives at the right core even while that number is not
/// known (`server_cores` is 0 then). `begins_at` is the core of the client's first lane.
pub(crate) fn first_byte(begins_at: u8, lane: usize, server_cores: usize) -> u8 {
    if server_cores == 0 {
        return begins_at;
    }
    let core = (usize::from(begins_at) + spread(lane % server_cores, server_cores)) % server_cores;
    // A connection id can name no more cores than its first byte has values.
    u8::try_from(core).unwrap_or(0)
}

/// The server core that a lane with this first byte arrives at.
pub(crate) fn core_of(first_byte: u8, server_cores: usize) -> usize {
    usize::from(first_byte) % server_cores.max(1)
}

/// The place of number `index` below `count` if each number is put into the middle of the largest
/// gap between those before it, around a circle of `count` places: for 8 this is 0, 4, 2, 6, 1, 5,
/// 3, 7.
fn spread(index: usize, count: usize) -> usize {
    if count <= 1 {
        return 0;
    }
    let bits = count.next_power_of_two().trailing_zeros();
    let place = |number: usize| ((number.reverse_bits() >> (usize::BITS - bits)) * count) >> bits;
    // Some numbers may fall into one place; the first of them gets it.
    let mut taken = [false; crate::sys::CORES_MAX];
    let mut nth = 0;
    for number in 0..1 << bits {
        let place = place(number);
        if std::mem::replace(&mut taken[place], true) {
            continue;
        }
        if nth == index {
            return place;
        }
        nth += 1;
    }
    index
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::sys::CORES_MAX;

    #[test]
    fn each_server_core_gets_one_lane_of_as_many_wherever_the_first_one_goes() {
        for cores in 1..=CORES_MAX {
            for begins_at in [0, 1, 77, 255] {
                let reached: BTreeSet<usize> = (0..cores)
                    .map(|lane| core_of(first_byte(begins_at, lane, cores), cores))
                    .collect();
                assert_eq!(reached.len(), cores, "{cores} cores from {begins_at}");
            }
        }
    }

    #[test]
    fn the_first_lane_is_aimed_right_before_the_number_of_cores_is_known() {
        for begins_at in 0..=u8::MAX {
            let blind = first_byte(begins_at, 0, 0);
            for cores in 1..=CORES_MAX {
                let aimed = first_byte(begins_at, 0, cores);
                assert_eq!(core_of(blind, cores), core_of(aimed, cores));
            }
        }
    }

    #[test]
    fn the_largest_gap_between_lanes_is_less_than_twice_an_even_one() {
        for cores in 1..=CORES_MAX {
            for lanes in 1..=cores {
                let mut reached: Vec<usize> = (0..lanes)
                    .map(|lane| core_of(first_byte(9, lane, cores), cores))
                    .collect();
                reached.sort_unstable();
                let gaps = reached.windows(2).map(|two| two[1] - two[0]);
                let around = reached[0] + cores - reached[lanes - 1];
                let largest = gaps.chain([around]).max().expect("one");
                let even = cores.div_ceil(lanes);
                assert!(largest <= 2 * even, "{largest} with {lanes} of {cores}");
            }
        }
    }
}
