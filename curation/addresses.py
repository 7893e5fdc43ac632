"""Images of web pages: the addresses in their <img> tags, and a polite, careful download. (§3, "Data sources")

    page → src, srcset and the attributes of lazy loading, resolved against the page or its <base> → unique http(s)

A page is somebody else's text and may name anything: an address inside our network, an endless answer, a picture of
a million gigapixels.  So each connection's own address is checked before a request is sent on it (a name may point
anywhere, and a redirect too), an answer has a deadline and a size, and only what Pillow reads as a whole image stays.
"""

import hashlib
import http.client
import io
import ipaddress
import json
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections import Counter, deque
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

import lxml.html
from PIL import Image
from tqdm import tqdm
from warcio.archiveiterator import ArchiveIterator
from warcio.exceptions import ArchiveLoadFailed

from support.files import UserError, reason_of, write_safely
from support.find import FORMATS

LAZY = ("src", "data-src", "data-original", "data-lazy", "data-lazy-src")  # where pages keep an image's address
LAZY_SETS = ("srcset", "data-srcset", "data-lazy-srcset")
MAX_PAGE = 20 * 2**20  # bytes of a page
MAX_BYTES = 50 * 2**20  # of an image file
MAX_PIXELS = 100_000_000
DEADLINE = 30  # seconds for a whole answer
AT_ONCE, AT_ONE_HOST = 16, 2  # downloads
REDIRECTS = 5
AGENT = "nanoDINOv2-curate (research; images of public pages)"

MAX_ATTRIBUTES = 10_000  # of a tag: libxml2 takes minutes for 100,000

# ---------------------------------------------------------------------------- addresses


def collect_addresses(place):
    """A saved page, a folder of pages, or a WARC file -> [(address, page)], each address once, in order."""
    found = {}
    for page, url, text in pages(Path(place)):
        for address in image_addresses(text, url):
            found.setdefault(address, page)
    return list(found.items())


def pages(place):
    """(name, its own address or "", bytes) of each page."""
    if place.is_dir():
        for path in sorted(p for p in place.rglob("*") if p.is_file()):
            yield from pages(path)
    elif not place.exists():
        raise UserError(f"{place}: no such page, folder or WARC file")
    elif not place.is_file():
        raise UserError(f"{place} is not a regular file")
    elif place.name.endswith((".warc", ".warc.gz")):
        yield from pages_of_warc(place)
    elif place.suffix.lower() in (".html", ".htm", ".xhtml"):
        with open(place, "rb") as file:
            yield str(place), "", file.read(MAX_PAGE)


def pages_of_warc(place):
    """(address, address, bytes) of each HTML answer of a crawl; UserError for a file that is none, or cut short."""
    with open(place, "rb") as file:
        archive, offset = ArchiveIterator(file), 0
        try:
            for record in archive:
                kind = record.http_headers.get_header("Content-Type") if record.http_headers else None
                if record.rec_type == "response" and "html" in (kind or ""):
                    url = record.rec_headers.get_header("WARC-Target-URI") or ""
                    yield url, url, record.content_stream().read(MAX_PAGE)
                offset = archive.get_record_offset()  # reads to the record's end
        except (ArchiveLoadFailed, ValueError, OSError, EOFError, zlib.error, AttributeError) as error:
            raise UserError(f"{place} is damaged, or no WARC file ({reason_of(error)})") from None
        file.seek(offset)
        if is_cut(file):
            raise UserError(f"{place} is cut short: its last record is not whole")


def is_cut(file):
    """Whether the last whole record of a WARC file, where the file stands, ends elsewhere than the file."""
    head = file.read(2)
    file.seek(-len(head), os.SEEK_CUR)
    if head == b"\x1f\x8b":  # each record is a gzip member of its own
        member = zlib.decompressobj(31)
        while not member.eof and (piece := file.read(2**20)):
            member.decompress(piece)
        return not member.eof or bool(member.unused_data or file.read(1))
    length = 0
    while (line := file.readline(2**16)).strip():
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            length = int(value)
    return not line or len(file.read(length)) < length or bool(file.read(2**16).strip())


