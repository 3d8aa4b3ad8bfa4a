"""What the command line shows of a run while it works."""

import json

import pytest

from rsgeoseg.cli.progress import show_progress
from rsgeoseg.engine.events import ClusterStarted

STARTED = ClusterStarted(scheduler="tcp://127.0.0.1:5000", workers=2, dashboard="http://127.0.0.1:5001/status")


@pytest.mark.parametrize(
    ("style", "quiet", "shown"), [("auto", False, True), ("auto", True, False), ("none", False, False)]
)
def test_the_dashboard_has_a_line_of_its_own(style, quiet, shown, capsys):
    with show_progress(style, quiet=quiet) as tell:
        tell(STARTED)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == ("dashboard: http://127.0.0.1:5001/status\n" if shown else "")


def test_a_cluster_without_a_dashboard_shows_none(capsys):
    with show_progress("auto", quiet=False) as tell:
        tell(ClusterStarted(scheduler="tcp://10.0.0.5:8786", workers=2, dashboard=""))
    assert capsys.readouterr() == ("", "")


def test_json_has_the_event(capsys):
    with show_progress("json", quiet=False) as tell:
        tell(STARTED)
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "event": "cluster",
        "scheduler": "tcp://127.0.0.1:5000",
        "workers": 2,
        "dashboard": "http://127.0.0.1:5001/status",
    }
    assert err == ""
