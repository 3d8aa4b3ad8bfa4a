"""Fetching published weights from a real server on this machine, well-behaved and not."""

import hashlib
import os
import random
import shutil
import signal
import ssl
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import web as site
from web import Web, serving

from rsgeoseg.errors import WeightsError
from rsgeoseg.weights import cache, download
from rsgeoseg.weights.cache import CacheState
from rsgeoseg.weights.published import find_published

DATA = random.Random(0).randbytes(300_001)
SIZE, HALF = len(DATA), len(DATA) // 2
ROOT = str(Path(__file__).parents[2])


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))
    for name in (cache.OFFLINE, cache.MIRROR, "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "BACKOFF_S", 0.001)


@pytest.fixture
def web():
    with serving(Web()) as server:
        server.files["/real/weights.pth"] = DATA
        yield server


@pytest.fixture
def card(web):
    return a_card(web.url)


def a_card(url, data=DATA):
    return replace(
        find_published("sam-vit-b"),
        id="tiny",
        file="weights.pth",
        url=f"{url}/real/weights.pth",
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def part(card):
    return download.partial_path(cache.cached_path(card))


def leave_part(card, data):
    part(card).parent.mkdir(parents=True, exist_ok=True)
    part(card).write_bytes(data)


def fetched(card, **options):
    path = cache.fetch(card, **options)
    assert path == cache.cached_path(card)
    assert path.read_bytes() == DATA
    assert not part(card).exists()
    return path


def refused(card, *words, kept=None, **options):
    """Check that the fetch fails with these words in one line, and how much of the file is kept."""
    with pytest.raises(WeightsError) as caught:
        cache.fetch(card, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert not cache.cached_path(card).exists()
    assert (part(card).stat().st_size if part(card).exists() else None) == kept
    return message


# A server that does what it should


def test_fetches_once(web, card):
    assert cache.state(card) is CacheState.absent
    fetched(card)
    assert cache.state(card) is CacheState.cached
    fetched(card)
    assert web.requests == [("/real/weights.pth", None, None)]


def test_download_that_nobody_watches_is_said(card, caplog):
    fetched(card, progress=lambda _done, _size: None)
    assert caplog.messages == []
    cache.cached_path(card).unlink()
    fetched(card)
    assert caplog.messages == [f"fetching tiny (0 MB) from {card.url} into {cache.cache_folder()}"]


def test_progress_counts_up_to_the_size(card):
    told = []
    fetched(card, progress=lambda done, size: told.append((done, size)))
    assert {size for _, size in told} == {SIZE}
    counts = [done for done, _ in told]
    assert counts[0] == 0
    assert counts[-1] == SIZE
    assert counts == sorted(counts)


def test_length_unknown_to_the_server(web, card):
    web.faults = [site.unannounced(DATA)]
    fetched(card)
    assert len(web.requests) == 1


def test_chunked(web, card):
    web.faults = [site.chunked(DATA)]
    fetched(card)


# Connections that break


def test_goes_on_where_it_was_cut(web, card):
    web.faults = [site.cut(1000), site.cut(2000), site.cut(0)]
    fetched(card)
    assert [span for _, span, _ in web.requests] == [None, "bytes=1000-", "bytes=3000-", "bytes=3000-"]
    assert {version for _, _, version in web.requests[1:]} == {'"one"'}
    assert web.body_bytes == SIZE


def test_any_number_of_cuts_is_fine_while_bytes_come(web):
    data = random.Random(1).randbytes(9 << 20)
    web.files["/real/weights.pth"] = data
    web.faults = [site.cut(1 << 20)] * 8
    card = a_card(web.url, data)
    assert cache.fetch(card).read_bytes() == data
    assert len(web.requests) == 9 > download.ATTEMPTS
    assert web.body_bytes == len(data)


def test_gives_up_when_nothing_comes_any_more(web, card, caplog):
    web.faults = [site.cut(1000)] + [site.hang_up] * 20
    refused(card, "cannot fetch", card.url, "1,000 of 300,001 bytes", "run again", "RSGEOSEG_MIRROR", kept=1000)
    assert len(web.requests) == download.ATTEMPTS
    assert sum("going on in" in text for text in caplog.messages) == download.ATTEMPTS - 1
    assert cache.state(card) is CacheState.partial
    web.faults = []
    told = []
    fetched(card, progress=lambda done, _: told.append(done))
    assert web.requests[-1] == ("/real/weights.pth", "bytes=1000-", None)
    assert told[0] == 1000
    assert web.body_bytes == SIZE


def test_pauses_double(web, card, monkeypatch):
    pauses = []
    monkeypatch.setattr(download, "BACKOFF_S", 1.0)
    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=pauses.append))
    web.faults = [site.hang_up] * 20
    refused(card, "cannot fetch")
    assert pauses == [1, 2, 4, 8]


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_passing_errors_of_the_server(web, card, code):
    web.faults = [site.status(code), site.cut(HALF), site.status(code)]
    fetched(card)
    assert web.body_bytes == SIZE


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_lasting_errors_of_the_server_are_not_asked_again(web, card, code):
    web.faults = [site.status(code)]
    refused(card, f"HTTP {code}", card.url)
    assert len(web.requests) == 1


def test_server_that_falls_silent(web, card, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_S", 0.3)
    web.faults = [site.hold(HALF)]
    start = time.perf_counter()
    fetched(card)
    assert 0.3 <= time.perf_counter() - start < 20
    assert web.requests[1][1] == f"bytes={HALF}-"


def test_server_that_never_answers(web, card, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_S", 0.1)
    web.faults = [lambda _: web.release.wait(30)] * 20
    refused(card, "no answer for 0.1 s")


def test_nobody_there(card):
    refused(replace(card, url="http://127.0.0.1:1/weights.pth"), "cannot fetch", "refused")


def test_unknown_host(card):
    refused(replace(card, url="http://weights.invalid/weights.pth"), "cannot fetch", "weights.invalid")


FAULTS = (
    site.cut(0),
    site.cut(1000),
    site.cut(HALF),
    site.hang_up,
    site.status(500),
    site.whole,
    site.partial(f"bytes 0-9/{SIZE}", b"x" * 10),
    site.partial(f"bytes 0-{SIZE - 1}/{SIZE}", DATA),
    site.partial(None, DATA[HALF:]),
    site.status(416),
)


@pytest.mark.parametrize("seed", range(20))
def test_any_few_faults_in_any_order(web, card, seed):
    """What passes is the file or an error, never another file."""
    faults = random.Random(seed)
    web.faults = faults.choices(FAULTS, k=download.ATTEMPTS - 1)
    fetched(card)


# Servers that send something else


@pytest.mark.parametrize("length", [SIZE - 1, SIZE + 1, 7, 10**12])
def test_announced_length_must_be_the_card_s(web, card, length):
    web.faults = [site.announce(length, send=DATA[:7])]
    refused(card, f"announces {length} bytes", str(SIZE))
    assert len(web.requests) == 1


def test_body_shorter_than_announced_is_a_cut(web, card):
    web.faults = [site.announce(SIZE, send=DATA[:500])]
    fetched(card)
    assert web.requests[1][1] == "bytes=500-"


def test_body_longer_than_announced_is_not_read(web, card):
    web.faults = [site.announce(SIZE, send=DATA + b"more")]
    fetched(card)


@pytest.mark.parametrize("send", [site.unannounced, site.chunked])
def test_body_without_end_is_cut_off(web, card, send):
    web.faults = [send(DATA + bytes(50_000_000))]
    refused(card, "sends more than", "300,001", kept=0)
    assert web.body_bytes < 40_000_000  # the client hung up
    fetched(card)


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "application/octet-stream"])
def test_web_page_instead_of_the_file(web, card, content_type):
    web.faults = [site.page(content_type)]
    refused(card, "it is a web page", kept=0 if "octet" in content_type else None)
    assert len(web.requests) == 1
    fetched(card)


def test_web_page_does_not_spoil_what_is_here(web, card):
    leave_part(card, DATA[:HALF])
    web.faults = [site.page("text/html")]
    refused(card, "it is a web page", kept=HALF)
    fetched(card)
    assert web.requests[1][1] == f"bytes={HALF}-"


def test_compressed_body(web, card):
    web.faults = [lambda handler: handler.head(Content_Encoding="gzip", Content_Length=SIZE)]
    refused(card, "compressed")


def test_other_content_of_the_same_length(web, card):
    web.files["/real/weights.pth"] = bytes(SIZE)
    refused(card, "sha256", card.sha256[:12], "not the published file")
    assert len(web.requests) == 1  # and no second try without being asked


def test_rotten_part_is_found_and_does_not_come_back(web, card):
    leave_part(card, bytes(HALF))
    refused(card, "sha256", "run again")
    fetched(card)
    assert [span for _, span, _ in web.requests] == [f"bytes={HALF}-", None]


def test_part_longer_than_the_file(web, card):
    leave_part(card, DATA + b"more")
    fetched(card)
    assert web.requests == [("/real/weights.pth", None, None)]


def test_part_that_is_whole_needs_no_server(web, card):
    leave_part(card, DATA)
    fetched(card)
    assert web.requests == []


# Servers that resume wrongly


def test_server_that_ignores_the_range_starts_over(web, card):
    told = []
    leave_part(card, DATA[:HALF])
    web.faults = [site.whole]
    fetched(card, progress=lambda done, _: told.append(done))
    assert told[0] == 0
    assert told[-1] == SIZE
    assert web.body_bytes == SIZE


def test_starting_over_forgets_what_was_here(web, card):
    leave_part(card, bytes(HALF))
    web.faults = [site.announce(SIZE, send=DATA[:1000])]
    fetched(card)
    assert web.requests[1][1] == "bytes=1000-"


@pytest.mark.parametrize(
    "answer",
    [
        site.partial(f"bytes 0-{SIZE - 1}/{SIZE}", DATA),
        site.partial(f"bytes {HALF + 1}-{SIZE - 1}/{SIZE}", DATA[HALF + 1 :]),
        site.partial(f"bytes {HALF}-{SIZE}/{SIZE + 1}", DATA[HALF:] + b"x"),
        site.partial(f"bytes */{SIZE}", b""),
        site.partial("pages 3-4/5", DATA[HALF:]),
        site.partial(None, DATA[HALF:]),
        site.status(416),
    ],
    ids=["start", "gap", "other total", "no span", "unit", "no header", "416"],
)
def test_wrong_range_is_not_appended(web, card, answer):
    leave_part(card, DATA[:HALF])
    web.faults = [answer]
    fetched(card)
    assert [span for _, span, _ in web.requests] == [f"bytes={HALF}-", None]


def test_part_that_nobody_asked_for_is_not_taken(web, card):
    web.faults = [site.partial(f"bytes 0-9/{SIZE}", bytes(10))]
    fetched(card)


def test_total_that_the_server_does_not_know(web, card):
    leave_part(card, DATA[:HALF])
    web.faults = [site.partial(f"bytes {HALF}-{SIZE - 1}/*", DATA[HALF:])]
    fetched(card)
    assert len(web.requests) == 1


def test_shorter_range_than_asked_is_gone_on_with(web, card):
    leave_part(card, DATA[:HALF])
    web.faults = [site.partial(f"bytes {HALF}-{HALF + 9}/{SIZE}", DATA[HALF : HALF + 10])]
    fetched(card)
    assert web.requests[1][1] == f"bytes={HALF + 10}-"


def old_version(handler):
    """Half of another file of the same length, with its own tag."""
    handler.server.etag = '"old"'
    handler.head(Content_Length=SIZE, ETag='"old"')
    handler.body(bytes(HALF))
    handler.server.etag = '"new"'


def test_file_that_changes_between_attempts(web, card):
    web.faults = [old_version]
    fetched(card)
    assert web.requests[1:] == [("/real/weights.pth", f"bytes={HALF}-", '"old"')]


def test_file_that_changes_on_a_server_that_resumes_all_the_same(web, card):
    web.faults = [old_version, site.partial(f"bytes {HALF}-{SIZE - 1}/{SIZE}", DATA[HALF:], ETag='"new"')]
    fetched(card)
    assert [span for _, span, _ in web.requests] == [None, f"bytes={HALF}-", None]


def test_weak_tags_are_not_relied_on(web, card):
    web.etag = 'W/"one"'
    web.faults = [site.cut(HALF)]
    fetched(card)
    assert web.requests[1] == ("/real/weights.pth", f"bytes={HALF}-", None)


# Addresses


def test_redirect_keeps_the_range(web, card):
    web.files["/elsewhere"] = DATA
    leave_part(card, DATA[:HALF])
    web.faults = [site.redirect("/elsewhere")]
    fetched(card)
    assert web.requests[1][:2] == ("/elsewhere", f"bytes={HALF}-")
    assert web.body_bytes == SIZE - HALF


def test_redirect_in_a_circle(web, card):
    web.faults = [site.redirect("/real/weights.pth")] * 30
    refused(card, "HTTP 302")
    assert len(web.requests) < 15


@pytest.mark.parametrize("to", ["file:///etc/hostname", "ftp://127.0.0.1/weights.pth", "data:,x", "http://[/x"])
def test_redirect_off_the_web(web, card, to):
    web.faults = [site.redirect(to)]
    refused(card)
    assert len(web.requests) == 1


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x", "weights.pth", "https:///x", "http://[/x", ""]
)
def test_only_web_addresses(card, url):
    refused(replace(card, url=url), "no web address of http or https")


