"""``rsgeoseg weights``: which weights are there? Fetch them, check them, convert those of others."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rsgeoseg.cli import common
from rsgeoseg.errors import UsageError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rsgeoseg.weights.cards import WeightsCard
    from rsgeoseg.weights.download import Progress
    from rsgeoseg.weights.published import PublishedCard

_NOTHING: tuple[Any, ...] = ("", None, [], (), {})

weights_app = typer.Typer(rich_markup_mode=None)


@weights_app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    """List, fetch, verify and convert weights."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@weights_app.command("list")
def list_weights(
    name: Annotated[str | None, typer.Argument(metavar="[ID]", help="Show all about one file.")] = None,
    as_json: common.Json = False,
) -> None:
    """List bundled and public weights, or show all about one file."""
    cards = list(_cards().values()) if name is None else [_find(name)]
    values = [_to_dict(card) for card in cards]
    if as_json:
        common.print_json(values if name is None else values[0])
    elif name is not None:
        settings = values[0].pop("settings", {})
        common.print_pairs(
            (key, _in_words(value)) for key, value in (values[0] | settings).items() if value not in _NOTHING
        )
    else:
        header = ("id", "models", "backbone", "classes", "size", "licence", "state")
        common.print_table(header, [_row(card) for card in values])
        print("\n*: and limits of the training images; `rsgeoseg weights list ID` shows them, and how a file is used")


