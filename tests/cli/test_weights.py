"""``rsgeoseg weights``, with one small public file on a server of this machine."""

import hashlib
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer
import web as site
from web import Web, serving

from rsgeoseg.cli import main
from rsgeoseg.weights import cache, download, published
from rsgeoseg.weights.cards import bundled_cards
from rsgeoseg.weights.published import find_published, published_cards

ROOT = str(Path(__file__).parents[2])
DATA = random.Random(0).randbytes(100_000)
BUNDLED = next(card for card in bundled_cards() if card.model == "rsprompter-query")


@pytest.fixture
def cli(cli, monkeypatch, tmp_path):
    """The command line with ``weights`` alone, an empty cache and no waiting."""
    from rsgeoseg.cli.weights import weights_app

    def build():
        app = typer.Typer(rich_markup_mode=None)
        app.callback()(lambda: None)
        app.add_typer(weights_app, name="weights")
        return app

    monkeypatch.setattr(main, "build_app", build)
    monkeypatch.setattr(download, "BACKOFF_S", 0.001)
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))
    for name in (cache.OFFLINE, cache.MIRROR, "http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return cli


@pytest.fixture
def web():
    with serving(Web()) as server:
        server.files["/real/tiny.pth"] = server.files["/mirror/tiny.pth"] = DATA
        yield server


@pytest.fixture
def tiny(web, monkeypatch):
    """The only public card: a file that the server has."""
    card = replace(
        find_published("sam-vit-b"),
        id="tiny",
        file="tiny.pth",
        url=f"{web.url}/real/tiny.pth",
        bytes=len(DATA),
        sha256=hashlib.sha256(DATA).hexdigest(),
    )
    monkeypatch.setattr(published, "published_cards", lambda: (card,))
    return card


def test_list(cli):
    result = cli("weights", "list")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].split() == ["id", "models", "backbone", "classes", "size", "licence", "state"]
    assert len(lines) == 1 + len(bundled_cards()) + len(published_cards()) + 2
    assert max(map(len, lines)) < 180
    row = next(line for line in lines if line.startswith("sam-vit-l "))
    assert row.endswith("1.2 GB    Apache-2.0    to fetch")
    row = next(line for line in lines if line.startswith(BUNDLED.id))
    assert row.endswith("Apache-2.0 *  bundled")
    row = next(line for line in lines if line.startswith("rsprompter-anchor-whu"))
    assert "building" in row
    assert "Apache-2.0 *" in row


def test_list_as_json(cli):
    cards = json.loads(cli("weights", "list", "--json").out)
    assert [card["id"] for card in cards] == [card.id for card in (*bundled_cards(), *published_cards())]
    nwpu = next(card for card in cards if card["id"] == "rsprompter-anchor-nwpu")
    assert nwpu["models"] == ["rsprompter-anchor"]
    assert nwpu["classes"][2] == "storage_tank"
    assert nwpu["settings"]["decoder_eps"] == 1e-5
    assert nwpu["state"] == "to fetch"
    assert [card["models"] for card in cards[: len(bundled_cards())]] == [[card.model] for card in bundled_cards()]
    assert cards[0]["state"] == "bundled"


def test_list_one(cli):
    out = cli("weights", "list", "sam2.1-hiera-t").out
    pairs = dict(line.split("  ", 1) for line in out.splitlines())
    assert pairs["resize"].strip() == "squash"
    assert pairs["mask_threshold"].strip() == "0.0"
    assert json.loads(cli("weights", "list", "sam-vit-b", "--json").out)["bytes"] == 375_042_383
    cli("weights", "list", "sam-vit-x").fails(4, "'sam-vit-x'", "sam-vit-b", BUNDLED.id)


def test_list_tells_what_is_here(cli, tiny):
    def listed():
        return json.loads(cli("weights", "list", "tiny", "--json").out)["state"]

    assert listed() == "to fetch"
    path = cache.cached_path(tiny)
    path.parent.mkdir()
    download.partial_path(path).write_bytes(DATA[:9])
    assert listed() == "partial"
    assert cli("weights", "fetch", "tiny").code == 0
    assert listed() == "cached"


