//! The books of one decoder: which packets went in, which pictures came out, and what number each picture has.
//!
//! Every packet gets an ordinal, which travels through the decoder in the place of its timestamp. So a picture is
//! known by its packet whatever its stamps look like (missing, repeated, jumping back). A picture's number counts the
//! pictures before it in presentation order, those included that were left undecoded on purpose.

use std::collections::BTreeMap;

/// No decoder holds a packet back for this many later ones (16 reordered pictures, 16 threads, and room).
const LONGEST_DELAY: i64 = 128;

#[derive(Clone, Copy, Debug)]
struct Pending {
    /// Native ticks.
    pts: Option<i64>,
    duration: Option<i64>,
    fate: Fate,
    /// How often time had broken off before it.
    part: u64,
}

/// What was asked of the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Decode it.
    Wanted,
    /// Leave it out if no other picture needs it.
    Spare,
    /// The container says that its picture is never shown.
    Hidden,
}

/// A picture that came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Stamp and duration of its packet, in native ticks.
    pub pts: Option<i64>,
    pub duration: Option<i64>,
    pub left_out: LeftOut,
    /// Whether a packet that should have made an earlier picture did not: what the decoder does is then not what
    /// leaving pictures out relies on.
    pub surprising: bool,
}

/// Pictures that were left undecoded on purpose, since the last one that came out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    pub count: u64,
    /// Stamp and duration of the last one, in native ticks.
    pub last: Option<(i64, Option<i64>)>,
}

impl LeftOut {
    fn add(&mut self, pending: &Pending) {
        self.count += 1;
        if let Some(pts) = pending.pts
            && self.last.is_none_or(|(last, _)| last < pts)
        {
            self.last = Some((pts, pending.duration));
        }
    }
}

/// The books of one decoder.
#[derive(Debug, Default)]
pub struct Ledger {
    next: i64,
    part: u64,
    pending: BTreeMap<i64, Pending>,
}

impl Ledger {
    /// Notes a packet that goes into the decoder; answers its ordinal.
    pub fn packet(&mut self, pts: Option<i64>, duration: Option<i64>, fate: Fate) -> i64 {
        let ordinal = self.next;
        self.next += 1;
        self.pending.insert(ordinal, Pending { pts, duration, fate, part: self.part });
        ordinal
    }

    /// Time breaks off: what is noted from here on is shown after all that was noted before, whatever the stamps say.
    pub fn break_off(&mut self) {
        self.part += 1;
    }

    /// Notes a picture; call it in the order in which they come out. `otherwise`: its place in time where its packet
    /// has no stamp.
    pub fn picture(&mut self, ordinal: Option<i64>, otherwise: Option<i64>) -> Entry {
        let own = ordinal.and_then(|ordinal| self.pending.remove(&ordinal));
        let place = own.and_then(|own| Some((own.part, own.pts.or(otherwise)?)));
        let part = own.map_or(0, |own| own.part);
        let oldest = ordinal.unwrap_or(self.next) - LONGEST_DELAY;
        let (mut left_out, mut surprising) = (LeftOut::default(), own.is_none());
        self.pending.retain(|ordinal, pending| {
            let stamped = matches!((pending.pts, place), (Some(theirs), Some(ours)) if (pending.part, theirs) < ours);
            let before = stamped || pending.part < part;
            if !before && *ordinal >= oldest {
                return true;
            }
            match pending.fate {
                Fate::Spare => left_out.add(pending),
                Fate::Wanted => surprising = true,
                Fate::Hidden => {}
            }
            false
        });
        Entry { pts: own.and_then(|own| own.pts), duration: own.and_then(|own| own.duration), left_out, surprising }
    }

    /// Whether a picture that is wanted has not come out yet.
    pub fn owes(&self) -> bool {
        self.pending.values().any(|pending| pending.fate == Fate::Wanted)
    }

