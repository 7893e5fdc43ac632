"""The addresses in the <img> tags of saved web pages. (§3, "Data sources")

A tool that downloads images (img2dataset) takes the list and writes shards, which `curate.py --uncurated` reads.
"""

from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, urldefrag, urljoin

from support.files import UserError

PAGES = (".html", ".htm", ".xhtml")
SOURCES = ("src", "data-src", "data-original", "data-lazy-src")  # where pages put the address of an image
KEPT = "%/:=&?~#+!$,;'@()*[]"  # ASCII that an address may hold; blanks and letters of other scripts become %20, ...


class ImageTags(HTMLParser):
    """Collects absolute http(s) addresses of a page's images, resolved against its <base href>, without fragments."""

    def __init__(self):
        super().__init__()
        self.base, self.addresses = "", []

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if tag == "base" and name == "href":
                self.base = self.base or value or ""
            if tag == "img" and name in SOURCES and value:
                with suppress(ValueError):  # for "http://[" and the like
                    address = urldefrag(urljoin(self.base, value.strip()))[0]
                    if address.startswith(("http://", "https://")):
                        self.addresses.append(quote(address, safe=KEPT))


def image_addresses(place):
    """A saved page, or a folder of pages -> the addresses of their images, each once, in order."""
    place, found = Path(place), {}
    if not place.exists():
        raise UserError(f"there is no page or folder {place}")
    pages = sorted(path for path in place.rglob("*") if path.suffix.lower() in PAGES) if place.is_dir() else [place]
    for page in filter(Path.is_file, pages):
        parser = ImageTags()
        with suppress(AssertionError):  # html.parser raises it for a malformed "<![": the rest is skipped
            parser.feed(page.read_text(encoding="utf-8", errors="replace"))
        found |= dict.fromkeys(parser.addresses)
    if not found:
        raise UserError(f"{place}: no <img> tag with an absolute http address; give a saved page or a folder of pages")
    return list(found)
