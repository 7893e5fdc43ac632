"""Addresses in pages, and downloads from a web server that does everything wrong.

    pytest tests/test_crawl.py
"""

import gzip
import io
import json
import os
import socket
import struct
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from curation import addresses as crawl
from curation.addresses import check_image, collect_addresses, download, image_addresses

# --------------------------------------------------------------------------------------------------------
# Addresses


def test_where_pages_keep_addresses():
    page = b"""<html><body><img src="/a.jpg"><img data-src="b.png" src="c.gif#part"><IMG SRC=d.webp>
        <img srcset="e.jpg 1x, f,1.jpg 2x"><img data-srcset="g.jpg 100w,
        h.jpg 200w"><img src="//cdn.example/i.jpg"><img src="/a.jpg"><p src="no.jpg"><a href="no.jpg">"""
    assert image_addresses(page, "http://site.example/dir/page.html") == [
        "http://site.example/a.jpg",
        "http://site.example/dir/c.gif",
        "http://site.example/dir/b.png",
        "http://site.example/dir/d.webp",
        "http://site.example/dir/e.jpg",
        "http://site.example/dir/f,1.jpg",
        "http://site.example/dir/g.jpg",
        "http://site.example/dir/h.jpg",
        "http://cdn.example/i.jpg",
    ]


@pytest.mark.parametrize("page", ['<img src="bär.png">'.encode(),
                                  '<meta charset="latin-1"><img src="bär.png">'.encode("latin-1")])  # fmt: skip
def test_letters_beyond_ascii(page):
    """UTF-8 without a word of it, and another encoding that says so."""
    assert image_addresses(page, "http://h.example/") == ["http://h.example/bär.png"]


def test_addresses_as_they_are_asked_for():
    """UTF-8 of ä is C3 A4; Punycode of bücher is xn--bcher-kva, with the port behind; what is quoted stays so."""
    assert crawl.as_asked("http://h/my photo.png?q=a b&c=%41") == "http://h/my%20photo.png?q=a%20b&c=%41"
    assert crawl.as_asked("https://bücher.example:81/bär.png") == "https://xn--bcher-kva.example:81/b%C3%A4r.png"
    assert crawl.as_asked("http://[::1]:8/a(1)+b,c;d@2x.png") == "http://[::1]:8/a(1)+b,c;d@2x.png"


def test_the_base_of_a_page():
    page = b'<head><base href="https://other.example/x/"></head><img src="a.jpg">'
    assert image_addresses(page) == ["https://other.example/x/a.jpg"]
    page = b'<base href="/y/"><img src="a.jpg">'
    assert image_addresses(page, "http://s.example/z/p") == ["http://s.example/y/a.jpg"]


def test_only_the_web():
    page = b"""<img src="data:image/png;base64,AAAA"><img src="file:///etc/passwd"><img src="ftp://h/a.jpg">
        <img src="javascript:alert(1)"><img src="http://["><img src="http://h:99999999/a.jpg"><img src="">
        <img src="relative.jpg"><img src="https:///nohost.jpg">"""
    assert image_addresses(page) == []


@pytest.mark.parametrize("page", [b"", b"   ", b"\x00\xff\xfe", b"<", b"<img", b"<img src=",
                                  b"<!-- <img src='http://h/a'>"])  # fmt: skip
def test_broken_pages(page):
    assert image_addresses(page, "http://h/") == []


