"""An RTSP server on loopback that plays video files in real time, for tests of cameras.

    rtsp_server.py [--port N] [--user NAME --password WORD] PATH=FILE...

Each FILE (MP4 with H.264 or H.265) is served under /PATH, from its start for each client. Prints its port on a line of its
own when it serves; ends when it is killed. Port 0 takes a free one.
"""

import argparse

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

CODECS = {"h264": ("h264parse", "rtph264pay"), "h265": ("h265parse", "rtph265pay")}


def factory(file, codec, user):
    parse, pay = CODECS[codec]
    made = GstRtspServer.RTSPMediaFactory()
    made.set_launch(
        f'( filesrc location="{file}" ! qtdemux ! {parse} ! {pay} name=pay0 pt=96 config-interval=-1 )'
    )
    # Each client has a pipeline of its own: where two share one and play at the same moment, the server may abort
    # (gst_rtsp_media_get_rates finds no segment while the other one's seek flushes).
    made.set_shared(False)
    if user:
        permissions = GstRtspServer.RTSPPermissions()
        permissions.add_permission_for_role(user, "media.factory.access", True)
        permissions.add_permission_for_role(user, "media.factory.construct", True)
        made.set_permissions(permissions)
    return made


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", default="0")
    parser.add_argument("--user")
    parser.add_argument("--password")
    parser.add_argument("--codec", default="h264", choices=CODECS)
    parser.add_argument("media", nargs="+", metavar="PATH=FILE")
    arguments = parser.parse_args()
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(arguments.port)
    if arguments.user:
        auth = GstRtspServer.RTSPAuth()
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", arguments.user)
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(arguments.user, arguments.password), token)
        server.set_auth(auth)
    mounts = server.get_mount_points()
    for entry in arguments.media:
        path, _, file = entry.partition("=")
        mounts.add_factory(f"/{path}", factory(file, arguments.codec, arguments.user))
    if server.attach(None) == 0:
        raise SystemExit(f"port {arguments.port} cannot be had")
    print(server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


main()