def image_addresses(text, url=""):
    """The http(s) addresses of a page's images: bytes of HTML and the page's own address -> a list, unique."""
    try:
        parser = lxml.html.HTMLParser(encoding=encoding_of(text))
        root = lxml.html.document_fromstring(without_endless_tags(text), parser)
    except (lxml.etree.ParserError, ValueError):  # an empty page
        return []
    base = next((urljoined(url, tag.get("href")) for tag in root.iter("base") if tag.get("href")), url)
    raw = []
    for tag in root.iter("img"):
        raw += [tag.get(name) for name in LAZY if tag.get(name)]
        for name in LAZY_SETS:  # "a.jpg 1x, b.jpg 2x": addresses hold no blanks, and may hold commas
            raw += [part.split()[0] for part in re.split(r",\s", tag.get(name) or "") if part.strip()]
    addresses = [urljoined(base, r.strip()).split("#")[0] for r in raw]
    return list(dict.fromkeys(a for a in addresses if is_web(a)))


def encoding_of(text):
    """"utf-8" for bytes that are nothing else, whatever they say of themselves; None: what the page says."""
    try:
        return "utf-8" if text.decode() else None
    except UnicodeDecodeError:
        return None


def without_endless_tags(text):
    """A page without tags of more than MAX_ATTRIBUTES."""
    pieces = text.split(b">")
    for i, piece in enumerate(pieces):
        if len(piece) > MAX_ATTRIBUTES and (start := re.search(rb"<[a-zA-Z]", piece)):
            tag = piece[start.start() :]
            if max(len(tag.split()), tag.count(b"=")) > MAX_ATTRIBUTES:
                pieces[i] = piece[: start.start()]
    return b">".join(pieces)


def urljoined(base, address):
    """The address of a link of a page, "" if it is none."""
    try:
        return urljoin(base, address)
    except ValueError:  # "http://[" and the like
        return ""


def is_web(address):
    """Whether this is an http or https address with a host."""
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


# ---------------------------------------------------------------------------- download


class Refused(Exception):
    """An answer that is no image for us; its text is the reason, for the summary.  A second try would not help."""


