"""Downloads from a server on this machine that misbehaves."""

import hashlib
import http.server
import os
import shutil
import threading
from concurrent import futures

import pytest

from pfpn_tf.weights import download

CONTENT = bytes(range(256)) * 20
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; the path says what goes wrong."""

    def do_GET(self):
        server, kind = self.server, self.path.strip("/")
        wanted = self.headers["Range"]
        server.seen.append((kind, wanted))
        if kind == "moved":
            self.send_response(302)
            self.send_header("Location", "/whole")
            return self.end_headers()
        if kind in ("404", "500"):
            return self.send_error(int(kind))
        start = int(wanted[len("bytes=") : -1]) if wanted and kind != "no_ranges" else 0
        if start >= len(CONTENT):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            last = len(CONTENT) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(CONTENT)}")
        page = kind == "page"
        self.send_header("Content-Type", "text/html" if page else "application/octet-stream")
        if kind != "no_length":
            self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end = {"cut": start + 2000, "dead": 2000}.get(kind, len(CONTENT))
        return self.wfile.write(CONTENT[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as started:
        started.url = f"http://127.0.0.1:{started.server_port}"
        thread = threading.Thread(target=started.serve_forever)
        thread.start()
        yield started
        started.shutdown()
        thread.join()


@pytest.fixture
def get(server, tmp_path, monkeypatch):
    """Fetches the file of a kind and returns the path; `get.path` is where it goes."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server.seen = []

    def fetch(kind, digest=SHA256[:8]):
        return download.fetch(f"{server.url}/{kind}", fetch.path, "sha256", digest)

    fetch.path = str(tmp_path / "cache" / "weights.pth")
    fetch.part = f"{fetch.path}.part"
    fetch.server = server
    return fetch


def assert_whole(get):
    with open(get.path, "rb") as f:
        assert f.read() == CONTENT
    assert not os.path.exists(get.part)


@pytest.mark.parametrize("kind", ["whole", "no_length", "moved"])
def test_it_is_downloaded_once(get, kind):
    assert get(kind) == get.path
    assert_whole(get)
    seen = len(get.server.seen)
    get(kind)
    assert len(get.server.seen) == seen


def test_a_cut_connection_goes_on_where_it_was(get):
    get("cut")
    assert_whole(get)
    assert [wanted for _, wanted in get.server.seen] == [None, "bytes=2000-", "bytes=4000-"]


def test_another_command_goes_on_where_the_first_one_was_cut(get):
    with pytest.raises(ValueError, match="cut after 2000 of 5120 bytes. 2000 bytes are kept") as e:
        get("dead")
    assert "\n" not in str(e.value) and get.path in str(e.value)
    assert not os.path.exists(get.path)
    get("moved")
    assert get.server.seen[-1] == ("whole", "bytes=2000-")
    assert_whole(get)


def test_two_that_share_a_cache_download_once(get):
    with futures.ThreadPoolExecutor(2) as pool:
        assert list(pool.map(get, ["whole", "whole"])) == [get.path, get.path]
    assert get.server.seen == [("whole", None)]
    assert_whole(get)


def test_the_slower_of_two_leaves_nothing(get, monkeypatch):
    """The file comes between its look and its turn."""

    def other_is_done(*args):
        with open(get.path, "wb") as f:
            f.write(CONTENT)

    monkeypatch.setattr(download.fcntl, "flock", other_is_done)
    get("whole")
    assert get.server.seen == []
    assert_whole(get)


@pytest.mark.parametrize("kind", ["no_ranges", "whole"])
def test_what_cannot_go_on_starts_again(get, kind):
    """The server has no ranges, or no more bytes than are there already."""
    os.makedirs(os.path.dirname(get.path))
    with open(get.part, "wb") as f:
        f.write(b"x" * (100 if kind == "no_ranges" else 6000))
    get(kind)
    assert_whole(get)


def test_a_wrong_hash_is_named_and_the_file_is_not_used(get):
    with pytest.raises(ValueError, match=f"begins with {SHA256[:6]} in place of 012345. Delete"):
        get("whole", "012345")
    assert not os.path.exists(get.path)
    os.rename(get.part, get.path)  # as if someone had put it there
    with pytest.raises(ValueError, match="begins with"):
        get("whole", "012345")


@pytest.mark.parametrize(
    "kind, problem",
    [("404", "answers 404"), ("500", "answers 500"), ("page", "answers with a web page")],
)
def test_what_is_no_file(get, kind, problem):
    with pytest.raises(ValueError, match=rf"Cannot download http://.*/{kind}: .*{problem}"):
        get(kind)


def test_without_a_network_the_address_is_told(get):
    with pytest.raises(ValueError, match="Cannot download http://127.0.0.1:9/a.pkl: .* refused"):
        download.fetch("http://127.0.0.1:9/a.pkl", get.path)


def test_a_disk_that_becomes_full(get):
    os.makedirs(os.path.dirname(get.path))
    os.symlink("/dev/full", get.part)
    with pytest.raises(ValueError, match="Cannot write .*No space left on device.*PFPN_TF_CACHE"):
        get("whole")
    assert not os.path.exists(get.path)


def test_a_disk_that_is_too_small_is_told_before(get, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 5000))
    with pytest.raises(ValueError, match="5000 bytes are free, 5120 needed"):
        get("whole")
    assert os.path.getsize(get.part) == 0


def test_cache_folder(monkeypatch):
    monkeypatch.delenv("PFPN_TF_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert download.cache_dir() == "/x/pfpn_tf"
    monkeypatch.setenv("PFPN_TF_CACHE", "/y")
    assert download.cache_dir() == "/y"