@pytest.mark.parametrize("path", ["/with blank", "/ünicode"])
def test_odd_paths_are_one_line(web, card, path):
    refused(replace(card, url=f"{web.url}{path}"), "no web address")
    assert web.requests == []


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("how", ["option", "environment"])
def test_mirror(web, card, monkeypatch, how, slash):
    web.files["/some/mirror/weights.pth"] = DATA
    mirror = f"{web.url}/some/mirror{slash}"
    card = replace(card, url="http://127.0.0.1:1/weights.pth")
    if how == "environment":
        monkeypatch.setenv(cache.MIRROR, mirror)
    fetched(card, mirror=mirror if how == "option" else None)
    assert [path for path, _, _ in web.requests] == ["/some/mirror/weights.pth"]


def test_mirror_of_other_files_is_found_out(web, card):
    web.files["/mirror/weights.pth"] = DATA[::-1]
    refused(card, "sha256", f"{web.url}/mirror/weights.pth", mirror=f"{web.url}/mirror")


@pytest.fixture
def secure(tmp_path):
    """A server with TLS, and its certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("NOT RUN: makes a certificate with openssl, which is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = Web("https")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server):
        server.files["/real/weights.pth"] = DATA
        yield server, certificate


def test_tls(secure, monkeypatch):
    server, certificate = secure
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server.faults = [site.cut(HALF)]
    fetched(a_card(server.url))


def test_server_that_cannot_prove_who_it_is(secure):
    server, _ = secure
    refused(a_card(server.url), "cannot prove who it is", "self-signed")
    assert server.requests == []


def test_redirect_from_https_to_http(secure, web, monkeypatch):
    server, certificate = secure
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server.faults = [site.redirect(f"{web.url}/real/weights.pth")]
    refused(a_card(server.url), "from https to http")
    assert web.requests == []


# The cache


def test_offline(web, card, monkeypatch):
    monkeypatch.setenv(cache.OFFLINE, "1")
    message = refused(card, card.id, "switched off", cache.OFFLINE, card.file, card.url, str(cache.cache_folder()))
    assert refused(card, offline=True) == message
    assert web.requests == []
    fetched(card, offline=False)
    fetched(card)


@pytest.mark.parametrize("value", ["", "0", "no", "False"])
def test_offline_switched_off(card, monkeypatch, value):
    monkeypatch.setenv(cache.OFFLINE, value)
    fetched(card)


def test_file_put_there_by_hand_is_checked(web, card):
    path = cache.cached_path(card)
    path.parent.mkdir()
    path.write_bytes(DATA)
    assert cache.fetch(card, offline=True) == path
    path.write_bytes(DATA[::-1])
    with pytest.raises(WeightsError, match=r"sha256.*remove it"):
        cache.fetch(card)
    assert path.read_bytes() == DATA[::-1]  # what the user put there is the user's
    assert web.requests == []


def test_stamp_saves_reading_until_the_file_changes(card):
    path = fetched(card)
    before = path.stat()
    spoilt = bytearray(DATA)
    spoilt[HALF] ^= 1
    path.write_bytes(spoilt)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache.fetch(card) == path  # neither size nor time has changed: the stamp is believed
    with pytest.raises(WeightsError, match="damaged"):
        cache.verify(card)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(WeightsError, match="damaged"):
        cache.fetch(card)


@pytest.mark.parametrize("stamp", ["", "{", "[]", '{"sha256": "0"}'])
def test_broken_stamp_is_as_none(card, stamp):
    path = fetched(card)
    path.with_name(f"{path.name}.verified").write_text(stamp)
    os.truncate(path, SIZE - 1)
    with pytest.raises(WeightsError, match="sha256"):
        cache.fetch(card)


def test_stamp_of_another_digest_does_not_count(card):
    """As after an update of this package with new weights under an old name."""
    fetched(card)
    with pytest.raises(WeightsError, match="sha256"):
        cache.fetch(replace(card, sha256="0" * 64))


def test_verify_of_what_is_not_here(card):
    with pytest.raises(WeightsError, match="rsgeoseg weights fetch tiny"):
        cache.verify(card)


def test_no_space_is_said_before_the_first_byte(web, card, monkeypatch):
    usage = SimpleNamespace(total=10**12, used=10**12, free=16_000_000 + HALF)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refused(card, "no space", card.file, cache.FOLDER)
    assert web.requests == []
    leave_part(card, DATA[: SIZE - HALF])  # now the free bytes suffice for the rest
    fetched(card)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_disk_that_fills_up(web, card):
    part(card).parent.mkdir()
    part(card).symlink_to("/dev/full")
    with pytest.raises(WeightsError, match=r"no space \(No space left on device\); make room"):
        cache.fetch(card)
    assert len(web.requests) == 1
    assert not cache.cached_path(card).exists()


def test_cache_that_cannot_be_made(card, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "file" / "cache"))
    with pytest.raises(WeightsError, match=r"cannot be written.*RSGEOSEG_CACHE"):
        cache.fetch(card)


@pytest.mark.parametrize(
    ("platform", "variables", "folder"),
    [
        ("linux", {}, "HOME/.cache/rsgeoseg"),
        ("linux", {"XDG_CACHE_HOME": "/var/caches"}, "/var/caches/rsgeoseg"),
        ("darwin", {"XDG_CACHE_HOME": "/var/caches"}, "HOME/Library/Caches/rsgeoseg"),
        ("win32", {"LOCALAPPDATA": "/Local"}, "/Local/rsgeoseg"),
        ("linux", {cache.FOLDER: "~/mine"}, "HOME/mine"),
    ],
)
def test_cache_folder(monkeypatch, tmp_path, platform, variables, folder):
    for name in (cache.FOLDER, "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", platform)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache.cache_folder() == Path(folder.replace("HOME", str(tmp_path)))


# Several processes

FETCH = """
    import logging, sys
    sys.path.insert(0, {root!r})
    from dataclasses import replace
    from rsgeoseg.errors import WeightsError
    from rsgeoseg.weights import cache
    from rsgeoseg.weights.published import find_published
    logging.basicConfig(level="WARNING", format="%(message)s")
    {before}
    card = replace(find_published("sam-vit-b"), id="tiny", file={card.file!r}, url={card.url!r}, bytes={card.bytes},
                   sha256={card.sha256!r})
    try:
        print(cache.fetch(card))
    except WeightsError as error:
        sys.exit(str(error))
