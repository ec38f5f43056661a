//! How many requests somebody may make: a bucket of tokens for each key, or for each address, on the injected clock.
//!
//! A full bucket holds as many tokens as the rate has requests, and fills up evenly: `100/s` lets a hundred come at once,
//! and then a hundred a second.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, de};

/// So many requests in a length of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    requests: u32,
    per: Duration,
}

impl Rate {
    pub const fn new(requests: u32, per: Duration) -> Rate {
        Rate { requests, per }
    }

    /// Tokens that come back in a second.
    fn per_second(self) -> f64 {
        f64::from(self.requests) / self.per.as_secs_f64()
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        let wrong = || format!("`{text}` is no rate of requests; write it like \"100/s\", \"600/m\" or \"1000/h\"");
        let (requests, unit) = text.split_once('/').unwrap_or((text, "s"));
        let per = match unit.trim() {
            "s" => 1,
            "m" | "min" => 60,
            "h" => 3600,
            _ => return Err(wrong()),
        };
        let requests = requests.trim().parse().map_err(|_| wrong())?;
        if requests == 0 { Err(wrong()) } else { Ok(Rate { requests, per: Duration::from_secs(per) }) }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per.as_secs() {
            1 => "s",
            60 => "m",
            _ => "h",
        };
        write!(formatter, "{}/{unit}", self.requests)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Rate, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Whose requests are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Who {
    /// The key with this number.
    Key(usize),
    /// An IPv4 address, or the network of an IPv6 address that one customer usually has.
    Peer(IpAddr),
    /// All those for whom there was no bucket left.
    Others,
}

impl Who {
    pub fn peer(address: IpAddr) -> Who {
        match address.to_canonical() {
            IpAddr::V6(address) => Who::Peer(IpAddr::V6((u128::from(address) >> 64 << 64).into())),
            address => Who::Peer(address),
        }
    }
}

/// How somebody stands after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// Requests in a full bucket.
    pub limit: u32,
    /// Requests that may follow at once.
    pub remaining: u32,
    /// Until the bucket is full again.
    pub reset: Duration,
    /// How long to wait, where this request was one too many.
    pub wait: Option<Duration>,
}

struct Bucket {
    tokens: f64,
    /// When it had these.
    at: Instant,
}

/// Buckets at most; an attacker with many addresses must not fill the memory.
const MOST_BUCKETS: usize = 16_384;

/// The buckets of everybody.
#[derive(Default)]
pub(super) struct Limiter {
    buckets: Mutex<HashMap<Who, (Rate, Bucket)>>,
}

impl Limiter {
    /// Takes a token out of somebody's bucket, where there is one.
    pub fn take(&self, who: Who, rate: Rate, now: Instant) -> Standing {
        let mut buckets = self.buckets();
        let who = match who {
            who if buckets.contains_key(&who) || buckets.len() < MOST_BUCKETS => who,
            who => {
                // A full bucket is as good as none.
                buckets.retain(|_, (rate, bucket)| bucket.filled(*rate, now) < f64::from(rate.requests));
                if buckets.len() < MOST_BUCKETS { who } else { Who::Others }
            }
        };
        let full = || (rate, Bucket { tokens: f64::from(rate.requests), at: now });
        let (_, bucket) = buckets.entry(who).or_insert_with(full);
        bucket.tokens = bucket.filled(rate, now);
        bucket.at = now;
        let after = |tokens: f64| Duration::from_secs_f64(tokens.max(0.0) / rate.per_second());
        let wait = if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            None
        } else {
            Some(after(1.0 - bucket.tokens))
        };
        Standing {
            limit: rate.requests,
            remaining: bucket.tokens as u32,
            reset: after(f64::from(rate.requests) - bucket.tokens),
            wait,
        }
    }

