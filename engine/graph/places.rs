//! Many places in a text, to be asked which of them lie where without looking at each.

use std::ops::Range;

/// Places, in the order in which they begin.
pub struct Places {
    sorted: Vec<(usize, usize)>,
    /// For each place the least end of it and all behind it.
    least_end: Vec<usize>,
    /// For each place the greatest end of it and all before it.
    greatest_end: Vec<usize>,
}

impl Places {
    pub fn of<'r>(places: impl IntoIterator<Item = &'r Range<usize>>) -> Places {
        let mut sorted: Vec<_> = places.into_iter().map(|place| (place.start, place.end)).collect();
        sorted.sort_unstable();
        let running = |ends: &mut dyn Iterator<Item = usize>, first: usize, pick: fn(usize, usize) -> usize| {
            let running = ends.scan(first, |so_far, end| {
                *so_far = pick(*so_far, end);
                Some(*so_far)
            });
            running.collect::<Vec<_>>()
        };
        let mut least_end = running(&mut sorted.iter().rev().map(|(_, end)| *end), usize::MAX, usize::min);
        least_end.reverse();
        let greatest_end = running(&mut sorted.iter().map(|(_, end)| *end), 0, usize::max);
        Places { sorted, least_end, greatest_end }
    }

    /// Whether one of them is exactly this.
    pub fn has(&self, place: &Range<usize>) -> bool {
        self.sorted.binary_search(&(place.start, place.end)).is_ok()
    }

    /// Whether one of them lies in `outer`.
    pub fn any_within(&self, outer: &Range<usize>) -> bool {
        let first = self.sorted.partition_point(|(start, _)| *start < outer.start);
        self.least_end.get(first).is_some_and(|end| *end <= outer.end)
    }

    /// Whether `inner` lies in one of them.
    pub fn any_around(&self, inner: &Range<usize>) -> bool {
        let behind = self.sorted.partition_point(|(start, _)| *start <= inner.start);
        behind > 0 && self.greatest_end.get(behind - 1).is_some_and(|end| *end >= inner.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn they_answer_as_if_each_was_looked_at(
            places in proptest::collection::vec((0usize..30, 0usize..10), 0..12),
            asked in (0usize..30, 0usize..10),
        ) {
            let range = |(start, length): (usize, usize)| start..start + length;
            let all: Vec<Range<usize>> = places.into_iter().map(range).collect();
            let asked = range(asked);
            let places = Places::of(&all);
            let is_in = |inner: &Range<usize>, outer: &Range<usize>| outer.start <= inner.start && inner.end <= outer.end;
            assert_eq!(places.any_within(&asked), all.iter().any(|place| is_in(place, &asked)));
            assert_eq!(places.any_around(&asked), all.iter().any(|place| is_in(&asked, place)));
            assert_eq!(places.has(&asked), all.contains(&asked));
        }
    }
}