def test_pages_of_a_folder_and_of_a_crawl(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.html").write_text('<img src="http://h.example/1.jpg"><img src="x.jpg">')
    (tmp_path / "sub" / "b.htm").write_text('<img src="http://h.example/1.jpg"><img src="http://h.example/2.jpg">')
    (tmp_path / "note.txt").write_text('<img src="http://h.example/no.jpg">')
    with open(tmp_path / "crawl.warc.gz", "wb") as file:
        writer = WARCWriter(file, gzip=True)
        for kind, body in (("text/html", b'<img src="/3.jpg">'), ("image/png", b'<img src="/no.jpg">')):
            head = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.0")
            writer.write_record(writer.create_warc_record("http://w.example/p", "response", io.BytesIO(body),
                                                          http_headers=head))  # fmt: skip
    assert collect_addresses(tmp_path) == [
        ("http://h.example/1.jpg", str(tmp_path / "a.html")),
        ("http://w.example/3.jpg", "http://w.example/p"),
        ("http://h.example/2.jpg", str(tmp_path / "sub" / "b.htm")),
    ]
    with pytest.raises(crawl.UserError, match="no such page"):
        collect_addresses(tmp_path / "none.html")
    for name in ("pipe.html", "pipe.warc.gz"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(crawl.UserError, match=f"{name} is not a regular file"):
            collect_addresses(tmp_path / name)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_crawl_cut_short_or_of_another_kind_is_one_line(tmp_path, zipped):
    """Cut at each seventh byte: only of the blank lines behind a record some may be missing."""
    path = tmp_path / f"a.warc{'.gz' * zipped}"
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=zipped)
        for i in range(2):
            head = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.0")
            body = io.BytesIO(b'<img src="/%d.jpg">' % i)
            writer.write_record(writer.create_warc_record(f"http://w.example/{i}", "response", body, http_headers=head))
    whole = path.read_bytes()
    assert len(collect_addresses(path)) == 2
    for cut in range(1, len(whole), 7):
        path.write_bytes(whole[:cut])
        after = whole[cut:].startswith(b"\x1f\x8b\x08") if zipped else whole[:cut].rstrip().endswith(b">")
        if not after:  # a record's last byte
            with pytest.raises(crawl.UserError, match="cut short|damaged"):
                collect_addresses(path)
        else:
            assert len(collect_addresses(path)) in (1, 2)
    for other in (b"", b"text" * 1000, png(), gzip.compress(b"text" * 1000)):
        path.write_bytes(other)
        if other:
            with pytest.raises(crawl.UserError, match="cut short|damaged|no WARC"):
                collect_addresses(path)


def test_a_tag_with_a_hundred_thousand_attributes():
    """It alone is left out, in a moment; a long address in the page itself is none of these."""
    endless = b" ".join(b"x%d=1" % i for i in range(100_000))
    page = b'<img src="/a.jpg"><img ' + endless + b' src="/b.jpg"><img src="/c.jpg">'
    began = time.monotonic()
    assert image_addresses(page, "http://h.example/") == ["http://h.example/a.jpg", "http://h.example/c.jpg"]
    assert time.monotonic() - began < 5
    data = b'<img src="data:image/png;base64,' + b"A" * 10**6 + b'" data-src="/d.jpg">'
    assert image_addresses(data, "http://h.example/") == ["http://h.example/d.jpg"]


def test_a_host_that_does_not_answer_keeps_no_other_waiting(tmp_path, monkeypatch):
    """Forty links of it before one of another host, which is there at once; never more than two of it at a time."""
    silent, good, at_once = threading.Event(), threading.Event(), []

    def fetch_image(address, folder, allow_private):
        if "good" in address:
            good.set()
            return "HTTP 404", None
        at_once.append(1)
        silent.wait(0.5)
        most.append(len(at_once))
        at_once.pop()
        return "no answer in time", None

    most = []
    monkeypatch.setattr(crawl, "fetch_image", fetch_image)
    wanted = [(f"http://silent.example/{i}", "") for i in range(40)] + [("http://good.example/1", "")]
    job = threading.Thread(target=lambda: counts.update(download(wanted, tmp_path)))
    counts = {}
    job.start()
    assert good.wait(5) and len(most) <= 4
    silent.set()
    job.join()
    assert counts == {"no answer in time": 40, "HTTP 404": 1} and max(most) <= crawl.AT_ONE_HOST


def test_all_addresses_of_a_name_share_the_deadline(monkeypatch):
    """Of two the first never answers: it has half of two seconds, and the second one is asked then."""
    asked = []

    class Socket:
        def __init__(self, *_):
            self.limit = None

        def settimeout(self, seconds):
            self.limit = seconds

        def connect(self, address):
            asked.append((address, round(self.limit)))
            if address == "silent":
                raise TimeoutError("timed out")

        def close(self):
            pass

    found = [(0, 0, 0, "", "silent"), (0, 0, 0, "", "good")]
    monkeypatch.setattr(crawl, "DEADLINE", 20)
    monkeypatch.setattr(crawl.socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(crawl.socket, "socket", Socket)
    assert crawl.Watch(True).connection(("name.example", 80)).limit == 20
    assert asked == [("silent", 10), ("good", 20)]  # here the first one gave up at once, so all of it is left
    found.reverse()
    assert crawl.Watch(True).connection(("name.example", 80)) and len(asked) == 3


# --------------------------------------------------------------------------------------------------------
# A web server


def png(width=8, height=8):
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


def bomb():
    """A small PNG that says it is 100,000 pixels square."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(10**6)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
        self.server.seen.append(self.path)
        name = self.path.strip("/")
        if name == "missing.jpg":
            return self.send_error(404)
        if name == "busy-once.jpg" and self.server.seen.count(self.path) == 1:
            return self.send_error(503)
        to = {"loop.jpg": "/loop.jpg", "inside.jpg": self.server.inside, "file.jpg": "file:///etc/passwd",
              "moved.jpg": "/good.jpg"}.get(name)  # fmt: skip
        if to:
            self.send_response(302)
            self.send_header("Location", to)
            return self.end_headers()
        odd = {"page.jpg": b"<html>no picture</html>", "bomb.png": bomb(), "cut.png": png(64, 64)[:-30]}
        body = odd.get(name, png())
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        length = {"huge.jpg": 300 * 2**20, "short.png": len(body) + 100, "negative.png": -5}.get(name, len(body))
        if name != "endless.jpg":
            self.send_header("Content-Length", str(length))
        self.end_headers()
        try:
            if name in ("slow.jpg", "endless.jpg"):
                while not self.server.over.wait(0.01 if name == "endless.jpg" else 0.3):
                    self.wfile.write(bytes(2**16) if name == "endless.jpg" else b"x")
            else:
                self.wfile.write(body)
        except OSError:
            pass

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.seen, server.over = [], threading.Event()
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.inside = server.address.replace("127.0.0.1", "localhost") + "/secret.jpg"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


EXPECTED = {
    "good.jpg": "saved",
    "my photo.jpg": "saved",
    "bär.jpg": "saved",
    "moved.jpg": "saved",
    "busy-once.jpg": "saved",
    "missing.jpg": "HTTP 404",
    "loop.jpg": "redirects nowhere",
    "file.jpg": "redirects nowhere",
    "page.jpg": "not a whole image",
    "cut.png": "not a whole image",
    "bomb.png": "too many pixels",
    "huge.jpg": "too large",
    "endless.jpg": "too large",
    "slow.jpg": "no answer in time",
    "short.png": "broken off",
    "negative.png": "broken off",
}


def test_a_server_that_does_everything_wrong(server, tmp_path, monkeypatch):
    monkeypatch.setattr(crawl, "DEADLINE", 2)
    monkeypatch.setattr(crawl, "MAX_BYTES", 2**20)
    with socket.socket() as s:  # a port where nobody listens
        s.bind(("127.0.0.1", 0))
        closed = s.getsockname()[1]
    wanted = [(f"{server.address}/{name}", "page") for name in EXPECTED]
    wanted.append((f"http://127.0.0.1:{closed}/a.jpg", "page"))
    began = time.monotonic()
    counts = download(wanted, tmp_path / "images", allow_private=True)
    assert time.monotonic() - began < 20
    rows = [json.loads(line) for line in (tmp_path / "images" / "manifest.jsonl").read_text().splitlines()]
    found = {row["address"].rsplit("/", 1)[1]: row["result"] for row in rows}
    assert found == {**EXPECTED, "a.jpg": "broken off"}
    assert counts == {reason: list(found.values()).count(reason) for reason in found.values()}
    saved = sorted(str(p.relative_to(tmp_path / "images")) for p in tmp_path.rglob("*.png"))
    assert saved == sorted(row["file"] for row in rows if "file" in row) and len(saved) == 5
    assert {p.name for p in tmp_path.iterdir()} == {"images"} and not list(tmp_path.rglob("*.tmp"))
    assert server.seen.count("/busy-once.jpg") == 2 and server.seen.count("/missing.jpg") == 1


def test_private_addresses_are_asked_nothing(server, tmp_path):
    names = {f"{server.address}/good.jpg", f"http://localhost:{server.server_port}/good.jpg",
             f"http://[::ffff:127.0.0.1]:{server.server_port}/good.jpg",
             f"https://127.0.0.1:{server.server_port}/good.jpg"}  # refused before the handshake, which would fail
    counts = download([(name, "page") for name in names], tmp_path)
    assert counts == {"private address": 4} and server.seen == []


def test_a_redirect_into_the_local_network(server, tmp_path, monkeypatch):
    """The first server counts as public here; what it redirects to does not."""
    class Public(crawl.ipaddress.IPv4Address):
        is_global = True

    seen = []

    def ip_address(text):
        seen.append(text)
        return Public(text) if len(seen) == 1 else crawl.ipaddress.IPv4Address("10.0.0.1")

    monkeypatch.setattr(crawl.ipaddress, "ip_address", ip_address)
    counts = download([(f"{server.address}/inside.jpg", "page")], tmp_path)
    assert counts == {"private address": 1} and server.seen == ["/inside.jpg"] and len(seen) == 2


def test_a_download_that_was_killed_goes_on(server, tmp_path):
    wanted = [(f"{server.address}/{name}.jpg", "page") for name in "abcd"]
    download(wanted[:2], tmp_path, allow_private=True)
    manifest = tmp_path / "manifest.jsonl"
    lines = manifest.read_text().splitlines()
    manifest.write_text(lines[0] + "\n" + lines[1][:20])  # killed while it wrote the second line
    counts = download(wanted, tmp_path, allow_private=True)
    assert counts == {"saved": 4} and len(server.seen) == 5  # the one whose line was half is fetched again
    assert len(list(tmp_path.rglob("*.png"))) == 4
    assert download(wanted, tmp_path, allow_private=True) == counts and len(server.seen) == 5


def test_endings_follow_the_content():
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "JPEG")
    assert check_image(file.getvalue()) == "jpg" and check_image(png()) == "png"
    with pytest.raises(crawl.Refused, match="not a whole image"):
        check_image(gzip.compress(png()))