def test_fetch(cli, web, tiny):
    result = cli("weights", "fetch", "tiny", BUNDLED.id)
    assert result.code == 0, result.err
    assert result.out.splitlines() == [f"tiny  {cache.cached_path(tiny)}", f"{BUNDLED.id}  {BUNDLED.path}"]
    assert result.err == f"warning: fetching tiny (0 MB) from {tiny.url} into {cache.cache_folder()}\n"
    assert cache.cached_path(tiny).read_bytes() == DATA
    assert [path for path, _, _ in web.requests] == ["/real/tiny.pth"]


def test_fetch_from_a_mirror(cli, web, tiny):
    result = cli("weights", "fetch", "tiny", "--mirror", f"{web.url}/mirror", "-q")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert [path for path, _, _ in web.requests] == ["/mirror/tiny.pth"]


@pytest.mark.parametrize("model", ["sam-prompt", "sam_everything"])
def test_fetch_all_for_a_model(cli, tiny, model):
    assert cli("weights", "fetch", "--all-for", model).code == 0
    assert cache.cached_path(tiny).is_file()


def test_fetch_of_what_is_not_there(cli, web, tiny):
    cli("weights", "fetch").fails(2, "--all-for")
    cli("weights", "fetch", "sam-vit-q").fails(4, "'sam-vit-q'", "tiny")
    cli("weights", "fetch", "--all-for", "rsprompter-query").fails(4, "rsprompter-query", "sam-prompt")
    cli("weights", "fetch", "tiny", "--offline").fails(4, "switched off", str(cache.cache_folder()))
    assert web.requests == []
    cli("weights", "fetch", "tiny", "--mirror", f"{web.url}/nowhere").fails(4, "HTTP 404", "/nowhere/tiny.pth")
    cli("weights", "fetch", "tiny", "--mirror", "/a/folder").fails(4, "no web address")
    web.faults = [site.page("text/html")]
    cli("weights", "fetch", "tiny").fails(4, "web page")


def test_fetch_says_that_it_tries_again(cli, web, tiny):
    web.faults = [site.cut(10)]
    result = cli("weights", "fetch", "tiny")
    assert result.code == 0
    assert f"warning: {tiny.url}: the connection ended after 10 of 100,000 bytes; going on in" in result.err


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_fetch_draws_a_bar_on_a_terminal(tiny, web, tmp_path):
    """In a process whose stderr is a terminal; the server pauses so that the bar is drawn half full."""
    import pty

    web.faults = [site.hold(50_000)]
    program = f"""
import sys; sys.path.insert(0, {ROOT!r})
from dataclasses import replace
from rsgeoseg.weights import cache, published
card = replace(published.find_published("sam-vit-b"), id="tiny", file="tiny.pth", url={tiny.url!r},
               bytes={tiny.bytes}, sha256={tiny.sha256!r})
published.published_cards = lambda: (card,)
from rsgeoseg.cli.weights import weights_app
weights_app(["fetch", "tiny"])
"""
    ours, theirs = pty.openpty()
    environment = os.environ | {cache.FOLDER: str(tmp_path / "cache"), "TERM": "xterm", "COLUMNS": "120"}
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    drawn = b""
    try:
        while b"50.0/100.0 kB" not in drawn:
            drawn += os.read(ours, 1 << 16)
        web.release.set()
        while chunk := os.read(ours, 1 << 16):
            drawn += chunk
    except OSError:  # the other end was closed
        pass
    out, _ = child.communicate(timeout=60)
    os.close(ours)
    assert child.returncode == 0
    assert out.decode().startswith("tiny  ")
    assert b"50.0/100.0 kB" in drawn
    assert b"tiny" in drawn
    assert b"B/s" in drawn


