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
    /// Pictures before it that were left out since the last one.
    pub skipped: u64,
    /// Whether a packet that should have made an earlier picture did not: what the decoder does is then not what
    /// leaving pictures out relies on.
    pub surprising: bool,
}

/// The books of one decoder.
#[derive(Debug, Default)]
pub struct Ledger {
    next: i64,
    pending: BTreeMap<i64, Pending>,
}

impl Ledger {
    /// Notes a packet that goes into the decoder; answers its ordinal.
    pub fn packet(&mut self, pts: Option<i64>, duration: Option<i64>, fate: Fate) -> i64 {
        let ordinal = self.next;
        self.next += 1;
        self.pending.insert(ordinal, Pending { pts, duration, fate });
        ordinal
    }

    /// Notes a picture; call it in the order in which they come out.
    pub fn picture(&mut self, ordinal: Option<i64>) -> Entry {
        let own = ordinal.and_then(|ordinal| self.pending.remove(&ordinal));
        let pts = own.and_then(|own| own.pts);
        let oldest = ordinal.unwrap_or(self.next) - LONGEST_DELAY;
        let (mut skipped, mut surprising) = (0, own.is_none());
        self.pending.retain(|ordinal, pending| {
            let before = matches!((pending.pts, pts), (Some(theirs), Some(ours)) if theirs < ours);
            if !before && *ordinal >= oldest {
                return true;
            }
            match pending.fate {
                Fate::Spare => skipped += 1,
                Fate::Wanted => surprising = true,
                Fate::Hidden => {}
            }
            false
        });
        Entry { pts, duration: own.and_then(|own| own.duration), skipped, surprising }
    }

    /// The decoder is empty: answers how many pictures were left out since the last one that came out.
    pub fn drained(&mut self) -> u64 {
        let spare = self.pending.values().filter(|pending| pending.fate == Fate::Spare).count();
        self.pending.clear();
        spare as u64
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
        let entry = |pts, skipped| Entry { pts: Some(pts), duration: Some(10), skipped, surprising: false };
        assert_eq!(ledger.picture(Some(i)), entry(0, 0));
        assert_eq!(ledger.picture(Some(p)), entry(30, 2));
        assert_eq!(ledger.drained(), 0);
    }

    #[test]
    fn a_spare_reference_picture_that_comes_out_is_no_skip() {
        let mut ledger = Ledger::default();
        let first = ledger.packet(Some(0), None, Fate::Wanted);
        let second = ledger.packet(Some(1), None, Fate::Spare);
        ledger.packet(Some(2), None, Fate::Spare);
        assert_eq!(ledger.picture(Some(first)).skipped, 0);
        assert_eq!(ledger.picture(Some(second)).skipped, 0);
        assert_eq!(ledger.drained(), 1);
    }

    #[test]
    fn a_wanted_picture_that_never_comes_is_a_surprise() {
        let mut ledger = Ledger::default();
        ledger.packet(Some(0), None, Fate::Wanted);
        ledger.packet(Some(5), None, Fate::Hidden);
        let last = ledger.packet(Some(10), None, Fate::Wanted);
        let entry = ledger.picture(Some(last));
        assert!(entry.surprising);
        assert_eq!(entry.skipped, 0);
    }

    #[test]
    fn packets_without_stamps_do_not_pile_up() {
        let mut ledger = Ledger::default();
        for _ in 0..1000 {
            ledger.packet(None, None, Fate::Wanted);
            let shown = ledger.packet(None, None, Fate::Wanted);
            ledger.picture(Some(shown));
        }
        assert!(ledger.pending.len() <= 2 * LONGEST_DELAY as usize);
    }
}
