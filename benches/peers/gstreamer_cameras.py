"""Cameras in one GStreamer pipeline: decoded as it chooses, thinned out to two pictures a second, thrown away.

    gstreamer_cameras.py SECONDS URL...     (Debian's python3-gi)

Says `measuring` when every camera has shown a picture, and then, after SECONDS, when each picture came, as JSON: for each URL a
list of [seconds on the clock, seconds of media time]; and the decoder that GStreamer chose. Ends when its standard input does.
"""

import json
import sys
import threading
import time

import gi

gi.require_version("Gst", "1.0")
from gi.repository import Gst  # noqa: E402

BRANCH = (
    "rtspsrc location={url} protocols=tcp latency=0 ! decodebin ! videorate drop-only=true ! "
    "video/x-raw,framerate=2/1 ! fakesink name=sink{number} sync=false signal-handoffs=true"
)


def main():
    seconds, urls = float(sys.argv[1]), sys.argv[2:]
    Gst.init(None)
    pipeline = Gst.parse_launch(" ".join(BRANCH.format(url=url, number=number) for number, url in enumerate(urls)))
    pictures = {url: [] for url in urls}

    def handed(_sink, buffer, _pad, url):
        pictures[url].append((time.time(), buffer.pts / Gst.SECOND))

    for number, url in enumerate(urls):
        pipeline.get_by_name(f"sink{number}").connect("handoff", handed, url)
    problems = []

    def watch():
        message = pipeline.get_bus().timed_pop_filtered(Gst.CLOCK_TIME_NONE, Gst.MessageType.ERROR | Gst.MessageType.EOS)
        problems.append(str(message.parse_error() if message.type == Gst.MessageType.ERROR else "the streams ended"))

    decoders = set()

    def note(_pipeline, _bin, element):
        factory = element.get_factory()
        if factory and "Decoder/Video" in (factory.get_metadata("klass") or "").replace("Codec/", ""):
            decoders.add(factory.get_name())

    pipeline.connect("deep-element-added", note)
    threading.Thread(target=watch, daemon=True).start()
    pipeline.set_state(Gst.State.PLAYING)
    deadline = time.monotonic() + 120
    while not all(pictures.values()):
        if problems or time.monotonic() > deadline:
            sys.exit(f"not every camera showed a picture: {problems}")
        time.sleep(0.05)
    # As long as the engine warms up.
    time.sleep(10)
    since = time.time()
    print("measuring", flush=True)
    time.sleep(seconds)
    if problems:
        sys.exit(f"it ended: {problems}")
    report = {url: [(at, pts) for at, pts in list(own) if at >= since] for url, own in pictures.items()}
    print(json.dumps({"pictures": report, "decoder": ", ".join(sorted(decoders))}), flush=True)
    sys.stdin.read()


main()
