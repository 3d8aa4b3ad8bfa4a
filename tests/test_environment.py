"""environment.yml and pyproject.toml name the same packages with the same floors."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"torch": "pytorch", "opencv-python-headless": "py-opencv"}


def pyproject_requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted, found = [*project["dependencies"], *extras["test"]], {}
    for text in wanted:
        name, own, floor = re.fullmatch(r"([\w.\-]+)(?:\[([\w,]+)\])?(>=[\w.]+)?", text).groups()
        if name == "rsgeoseg":  # the package with extras of its own
            wanted += [line for extra in own.split(",") for line in extras[extra]]
        else:
            found[CONDA_NAMES.get(name, name)] = floor
    return found


def environment_requirements():
    found = {}
    for line in (ROOT / "environment.yml").read_text().splitlines():
        match = re.fullmatch(r"\s*- ([\w.\-]+)(>=[\w.]+)?", line)
        if match and match[1] not in ("conda-forge", "python", "pip"):
            found[match[1]] = match[2]
    return found


def test_environment_is_in_step_with_pyproject():
    assert environment_requirements() == pyproject_requirements()


def test_python_floor_is_the_same():
    floor = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert f"- python{floor}" in (ROOT / "environment.yml").read_text()
