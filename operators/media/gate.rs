//! Which hosts libav may talk to on this thread, wherever an input leads on to: a redirect, a playlist, a key.
//!
//! Each stream is read on a thread of its own, so the thread says whose input it is. What a playlist or a redirect names,
//! libav opens through a callback of the context; here it asks first. Redirects
//! of HTTP and of RTSP are followed by libav before anybody can look: the request goes out, and its answer is thrown away.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use ffmpeg_next as ffmpeg;
use ffmpeg_next::ffi;

use crate::address::Address;
use crate::reach::Hosts;

thread_local! {
    static HOSTS: RefCell<Hosts> = const { RefCell::new(Hosts::Anything) };
    /// The host that was refused last.
    static REFUSED: Cell<Option<String>> = const { Cell::new(None) };
}

/// From here on this thread reads inputs that may lead to these hosts alone.
pub fn enter(hosts: Hosts) {
    HOSTS.set(hosts);
}

/// What this thread may reach, for another that does a part of its work.
pub fn current() -> Hosts {
    HOSTS.with_borrow(Hosts::clone)
}

/// Whether there are hosts that this thread may not reach.
pub(super) fn is_bound() -> bool {
    HOSTS.with_borrow(|hosts| *hosts != Hosts::Anything)
}

/// The host that was refused since the last question.
pub(super) fn refused() -> Option<String> {
    REFUSED.take()
}

/// Whether what libav wants to open is allowed.
pub(super) fn allows(location: &str) -> bool {
    let host = match Address::parse(location) {
        _ if location.is_empty() => return true,
        Some(address) if address.scheme.eq_ignore_ascii_case("file") => return true,
        Some(address) => address.host.to_owned(),
        // Files are the protocol list's affair.
        None if location.starts_with("file:") || !location.contains(':') => return true,
        None => String::new(),
    };
    let is_allowed = HOSTS.with_borrow(|hosts| hosts.allow(&host));
    if !is_allowed {
        tracing::warn!(host, "an input leads on to a host that is not allowed; `--allow-host` allows it");
        REFUSED.set(Some(host));
    }
    is_allowed
}

type Open = unsafe extern "C" fn(
    *mut ffi::AVFormatContext,
    *mut *mut ffi::AVIOContext,
    *const c_char,
    c_int,
    *mut *mut ffi::AVDictionary,
) -> c_int;

/// What libav does by itself: the same for all contexts.
static DEFAULT: OnceLock<Open> = OnceLock::new();

const NOT_PERMITTED: c_int = -ffmpeg::error::EPERM;

/// Makes a context ask before it opens anything.
///
/// # Safety
/// `context` is a context that `avformat_alloc_context` has made and that is not open yet.
pub(super) unsafe fn attach(context: *mut ffi::AVFormatContext) {
    // SAFETY: the caller vouches for the context; its callback is a plain field that users may set before it is opened.
    unsafe {
        if let Some(default) = (*context).io_open {
            DEFAULT.get_or_init(|| default);
            (*context).io_open = Some(ask_and_open);
        }
    }
}

unsafe extern "C" fn ask_and_open(
    context: *mut ffi::AVFormatContext,
    opened: *mut *mut ffi::AVIOContext,
    url: *const c_char,
    flags: c_int,
    options: *mut *mut ffi::AVDictionary,
) -> c_int {
    let Some(default) = DEFAULT.get() else { return NOT_PERMITTED };
    // SAFETY: libav calls this with a URL that ends in a zero, and is valid until this returns.
    let location = unsafe { CStr::from_ptr(url) }.to_string_lossy();
    // No panic may leave a function that C calls.
    let may = |location: &str| catch_unwind(AssertUnwindSafe(|| allows(location))).unwrap_or(false);
    if !may(&location) {
        return NOT_PERMITTED;
    }
    // SAFETY: these are libav's own arguments to its own function.
    let result = unsafe { default(context, opened, url, flags, options) };
    if result < 0 {
        return result;
    }
    // SAFETY: it was opened just now, and belongs to whoever asked for it.
    let led_to = unsafe { redirected(*opened) };
    if led_to.is_none_or(|location| may(&location)) {
        return result;
    }
    // SAFETY: it is open, and nobody has seen it yet; closing it leaves a null pointer behind.
    unsafe { ffi::avio_closep(opened) };
    NOT_PERMITTED
}

/// Where HTTP has led, redirects followed; `None` of every other protocol.
///
/// # Safety
/// `opened` is an open context of libav's own, or null.
unsafe fn redirected(opened: *mut ffi::AVIOContext) -> Option<String> {
    // SAFETY: options of an open context, and of the protocol in it, may be asked for by name. The text that comes back
    // was allocated for us and is freed here.
    unsafe {
        if opened.is_null() || (*opened).av_class.is_null() {
            return None;
        }
        let mut text: *mut u8 = std::ptr::null_mut();
        let found =
            ffi::av_opt_get(opened.cast::<c_void>(), c"location".as_ptr(), ffi::AV_OPT_SEARCH_CHILDREN, &raw mut text);
        if found < 0 || text.is_null() {
            return None;
        }
        let location = CStr::from_ptr(text.cast::<c_char>()).to_string_lossy().into_owned();
        ffi::av_free(text.cast::<c_void>());
        Some(location)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_opens_what_is_allowed_to_it() {
        let hosts = || Hosts::Only(vec!["good".parse().unwrap(), "10.0.0.0/8".parse().unwrap()]);
        let may = |location: &str| {
            std::thread::scope(|scope| {
                let asked = scope.spawn(|| {
                    enter(hosts());
                    (allows(location), refused())
                });
                asked.join().unwrap()
            })
        };
        for allowed in
            ["http://good/a.m3u8", "crypto+https://10.1.2.3/key", "rtmp://u:p@good:1935/x", "file:/a.mp4", "a.sdp"]
        {
            assert_eq!(may(allowed), (true, None), "{allowed}");
        }
        for (other, host) in [
            ("http://evil/a.ts", "evil"),
            ("http://good@evil/a.ts", "evil"),
            ("crypto+http://169.254.169.254/", "169.254.169.254"),
            ("udp://@:5000", ""),
            ("data:text/plain,x", ""),
            ("concat:http://good/a|http://evil/b", ""),
        ] {
            assert_eq!(may(other), (false, Some(host.to_owned())), "{other}");
        }
        assert!(allows("http://evil/"), "other threads are not concerned");
    }
}
