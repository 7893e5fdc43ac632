"""The addresses in the <img> tags of saved pages.  `pytest tests/curation/test_addresses.py`"""

from curation.addresses import image_addresses


def test_addresses_of_a_page(tmp_path):
    """Absolute ones, resolved against <base href>, from src and the attributes of lazy loading, each once."""
    page = tmp_path / "page.html"
    page.write_text("""<html><head><base><base href="https://a.example/dir/page.html"><base href="/x/"></head><body>
        <IMG SRC="one.jpg"><img src='/two.jpg?a=1&amp;b=2'><img src=" //b.example/three.jpg "><img src="one.jpg#top">
        <img src="data:image/png;base64,AA" data-src="four é.jpg"><img src="ftp://a.example/five.jpg"><img src>
        <img src="http://["><a href="six.jpg"></a><!-- <img src="seven.jpg"> --><img src="eight.jpg"/></body>""")
    assert image_addresses(page) == [
        "https://a.example/dir/one.jpg", "https://a.example/two.jpg?a=1&b=2", "https://b.example/three.jpg",
        "https://a.example/dir/four%20%C3%A9.jpg", "https://a.example/dir/eight.jpg",
    ]  # fmt: skip


def test_pages_of_a_folder_in_order(tmp_path):
    """Pages at any depth, other files not.  A page without a <base> gives its absolute addresses only.  What follows
    a malformed "<![" is skipped, and bytes that are no UTF-8 do no harm."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.HTM").write_bytes(b'\xff<img src="http://x.example/2.jpg"><![oops[ ]>')
    (tmp_path / "a.html").write_text('<img src="here.jpg"><img src="http://x.example/1.jpg">')
    (tmp_path / "c.xhtml").write_text('<img src="http://x.example/1.jpg"/>')
    (tmp_path / "d.txt").write_text('<img src="http://x.example/4.jpg">')
    assert image_addresses(tmp_path) == ["http://x.example/1.jpg", "http://x.example/2.jpg"]
