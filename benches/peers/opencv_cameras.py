"""The loop that people write for cameras today: a thread for each, OpenCV decodes, two pictures a second are looked at.

    opencv_cameras.py SECONDS URL...

Says `measuring` when every camera has shown a picture, and then, after SECONDS, when each picture came, as JSON: for each URL a
list of [seconds on the clock, seconds of media time]. Ends when its standard input does.
"""

import json
import sys
import threading
import time

import cv2

PICTURES_A_SECOND = 2


class Camera(threading.Thread):
    def __init__(self, url):
        super().__init__(daemon=True)
        self.url = url
        self.pictures = []
        self.start()

    def run(self):
        capture = cv2.VideoCapture(self.url, cv2.CAP_FFMPEG)
        first = None
        due = 0.0
        # What is not looked at is decoded, and not converted.
        while capture.grab():
            pts = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            first = pts if first is None else first
            if pts - first + 1e-6 >= due:
                found, _picture = capture.retrieve()
                if found:
                    self.pictures.append((time.time(), pts))
                due = (int((pts - first + 1e-6) * PICTURES_A_SECOND) + 1) / PICTURES_A_SECOND


def main():
    seconds, urls = float(sys.argv[1]), sys.argv[2:]
    cameras = [Camera(url) for url in urls]
    deadline = time.monotonic() + 120
    while not all(camera.pictures for camera in cameras):
        if time.monotonic() > deadline:
            missing = [camera.url for camera in cameras if not camera.pictures]
            sys.exit(f"these showed no picture: {missing}")
        time.sleep(0.05)
    # As long as the engine warms up.
    time.sleep(10)
    since = time.time()
    print("measuring", flush=True)
    time.sleep(seconds)
    pictures = {camera.url: [(at, pts) for at, pts in list(camera.pictures) if at >= since] for camera in cameras}
    print(json.dumps({"pictures": pictures}), flush=True)
    sys.stdin.read()


main()