@weights_app.command()
def fetch(
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Public weights to fetch.")] = None,
    all_for: Annotated[str | None, typer.Option(metavar="MODEL", help="All public weights that serve a model.")] = None,
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="Web folder that holds the files under their names.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> None:
    """Fetch public weights into the cache; a broken download goes on where it stopped."""
    common.set_up(verbose=verbose, quiet=quiet)
    from rsgeoseg.weights import cache
    from rsgeoseg.weights.published import PublishedCard

    cards = [_find(name) for name in ids or ()]
    if all_for is not None:
        cards += _serving(all_for)
    if not cards:
        msg = "name the weights to fetch, or --all-for MODEL; `rsgeoseg weights list` lists them"
        raise UsageError(msg)
    for card in cards:
        if isinstance(card, PublishedCard):
            with _bytes_bar(card.id, quiet=quiet) as progress:
                path = cache.fetch(card, mirror=mirror, offline=offline or None, progress=progress)
        else:
            path = card.path
        if not quiet:
            print(f"{card.id}  {path}")


@weights_app.command()
def verify(
    targets: Annotated[list[str] | None, typer.Argument(metavar="ID|PATH", help="Default: all that are here.")] = None,
    sha256: Annotated[str | None, typer.Option(metavar="DIGEST", help="Digest that the file PATH must have.")] = None,
    quiet: common.Quiet = False,
) -> None:
    """Read weights files whole and compare their digests with those on their cards.

    Exit code 0 when all are right, 4 otherwise.
    """
    common.set_up(quiet=quiet)
    if sha256 is not None and len(targets or ()) != 1:
        msg = "--sha256 is the digest of one file: give one PATH"
        raise UsageError(msg)
    wrong = []
    here = [name for name, card in _cards().items() if common.weights_state(card) in ("bundled", "cached")]
    for target in targets or here:
        try:
            line = f"ok    {target}  {_verify(target, sha256)}"
        except WeightsError as error:
            wrong.append(str(error))
            line = f"FAIL  {target}"
        if not quiet:
            print(line, flush=True)
    if wrong:
        raise WeightsError("; ".join(wrong))


@weights_app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="File of SAM, SAM 2 or RSPrompter in a known layout.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="TARGET", help="New .safetensors file.")],
    classes: Annotated[
        str | None, typer.Option(metavar="A,B", help="Class names, in the order of the network's outputs.")
    ] = None,
    lora_alpha: Annotated[
        float | None, typer.Option(metavar="A", help="Scale of LoRA adapters; default: twice their rank.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> None:
    """Convert a weights file of others into safetensors; nothing in the file is run."""
    common.set_up(verbose=verbose, quiet=quiet)
    from rsgeoseg.geo.inputs import refuse_replacing
    from rsgeoseg.weights.convert import convert as convert_file

    refuse_replacing([output], [source])
    names = None if classes is None else [name.strip() for name in classes.split(",")]
    if names is not None and not all(names):
        msg = f"--classes {classes!r} holds an empty name; write A,B,C"
        raise UsageError(msg)
    report = convert_file(source, output, classes=names, overwrite=overwrite, lora_alpha=lora_alpha)
    if not quiet:
        found = {key: value for key, value in report.description.items() if key not in ("config", "origin")}
        found |= report.description.get("config", {})
        common.print_pairs(
            [
                ("container", report.container),
                *((key, _in_words(value)) for key, value in found.items()),
                ("tensors", report.tensors),
                ("sha256", report.digest),
                ("written", report.target),
            ]
        )


def _cards() -> dict[str, WeightsCard | PublishedCard]:
    """Return all cards by id, the bundled first."""
    from rsgeoseg.weights.cards import bundled_cards
    from rsgeoseg.weights.published import published_cards

    cards: list[WeightsCard | PublishedCard] = [*bundled_cards(), *published_cards()]
    return {card.id: card for card in cards}


def _find(name: str) -> WeightsCard | PublishedCard:
    cards = _cards()
    if name not in cards:
        msg = f"weights {name!r} are unknown; known: {', '.join(cards)}"
        raise WeightsError(msg)
    return cards[name]


def _serving(model: str) -> list[PublishedCard]:
    from rsgeoseg.weights.published import published_cards

    found = [card for card in published_cards() if model.replace("_", "-") in card.models]
    if not found:
        known = dict.fromkeys(name for card in published_cards() for name in card.models)
        msg = f"no public weights serve {model!r}; some serve {', '.join(known)}"
        raise WeightsError(msg)
    return found


def _path(card: WeightsCard | PublishedCard) -> Path:
    from rsgeoseg.weights import cache
    from rsgeoseg.weights.published import PublishedCard

    return cache.cached_path(card) if isinstance(card, PublishedCard) else card.path


def _to_dict(card: WeightsCard | PublishedCard) -> dict[str, Any]:
    """Return the JSON form: bundled and public cards with the same leading fields."""
    values = card.to_dict()
    models = values.pop("models", None) or [values.pop("model")]
    return {"id": card.id, "models": models, **values, "state": common.weights_state(card), "path": str(_path(card))}


def _row(card: dict[str, Any]) -> tuple[str, ...]:
    classes, licence = card["classes"], card["licence"]
    short = licence.split()[0].rstrip(";")
    return (
        card["id"],
        ", ".join(card["models"]),
        card["backbone"],
        ", ".join(classes) if len(classes) < 3 else f"{len(classes)} classes",
        common.human_bytes(card["bytes"]),
        short if short == licence else f"{short} *",
        card["state"],
    )


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(item)}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _verify(target: str, sha256: str | None) -> Path:
    """Check one file, and return where it is."""
    from rsgeoseg.weights import cache
    from rsgeoseg.weights.published import PublishedCard

    cards = _cards()
    card = cards.get(target)
    if isinstance(card, PublishedCard) and sha256 is None:
        cache.verify(card)
        return _path(card)
    path = Path(target) if card is None else _path(card)
    if not path.is_file():
        msg = f"{target}: no such file, nor an id that `rsgeoseg weights list` lists"
        raise WeightsError(msg)
    wanted = sha256 or (card.sha256 if card is not None else None)
    found = _digest(path)
    if wanted is None and found not in {known.sha256 for known in cards.values()}:
        msg = f"{path}: sha256 is {found}, which is on no card; it is damaged or of another source (give --sha256)"
        raise WeightsError(msg)
    if wanted is not None and found != wanted.strip().lower():
        msg = f"{path}: sha256 is {found}, expected {wanted}; it is damaged or another file"
        raise WeightsError(msg)
    return path


def _digest(path: Path) -> str:
    from rsgeoseg.weights.download import sha256_of

    try:
        return sha256_of(path)
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})"
        raise WeightsError(msg) from error


@contextmanager
def _bytes_bar(what: str, *, quiet: bool) -> Iterator[Progress | None]:
    """Yield a callback that shows bytes, rate and time left, on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        before: int | None = None

        def show(done: int, total: int) -> None:
            nonlocal before
            if before is None or done < before:  # bytes of an earlier attempt say nothing about the rate
                progress.reset(task, completed=done, total=total)
            else:
                progress.update(task, completed=done)
            before = done

        yield show
