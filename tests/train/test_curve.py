"""The table of a curve: rows at once, and none twice after an interruption."""

from rsgeoseg.train.curve import Curve


def test_rows_after_the_step_that_it_goes_on_from_are_dropped(tmp_path):
    curve = Curve(tmp_path / "c.csv")
    for step in (1, 2, 3, 4):
        curve.add(step, {"loss": step / 2, "lr": 1})
    whole = (tmp_path / "c.csv").read_text()
    again = Curve(tmp_path / "c.csv")
    again.cut(2)
    assert [row["step"] for row in again.rows()] == ["1", "2"]
    for step in (3, 4):
        again.add(step, {"lr": 1, "loss": step / 2})  # columns stay where they are
    assert (tmp_path / "c.csv").read_text() == whole


def test_a_torn_last_line_does_not_count(tmp_path):
    curve = Curve(tmp_path / "c.csv", ("a", "b"))
    curve.add(1, {"a": 1, "b": 2})
    curve.add(2, {"a": 3, "b": 4})
    text = (tmp_path / "c.csv").read_text()
    (tmp_path / "c.csv").write_text(text[: text.rindex(",")])
    assert [row["step"] for row in curve.rows()] == ["1"]


def test_nothing_written_yet(tmp_path):
    curve = Curve(tmp_path / "c.csv", ("a",))
    curve.cut(5)
    assert curve.rows() == []
    curve.cut(0)
    curve.add(1, {"a": 1})
    curve.cut(0)
    assert curve.rows() == []
    curve.add(1, {"a": 2})
    assert curve.rows() == [{"step": "1", "a": "2"}]