def download(addresses, folder, allow_private=False):
    """[(address, page)] -> image files folder/ab/abcd….jpg, and a Counter of what came of each address.

    manifest.jsonl in the folder has a line for each address: file or reason, address, page.  Addresses that have one
    are not fetched again, so that a download that was killed goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.jsonl"
    counts, known = Counter(), set()
    if manifest.exists():
        for line in manifest.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line)
                known.add(row["address"])
                counts[row["result"]] += 1
            except (ValueError, LookupError, TypeError):  # the last line of a killed run
                continue
    left = [(address, page) for address, page in addresses if address not in known]

    def work(address, page):
        result, file = fetch_image(address, folder, allow_private)
        return {"address": address, "page": page, "result": result, **({"file": file} if file else {})}

    with open(manifest, "a") as out, ThreadPoolExecutor(AT_ONCE) as pool:
        if manifest.stat().st_size and not manifest.read_bytes().endswith(b"\n"):
            out.write("\n")
        for row in tqdm(by_host(pool, work, left), "download", len(left), unit="img", leave=False):
            counts[row["result"]] += 1
            out.write(json.dumps(row) + "\n")
            out.flush()
    return counts


def by_host(pool, work, entries):
    """work(*entry) of each entry in a pool of threads, as they end: never more than AT_ONE_HOST of one host at once.

    Those of a host that does not answer wait outside of the pool, so that they keep no thread from another host.
    """
    waiting = {}
    for entry in entries:
        waiting.setdefault(urlsplit(entry[0]).hostname, deque()).append(entry)
    running = {pool.submit(work, *queue.popleft()): host
               for host, queue in waiting.items() for _ in range(min(AT_ONE_HOST, len(queue)))}  # fmt: skip
    while running:
        for job in wait(running, return_when=FIRST_COMPLETED).done:
            host = running.pop(job)
            if waiting[host]:
                running[pool.submit(work, *waiting[host].popleft())] = host
            yield job.result()


def fetch_image(address, folder, allow_private):
    """One address -> ("saved", file relative to folder), or (reason, None).  A passing fault is tried once more."""
    for last in (False, True):
        try:
            raw = fetch(address, allow_private)
            end = check_image(raw)
            break
        except Refused as refused:
            return str(refused), None
        except urllib.error.HTTPError as error:
            if last or error.code not in (429, 500, 502, 503, 504):
                return f"HTTP {error.code}", None
        except (OSError, http.client.HTTPException, ValueError) as error:
            if last or isinstance(error, ValueError):
                return "no answer in time" if "timed out" in str(error) else "broken off", None
        time.sleep(1)
    name = hashlib.sha256(address.encode()).hexdigest()[:24]
    path = folder / name[:2] / f"{name}.{end}"
    path.parent.mkdir(exist_ok=True)
    write_safely(path, lambda new: new.write_bytes(raw), shared=True)
    return "saved", str(path.relative_to(folder))


def as_asked(address):
    """An address as it is sent: blanks and letters beyond ASCII as %20 and the like, those of a host in Punycode."""
    parts = urlsplit(address)
    place = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    return quote(urlunsplit((parts.scheme, place, parts.path, parts.query, "")), safe="%/:=&?~#+!$,;'@()*[]")


def fetch(address, allow_private):
    """The bytes of an http(s) answer, at most MAX_BYTES of them, within DEADLINE seconds."""
    request = urllib.request.Request(as_asked(address), headers={"User-Agent": AGENT, "Accept": "image/*"})
    watch = Watch(allow_private)
    timer = threading.Timer(DEADLINE, watch.cut)
    timer.start()
    try:
        with watch.opener().open(request, timeout=DEADLINE) as answer:
            length = int(answer.headers.get("Content-Length") or 0)
            if length > MAX_BYTES:
                raise Refused("too large")
            if length < 0:
                raise Refused("broken off")
            raw = answer.read(MAX_BYTES + 1)
            if len(raw) > MAX_BYTES:
                raise Refused("too large")
            if answer.length:  # http.client gives what there is, without a word
                raise http.client.IncompleteRead(raw)
            return raw
    except OSError as error:
        reason = getattr(error, "reason", error)  # urllib wraps what a connection raises
        if isinstance(reason, PrivateAddress):
            raise Refused("private address") from None
        if watch.late:
            raise Refused("no answer in time") from None
        if isinstance(error, urllib.error.HTTPError) and ("redirect" in str(error) or 300 <= error.code < 400):
            raise Refused("redirects nowhere") from None
        raise
    except http.client.HTTPException:
        if watch.late:
            raise Refused("no answer in time") from None
        raise
    finally:
        timer.cancel()


class PrivateAddress(OSError):
    """A connection into the local network."""


class Watch:
    """One fetch: the sockets it opened, which `cut` ends from another thread, and whether they may be private."""

    def __init__(self, allow_private):
        self.allow_private, self.sockets, self.late = allow_private, [], False
        self.end = time.monotonic() + DEADLINE

    def cut(self):
        self.late = True
        for sock in self.sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for it
            except OSError:
                pass

    def connection(self, place, *_):
        """As socket.create_connection, but all addresses of a name together have until the deadline."""
        found = socket.getaddrinfo(*place, type=socket.SOCK_STREAM)
        for number, (family, kind, protocol, _, address) in enumerate(found, start=1):
            left = self.end - time.monotonic()
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(max(left / (1 + len(found) - number), 0.01))
                sock.connect(address)
                sock.settimeout(DEADLINE)
                return sock
            except OSError:
                sock.close()
                if number == len(found):
                    raise
        raise OSError("no address")

    def opener(self):
        """An opener for http and https alone, without proxies, whose connections are checked before they are used."""
        watch = self

        class Checked(http.client.HTTPConnection):
            def connect(self):
                self._create_connection = watch.connection  # what http.client calls for a socket
                super().connect()
                watch.sockets.append(self.sock)
                address = ipaddress.ip_address(self.sock.getpeername()[0].split("%")[0])
                address = getattr(address, "ipv4_mapped", None) or address
                if not (watch.allow_private or address.is_global) or address.is_multicast:
                    self.sock.close()
                    raise PrivateAddress("private address")

        class CheckedTLS(http.client.HTTPSConnection, Checked):  # its connect() calls Checked's before the handshake
            pass

        class Plain(urllib.request.HTTPHandler):
            def http_open(self, request):
                return self.do_open(Checked, request)

        class TLS(urllib.request.HTTPSHandler):
            def https_open(self, request):
                return self.do_open(CheckedTLS, request)

        class Redirect(urllib.request.HTTPRedirectHandler):
            max_redirections = REDIRECTS

        opener = urllib.request.OpenerDirector()
        for handler in (Plain, TLS, Redirect, urllib.request.HTTPDefaultErrorHandler,
                        urllib.request.HTTPErrorProcessor):  # fmt: skip
            opener.add_handler(handler())
        return opener


def check_image(raw):
    """The ending for a file with these bytes, by their content; Refused if they are no whole image of sensible size."""
    try:
        image = Image.open(io.BytesIO(raw), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise Refused("too many pixels")
        image.load()
    except Refused:
        raise
    except MemoryError:
        raise Refused("too many pixels") from None
    except Exception:  # Pillow raises every kind on a broken file
        raise Refused("not a whole image") from None
    return {"JPEG": "jpg", "TIFF": "tif"}.get(image.format, image.format.lower())