    /// The decoder is empty: answers what was left out since the last picture that came out.
    pub fn drained(&mut self) -> LeftOut {
        let mut left_out = LeftOut::default();
        self.pending.values().filter(|pending| pending.fate == Fate::Spare).for_each(|pending| left_out.add(pending));
        self.pending.clear();
        left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_left_out_are_counted_before_the_next_one() {
        let mut ledger = Ledger::default();
        // I P B B in decoding order; the two B are spare.
        let i = ledger.packet(Some(0), Some(10), Fate::Wanted);
        let p = ledger.packet(Some(30), Some(10), Fate::Wanted);
        ledger.packet(Some(10), Some(10), Fate::Spare);
        ledger.packet(Some(20), Some(10), Fate::Spare);
        let entry = |pts, left_out| Entry { pts: Some(pts), duration: Some(10), left_out, surprising: false };
        assert_eq!(ledger.picture(Some(i), None), entry(0, LeftOut::default()));
        assert_eq!(ledger.picture(Some(p), None), entry(30, LeftOut { count: 2, last: Some((20, Some(10))) }));
        assert_eq!(ledger.drained(), LeftOut::default());
    }

    #[test]
    fn a_spare_reference_picture_that_comes_out_is_no_skip() {
        let mut ledger = Ledger::default();
        let first = ledger.packet(Some(0), None, Fate::Wanted);
        let second = ledger.packet(Some(1), None, Fate::Spare);
        ledger.packet(Some(2), None, Fate::Spare);
        assert_eq!(ledger.picture(Some(first), None).left_out.count, 0);
        assert_eq!(ledger.picture(Some(second), None).left_out.count, 0);
        assert_eq!(ledger.drained(), LeftOut { count: 1, last: Some((2, None)) });
    }

    #[test]
    fn what_is_wanted_is_owed_until_it_comes_out() {
        let mut ledger = Ledger::default();
        ledger.packet(Some(0), None, Fate::Spare);
        assert!(!ledger.owes());
        let wanted = ledger.packet(Some(1), None, Fate::Wanted);
        assert!(ledger.owes());
        ledger.picture(Some(wanted), None);
        assert!(!ledger.owes());
    }

    #[test]
    fn a_wanted_picture_that_never_comes_is_a_surprise() {
        let mut ledger = Ledger::default();
        ledger.packet(Some(0), None, Fate::Wanted);
        ledger.packet(Some(5), None, Fate::Hidden);
        let last = ledger.packet(Some(10), None, Fate::Wanted);
        let entry = ledger.picture(Some(last), None);
        assert!(entry.surprising);
        assert_eq!(entry.left_out.count, 0);
    }

    #[test]
    fn where_time_breaks_off_each_picture_is_counted_on_its_side() {
        let mut ledger = Ledger::default();
        let old = ledger.packet(Some(100), None, Fate::Wanted);
        ledger.packet(Some(110), None, Fate::Spare);
        ledger.break_off();
        let new = ledger.packet(Some(0), None, Fate::Wanted);
        ledger.packet(Some(10), None, Fate::Spare);
        assert_eq!(ledger.picture(Some(old), None).left_out.count, 0);
        assert_eq!(ledger.picture(Some(new), None).left_out.count, 1);
        assert_eq!(ledger.drained().count, 1);
    }

    #[test]
    fn a_picture_without_a_stamp_is_counted_where_it_came_out() {
        let mut ledger = Ledger::default();
        ledger.packet(Some(10), None, Fate::Spare);
        let bare = ledger.packet(None, None, Fate::Wanted);
        ledger.packet(Some(30), None, Fate::Spare);
        assert_eq!(ledger.picture(Some(bare), Some(20)).left_out.count, 1);
        assert_eq!(ledger.drained().count, 1);
    }

    #[test]
    fn packets_without_stamps_do_not_pile_up() {
        let mut ledger = Ledger::default();
        for _ in 0..1000 {
            ledger.packet(None, None, Fate::Wanted);
            let shown = ledger.packet(None, None, Fate::Wanted);
            ledger.picture(Some(shown), None);
        }
        assert!(ledger.pending.len() <= 2 * LONGEST_DELAY as usize);
    }
}
