//! What the operating system says of this process.

use procfs::process::Process;

/// Processor time and memory of the whole process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time, in seconds.
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    pub peak_resident_bytes: u64,
    pub threads: u64,
}

/// Reads `/proc/self`; zeros where it cannot be read.
pub fn usage() -> Usage {
    let Ok(process) = Process::myself() else { return Usage::default() };
    let cpu_seconds =
        process.stat().map_or(0.0, |stat| (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64);
    let status = process.status().ok();
    let kilobytes = |value: Option<u64>| value.unwrap_or(0) * 1024;
    Usage {
        cpu_seconds,
        resident_bytes: kilobytes(status.as_ref().and_then(|status| status.vmrss)),
        peak_resident_bytes: kilobytes(status.as_ref().and_then(|status| status.vmhwm)),
        threads: status.as_ref().map_or(0, |status| status.threads),
    }
}

/// Processor cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
