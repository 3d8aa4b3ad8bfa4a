"""Options of a training: presets, YAML, command line; what is refused and how."""

import dataclasses

import pytest
from typer.testing import CliRunner

from rsgeoseg.cli.main import build_app
from rsgeoseg.errors import ModelError, UsageError
from rsgeoseg.train.config import TrainConfig, config_from, read_yaml, to_yaml
from rsgeoseg.train.network import build_network
from rsgeoseg.train.presets import PRESETS, find_preset

DATA = {"images": "i", "annotations": "a.json"}


def show(*arguments):
    result = CliRunner().invoke(build_app(), ["train", *arguments, "--show-config"])
    assert result.exit_code == 0, result.output
    return result.output


def test_yaml_round_trip(tmp_path):
    config = TrainConfig(scenes=("a.tif", "b.tif"), polygons="p.gpkg", lr=1e-4, model_options={"num_queries": 30})
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(config))
    assert config_from(read_yaml(path)) == config


def test_yaml_reads_what_people_write(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("images: i\nannotations: a.json\nlr: 1e-4\nbatch-size: 8\nscale: [0.1, 2]\nfreeze_encoder: true\n")
    config = config_from(read_yaml(path))
    assert (config.lr, config.batch_size, config.scale, config.freeze_encoder) == (1e-4, 8, (0.1, 2.0), True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lernrate: 1", "no option lernrate"),
        ("lr: fast", "lr of a training must be float"),
        ("batch_size: 2.5", "batch_size of a training must be int"),
        ("freeze_encoder: 3", "freeze_encoder of a training must be bool"),
        ("symmetries: some", "symmetries"),
        ("scale: [2, 1]", "smaller first"),
        ("crop: 100", "multiple of 64"),
        ("epochs: -1", "positive number of epochs"),
        ("{steps: 3, epochs: 1}", "either steps or"),
        ("{batch_size: 3, devices: 2}", "cannot be shared"),
        ("cache_features: 2", "freeze_encoder"),
        ("dataset: ssdd", "one of: IMAGES ANNOTATIONS"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, text, says):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        config_from(DATA | read_yaml(path))


@pytest.mark.parametrize("text", ["- a\n- b", "a: [", ""])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"c\.yaml"):
        read_yaml(tmp_path / "c.yaml")
    with pytest.raises(UsageError, match=r"none\.yaml"):
        read_yaml(tmp_path / "none.yaml")


def test_later_ones_win(tmp_path):
    """Defaults < preset < file < options."""
    path = tmp_path / "c.yaml"
    path.write_text("lr: 3e-4\nclip: 7\nmodel_options: {num_queries: 11}\n")
    text = show("i", "a.json", "--preset", "rsprompter-query-nwpu", "--config", str(path), "--lr", "5e-4")
    (tmp_path / "d.yaml").write_text(text)
    config = config_from(read_yaml(tmp_path / "d.yaml"))
    assert (config.lr, config.clip, config.warmup, config.seed) == (5e-4, 7.0, 50, 0)
    assert config.model_options == {"num_queries": 11}
    assert (config.epochs, config.steps) == (500, None)
    text = show("i", "a.json", "--preset", "rsprompter-query-nwpu", "--steps", "9", "--set", "num-queries=5")
    (tmp_path / "d.yaml").write_text(text)
    config = config_from(read_yaml(tmp_path / "d.yaml"))
    assert (config.epochs, config.steps, config.model_options["num_queries"]) == (None, 9, 5)


def test_nought_is_an_option_too(tmp_path):
    (tmp_path / "c.yaml").write_text(
        show("i", "a.json", "--clip", "0", "--mosaic", "0", "--average", "0", "--bands", "3,2,1")
    )
    config = config_from(read_yaml(tmp_path / "c.yaml"))
    assert (config.clip, config.mosaic, config.average, config.bands) == (0, 0, 0, (3, 2, 1))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_training(name):
    config = config_from(DATA | find_preset(name).values)
    assert config.model in name or name.startswith("lite")
    assert find_preset(name).notes


@pytest.mark.parametrize(
    ("name", "epochs", "queries"),
    [("rsprompter-query-whu", 300, 100), ("rsprompter-query-nwpu", 500, 70), ("rsprompter-query-ssdd", 500, 30)],
)
def test_the_papers_numbers(name, epochs, queries):
    """Section IV-C: epochs, N_p, K_p, rate, batch, size."""
    config = config_from(DATA | find_preset(name).values)
    assert (config.epochs, config.lr, config.batch_size, config.crop) == (epochs, 1e-4, 16, 1024)
    assert config.model_options == {"num_queries": queries, "prompts_per_query": 5}
    assert (config.backbone, config.encoder_is_frozen) == ("sam-vit-h", True)
    # 416 images, 16 a step
    assert config.total_steps(416) == epochs * 26


def test_options_reach_network_and_loss():
    config = TrainConfig(**DATA, model_options={"num_queries": 7}, loss_options={"dice_weight": 0.0})
    network = build_network(config, ("a",))
    assert network.config.num_queries == 7
    assert network.loss_config.dice_weight == 0
    with pytest.raises(UsageError, match="no option layers"):
        build_network(dataclasses.replace(config, model_options={"layers": 2}), ("a",))
    with pytest.raises(UsageError, match="loss of rsprompter-query has no option x"):
        build_network(dataclasses.replace(config, loss_options={"x": 2}), ("a",))


def test_unknown_names():
    with pytest.raises(UsageError, match="lite-few"):
        find_preset("best")
    with pytest.raises(ModelError, match="rsprompter-query"):
        TrainConfig(**DATA, model="yolo")


def test_presets_are_listed_with_their_notes():
    result = CliRunner().invoke(build_app(), ["train", "--list-presets"])
    assert result.exit_code == 0
    assert "rsprompter-anchor-whu: " in result.output
    assert "paper" in result.output