"""


def start(card, before=""):
    """Fetch in a process of its own."""
    program = textwrap.dedent(FETCH).format(root=ROOT, card=card, before=before)
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_fetch_once(web, card):
    web.faults = [site.hold(HALF)]
    first = start(card)
    assert web.arrived.wait(60)
    second = start(card)
    assert second.stderr.readline() == "another process is fetching weights.pth; waiting for it\n"
    assert second.poll() is None
    web.release.set()
    outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert [out for out, _ in outputs] == [f"{cache.cached_path(card)}\n"] * 2
    assert [error[:13] for _, error in outputs] == ["fetching tiny", ""]
    assert cache.cached_path(card).read_bytes() == DATA
    assert len(web.requests) == 1
    assert web.body_bytes == SIZE


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_process_blocks_nobody_and_its_bytes_are_used(web, card, caplog):
    web.faults = [site.hold(HALF)]
    first = start(card)
    assert web.arrived.wait(60)
    until = time.monotonic() + 60
    while not (part(card).exists() and part(card).stat().st_size > 0):
        assert time.monotonic() < until
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    have = part(card).stat().st_size
    assert 0 < have <= HALF
    fetched(card)
    assert web.requests[1] == ("/real/weights.pth", f"bytes={have}-", None)
    assert "waiting" not in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_limit_on_file_size(web, card):
    """Stops the write as a full disk does, in a child so that it hits nobody else; then the download goes on."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    child = start(card, limit)
    _, error = child.communicate(timeout=60)
    assert child.returncode == 1
    assert len(error.splitlines()) == 2
    assert "no space (File too large); make room and run again" in error
    have = part(card).stat().st_size
    assert have == 100_000
    fetched(card)
    assert web.requests[1][1] == "bytes=100000-"