    fn buckets(&self) -> MutexGuard<'_, HashMap<Who, (Rate, Bucket)>> {
        // Nothing panics while it holds this lock.
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    /// The tokens in it by now.
    fn filled(&self, rate: Rate, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        (self.tokens + passed * rate.per_second()).min(f64::from(rate.requests))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use operators::clock::{Clock, SimulatedClock};

    #[test]
    fn rates_are_written_as_people_say_them() {
        for (text, shown) in
            [("100/s", "100/s"), ("100", "100/s"), (" 600 / m", "600/m"), ("5/min", "5/m"), ("9/h", "9/h")]
        {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), shown);
        }
        for wrong in ["", "0/s", "-1/s", "1.5/s", "10/d", "fast", "10/", "/s", "99999999999/s"] {
            assert!(wrong.parse::<Rate>().unwrap_err().contains("100/s"), "{wrong}");
        }
    }

    #[test]
    fn a_bucket_lets_a_burst_through_and_then_the_rate() {
        let clock = SimulatedClock::default();
        let (limiter, rate) = (Limiter::default(), Rate::new(4, Duration::from_secs(2)));
        let take = || limiter.take(Who::Key(0), rate, clock.now());
        let first = take();
        assert_eq!((first.limit, first.remaining, first.wait), (4, 3, None));
        assert_eq!(first.reset, Duration::from_millis(500));
        let burst: Vec<_> = (0..3).map(|_| take()).collect();
        assert!(burst.iter().all(|standing| standing.wait.is_none()));
        assert_eq!(burst[2].remaining, 0);
        let refused = take();
        assert_eq!((refused.remaining, refused.wait), (0, Some(Duration::from_millis(500))));
        assert_eq!(refused.reset, Duration::from_secs(2));
        clock.advance(Duration::from_millis(499));
        assert!(take().wait.is_some(), "asking costs nothing where it is refused");
        clock.advance(Duration::from_millis(2));
        assert_eq!(take().wait, None);
        assert!(take().wait.is_some());
        clock.advance(Duration::from_secs(3600));
        assert_eq!(take().remaining, 3, "it never holds more than it is large");
    }

    #[test]
    fn each_has_a_bucket_and_a_network_has_one() {
        let clock = SimulatedClock::default();
        let (limiter, rate) = (Limiter::default(), Rate::new(1, Duration::from_secs(1)));
        let is_taken = |who| limiter.take(who, rate, clock.now()).wait.is_none();
        let peer = |text: &str| Who::peer(text.parse().unwrap());
        assert!(is_taken(Who::Key(0)) && is_taken(Who::Key(1)) && is_taken(peer("10.0.0.7")));
        assert!(!is_taken(Who::Key(0)) && !is_taken(peer("10.0.0.7")));
        assert!(!is_taken(peer("::ffff:10.0.0.7")), "another spelling of the same address");
        assert!(is_taken(peer("10.0.0.8")));
        assert!(is_taken(peer("2001:db8:1:2::1")));
        assert!(!is_taken(peer("2001:db8:1:2:ffff::9")), "one customer has a whole network");
        assert!(is_taken(peer("2001:db8:1:3::1")));
    }

    #[test]
    fn many_addresses_fill_no_memory() {
        let clock = SimulatedClock::default();
        let (limiter, rate) = (Limiter::default(), Rate::new(1, Duration::from_secs(1)));
        let address = |number: usize| Who::peer(IpAddr::V4((number as u32).into()));
        let fill = |from: usize| {
            for number in from..from + MOST_BUCKETS {
                limiter.take(address(number), rate, clock.now());
            }
        };
        fill(0);
        assert!(limiter.take(address(MOST_BUCKETS), rate, clock.now()).wait.is_none());
        assert!(limiter.take(address(MOST_BUCKETS + 1), rate, clock.now()).wait.is_some(), "the others share one");
        assert!(limiter.buckets().len() <= MOST_BUCKETS + 1);
        clock.advance(Duration::from_secs(2));
        assert!(limiter.take(address(MOST_BUCKETS + 2), rate, clock.now()).wait.is_none());
        assert_eq!(limiter.buckets().len(), 1, "what is full again is forgotten");
    }
}