def test_verify(cli, tiny):
    assert cli("weights", "verify").out.splitlines() == [f"ok    {c.id}  {c.path}" for c in bundled_cards()]
    cli("weights", "verify", "tiny").fails(4, "is not here", "weights fetch tiny")
    cli("weights", "fetch", "tiny")
    path = cache.cached_path(tiny)
    assert cli("weights", "verify").out.splitlines()[-1] == f"ok    tiny  {path}"
    before = path.stat()
    path.write_bytes(DATA[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # a stamp would be believed; verify reads all the same
    result = cli("weights", "verify")
    result.fails(4, str(path), "sha256")
    assert result.out.splitlines()[0].startswith(f"ok    {bundled_cards()[0].id}")
    assert result.out.splitlines()[-1] == "FAIL  tiny"


def test_verify_of_damaged_bundled_weights(cli, tmp_path, monkeypatch):
    from rsgeoseg.weights import cards

    for path in cards.BUNDLED.iterdir():
        (tmp_path / path.name).write_bytes(
            path.read_bytes()[:-1] if path.suffix == ".safetensors" else path.read_bytes()
        )
    monkeypatch.setattr(cards, "BUNDLED", tmp_path)
    cli("weights", "verify").fails(4, BUNDLED.file, "sha256")


def test_verify_of_a_path(cli, tiny, tmp_path):
    path = tmp_path / "copy.pth"
    path.write_bytes(DATA)
    assert cli("weights", "verify", path).out == f"ok    {path}  {path}\n"
    assert cli("weights", "verify", path, "--sha256", tiny.sha256.upper()).code == 0
    cli("weights", "verify", path, "--sha256", "0" * 64).fails(4, tiny.sha256, "expected 000")
    cli("weights", "verify", BUNDLED.id, "--sha256", "0" * 64).fails(4, BUNDLED.sha256)
    path.write_bytes(DATA + b"!")
    cli("weights", "verify", path).fails(4, "copy.pth", "on no card")
    cli("weights", "verify", tmp_path / "absent.pth").fails(4, "absent.pth", "no such file")
    cli("weights", "verify", "--sha256", "0" * 64).fails(2, "one PATH")


def test_several_faults_are_one_line(cli, tiny, tmp_path):
    (tmp_path / "a").write_text("")
    result = cli("weights", "verify", tmp_path / "a", tmp_path / "b")
    result.fails(4, str(tmp_path / "a"), str(tmp_path / "b"))
    assert result.out.count("FAIL") == 2


def test_convert_refuses(cli, tmp_path):
    source = tmp_path / "page.pth"
    source.write_text("<!DOCTYPE html><title>Please log in</title>")
    cli("weights", "convert", source, "-o", tmp_path / "new.safetensors").fails(4, "page.pth")
    cli("weights", "convert", tmp_path / "absent.pth", "-o", tmp_path / "new.safetensors").fails(4, "absent.pth")
    cli("weights", "convert", source, "-o", tmp_path / "n.safetensors", "--classes", "a,,b").fails(2, "--classes")
    cli("weights", "convert", source).fails(2, "--output")
    cli("weights", "convert", source, "-o", source, "--overwrite").fails(5, "this run reads it")
    assert [path.name for path in tmp_path.iterdir()] == ["page.pth"]


@pytest.mark.slow
def test_convert(cli, tmp_path):
    """A file with SAM ViT-B's names and shapes, all zeros, that share one number's memory: small to write."""
    import torch
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in sam_model_registry["vit_b"]().state_dict().items()}
    source, target = tmp_path / "sam.pth", tmp_path / "sam.safetensors"
    torch.save({name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}, source)
    result = cli("weights", "convert", source, "-o", target)
    assert result.code == 0, result.err
    pairs = dict(line.split(maxsplit=1) for line in result.out.splitlines() if len(line.split(maxsplit=1)) == 2)
    assert pairs["backbone"] == "sam-vit-b"
    assert pairs["layout"] == "sam"
    assert pairs["written"] == str(target)
    assert pairs["sha256"] == hashlib.sha256(target.read_bytes()).hexdigest()
    cli("weights", "convert", source, "-o", target).fails(5, "exists")
    target.unlink()


@pytest.mark.parametrize("arguments", [[], ["list", "--help"], ["list"], ["convert", "--help"], ["fetch", "--help"]])
def test_help_and_list_load_no_torch(arguments, tmp_path):
    program = (
        f"import sys; sys.path.insert(0, {ROOT!r}); from rsgeoseg.cli.weights import weights_app;"
        f"weights_app({arguments!r}, standalone_mode=False);"
        "print('LOADED', [n for n in ('torch', 'rich', 'numpy', 'safetensors') if n in sys.modules])"
    )
    environment = os.environ | {cache.FOLDER: str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    assert "LOADED []" in done.stdout
