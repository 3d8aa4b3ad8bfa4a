"""A map of polygons against the true one, with what is known of the scene behind it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rsgeoseg.engine.map_ground import bare_ground, map_ground
from rsgeoseg.errors import UsageError
from rsgeoseg.evaluate.cases import map_cases
from rsgeoseg.evaluate.comparison import compare_map
from rsgeoseg.evaluate.evidence import Evidence
from rsgeoseg.evaluate.map_objects import pair_maps, read_map
from rsgeoseg.evaluate.polygons import PolygonResult, compare_maps

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rsgeoseg.engine.map_ground import MapGround
    from rsgeoseg.evaluate.map_objects import MapObjects
    from rsgeoseg.evaluate.worst_cases import Case


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ScoredMap:
    """How good a map is."""

    result: PolygonResult
    evidence: Evidence
    """Usable as long as ``scored_map`` is open: its pictures are read from the scene."""
    seams_from: str | None
    """Where the seam strips are known from; None = they are not."""


@contextmanager
def scored_map(
    truth: Path,
    result: Path,
    *,
    class_aware: bool = True,
    class_column: str | None = None,
    score_column: str | None = None,
    scene: Path | None = None,
    chip_size: int | None = None,
    overlap: int | None = None,
) -> Iterator[ScoredMap]:
    """Score a vector file against the true one.

    Args:
        truth: vector file of the true objects.
        result: vector file of the found objects.
        class_aware: match within a class only; else all are one class.
        class_column: column of class names where it is not ``class_name``.
        score_column: column of scores where it is not ``score``.
        scene: the raster behind the map; None = as the run record beside ``result`` says, where there is one.
        chip_size: side of the chips that the map was made from, pixels of the scene; None = as the record says.
        overlap: of those chips; None = as the record says.

    Raises:
        UsageError: a file or column that cannot be used, or no class that both have.
        SceneError: ``scene`` cannot be opened.
    """
    true, found = pair_maps(
        read_map(truth, "truth", class_column=class_column),
        read_map(result, "result", class_column=class_column, score_column=score_column),
        class_aware=class_aware,
        class_column=class_column,
    )
    _check_classes(true, found, result)
    with map_ground(result, scene=scene, chip_size=chip_size, overlap=overlap) as ground:
        strips = None if ground is None else ground.strips(true.crs)
        area = None if ground is None or ground.grid.crs is None else ground.area()
        yield ScoredMap(
            result=compare_maps(true, found, strips=strips, area=area),
            evidence=_evidence(result.name, true, found, ground),
            seams_from=None if ground is None or strips is None else ground.source,
        )


def _evidence(name: str, true: MapObjects, found: MapObjects, ground: MapGround | None) -> Evidence:
    assert true.classes is not None
    assert found.classes is not None
    classes = tuple(sorted(set(true.classes.tolist()) | set(found.classes.tolist())))
    comparison = compare_map(name, true, found, classes)
    drawn = bare_ground(np.concatenate([true.shapes, found.shapes])) if ground is None else ground
    crs = None if ground is None else true.crs

    def cases(score: float) -> list[Case]:
        return map_cases(
            comparison,
            drawn.to_pixels(true.shapes, crs),
            drawn.to_pixels(found.shapes, crs),
            size=(drawn.grid.width, drawn.grid.height),
            score=score,
            read=None if drawn.scene is None else drawn.read,
        )

    return Evidence(title=f"How good is {name}?", classes=classes, comparisons=[comparison], cases=cases)


def _check_classes(true: MapObjects, found: MapObjects, result: Path) -> None:
    """Refuse two maps that speak of different things."""
    assert true.classes is not None
    assert found.classes is not None
    mine, theirs = sorted(set(true.classes.tolist())), sorted(set(found.classes.tolist()))
    if mine and theirs and not set(mine) & set(theirs):
        known, wanted = ", ".join(theirs[:10]), ", ".join(mine[:10])
        msg = (
            f"{result} has no class of the truth: it has {known}; the truth has {wanted}: "
            "name the column of classes by --class-column, or ignore classes with --class-agnostic"
        )
        raise UsageError(msg)
