//! Load balancing: the rule that chooses one of several clients or lanes. It uses no clock, no
//! socket and no lock; the only state that it needs is a number that counts up.

/// The most clients that one visitor is sent to before it is refused. Each may take its dial
/// timeout to refuse, and if three clients refuse a visitor, a fourth hardly takes it.
pub(crate) const CLIENTS_TRIED_MAX: usize = 3;

/// Chooses one of those `items` that have a load and whose load is the least: the `turn`th of them,
/// modulo their number. With equal loads this is round-robin; with counts of flows it is
/// least-connections with ties that rotate.
///
/// Other cores may change the loads during the call. Then the choice is an item whose load was the
/// least when the loads were first read.
pub(crate) fn choose<T: Copy, L: Ord>(
    items: impl Iterator<Item = T> + Clone,
    turn: usize,
    load: impl Fn(T) -> Option<L>,
) -> Option<T> {
    let mut least: Option<(L, usize, T)> = None;
    for item in items.clone() {
        let Some(load) = load(item) else { continue };
        match &mut least {
            Some((known, _, _)) if load > *known => {}
            Some((known, count, _)) if load == *known => *count += 1,
            _ => least = Some((load, 1, item)),
        }
    }
    let (least, count, first) = least?;
    let nth = turn % count;
    items
        .filter(|item| load(*item).as_ref() == Some(&least))
        .nth(nth)
        .or(Some(first))
}

/// The clients that one visitor has been sent to, by their numbers; none gets the visitor twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tried {
    clients: [u64; CLIENTS_TRIED_MAX],
    count: usize,
    /// Whether only clients that answer may be chosen, because the visitor has waited in vain for
    /// one that did not.
    must_answer: bool,
}

/// The mark of an entry whose client may be tried again.
const FORGOTTEN: u64 = u64::MAX;

impl Tried {
    /// An empty list for a visitor who needs a client that answers.
    pub(crate) fn who_must_answer() -> Tried {
        Tried {
            must_answer: true,
            ..Tried::default()
        }
    }

    /// Adds a client to the list.
    pub(crate) fn add(&mut self, client: u64) {
        if let Some(place) = self.clients.get_mut(self.count) {
            *place = client;
            self.count += 1;
        }
    }

    /// Notes that the visitor was sent to this client, on a lane whose peer did not answer. Another
    /// lane of that client may be chosen, but no client that does not answer.
    pub(crate) fn unanswered(&mut self, client: u64) {
        self.require_answer();
        for place in &mut self.clients[..self.count] {
            if *place == client {
                *place = FORGOTTEN;
            }
        }
    }

    /// From now on only clients that answer may be chosen.
    pub(crate) fn require_answer(&mut self) {
        self.must_answer = true;
    }

    /// Whether only clients that answer may be chosen.
    pub(crate) fn must_answer(&self) -> bool {
        self.must_answer
    }

    /// Whether the visitor has been sent to this client.
    pub(crate) fn contains(&self, client: u64) -> bool {
        self.clients[..self.count].contains(&client)
    }

    /// Whether the visitor has been sent to as many clients as is allowed.
    pub(crate) fn is_full(&self) -> bool {
        self.count == CLIENTS_TRIED_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns<L: Ord + Copy>(loads: &[Option<L>], turns: usize) -> Vec<usize> {
        (0..turns)
            .filter_map(|turn| choose(0..loads.len(), turn, |item| loads[item]))
            .collect()
    }

    #[test]
    fn items_of_equal_load_take_turns_and_those_without_a_load_are_passed_over() {
        let loads = [Some(0), None, Some(0), Some(0)];
        assert_eq!(turns(&loads, 7), [0, 2, 3, 0, 2, 3, 0]);
    }

    #[test]
    fn only_the_least_are_chosen() {
        assert_eq!(
            turns(&[Some(2), Some(1), Some(3), Some(1)], 4),
            [1, 3, 1, 3]
        );
    }

    #[test]
    fn nothing_is_chosen_where_no_item_has_a_load() {
        assert_eq!(turns::<u8>(&[], 3), [0; 0]);
        assert_eq!(turns::<u8>(&[None, None], 3), [0; 0]);
    }

    #[test]
    fn an_item_is_chosen_even_if_the_loads_change_during_the_call() {
        let looks = std::cell::Cell::new(0);
        let chosen = choose([7, 8].into_iter(), 1, |_| {
            looks.set(looks.get() + 1);
            Some(looks.get())
        });
        assert_eq!(chosen, Some(7));
    }

    #[test]
    fn an_unanswered_visitor_may_go_to_the_same_client_again_but_each_time_counts() {
        let mut tried = Tried::default();
        for _ in 0..CLIENTS_TRIED_MAX {
            assert!(!tried.is_full());
            tried.add(7);
            assert!(tried.contains(7));
            tried.unanswered(7);
            assert!(!tried.contains(7) && tried.must_answer());
        }
        assert!(tried.is_full());
    }

    #[test]
    fn clients_that_were_added_are_contained_up_to_the_bound() {
        let mut tried = Tried::default();
        assert!(!tried.contains(0), "an unused place is no client");
        for client in 0..CLIENTS_TRIED_MAX as u64 {
            assert!(!tried.is_full());
            tried.add(client);
            assert!(tried.contains(client));
        }
        assert!(tried.is_full());
        tried.add(99);
        assert!(!tried.contains(99));
    }
}
