import pytest


class Result:
    """What a command left: exit code, stdout, stderr."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def fails(self, code, *words):
        """Check for this exit code and one error line with these words."""
        assert self.code == code, self.err
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, self.err
        assert "Traceback" not in self.err
        for word in words:
            assert word in errors[0]
        return errors[0]


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Run a command in this process, with an oracle in place of every model."""
    from rsgeoseg import registry
    from rsgeoseg.cli.main import invoke
    from rsgeoseg.testing.oracle import OracleSegmenter, oracle_spec

    oracle = OracleSegmenter(spec=oracle_spec(["storage tank", "ship", "bridge"], chip_size=96, overlap=16))
    monkeypatch.setattr(registry, "load_model", lambda name, weights=None, device="auto": oracle)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capsys.readouterr()
        code = invoke([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run
