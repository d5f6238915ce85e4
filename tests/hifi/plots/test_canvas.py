"""hifi.plots.canvas: files of pictures; every kind of picture is written once."""

from __future__ import annotations

import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest

from hifi import plots
from hifi.errors import InvalidArgumentError, StorageError
from hifi.plots.canvas import check_ending
from tests.hifi.plots.made import budget_document, selection
from tests.hifi.plots.test_curves import EVENTS
from tests.hifi.plots.test_result_bars import JOB
from tests.hifi.plots.test_spectra import SHARES
from tests.root import ROOT

BEGINNINGS = {".pdf": b"%PDF-", ".png": b"\x89PNG", ".svg": b"<?xml"}
PICTURES = {
    "scores": lambda: plots.scores(budget_document()),
    "importance": lambda: plots.importance(selection()),
    "richness": lambda: plots.richness(selection()),
    "correlation": lambda: plots.correlation(selection(), layer=0),
    "correlations": lambda: plots.correlations(selection()),
    "overview": lambda: plots.overview(budget_document()),
    "singular_values": lambda: plots.singular_values(SHARES),
    "losses": lambda: plots.losses(EVENTS),
    "validation": lambda: plots.validation(EVENTS),
    "yardsticks": lambda: plots.yardsticks(JOB),
}


class TestSave:
    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("name", PICTURES)
    def test_writes_every_picture(self, name, tmp_path):
        path = tmp_path / f"{name}.png"
        plots.save(PICTURES[name](), path)
        pixels = mpl.image.imread(path)
        assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 20

    def test_every_picture_is_listed_above(self):
        assert set(PICTURES) == set(plots.__all__) - {"ENDINGS", "check_ending", "save"}

    @pytest.mark.parametrize("ending", plots.ENDINGS)
    def test_equal_pictures_give_equal_files(self, ending, tmp_path):
        files = [tmp_path / f"{number}{ending}" for number in range(2)]
        for path in files:
            plots.save(plots.overview(selection()), path)
        first, second = (path.read_bytes() for path in files)
        assert first == second
        assert first.startswith(BEGINNINGS[ending])
        assert b"Date" not in first

    def test_leaves_the_settings_of_matplotlib_alone(self, tmp_path):
        before = dict(mpl.rcParams)
        plots.save(plots.importance(selection()), tmp_path / "map.SVG")
        assert dict(mpl.rcParams) == before

    @pytest.mark.parametrize("name", ["map.jpg", "map", ".png", "png", ""])
    def test_refuses_another_ending(self, name, tmp_path):
        with pytest.raises(InvalidArgumentError, match=r"path=.*ends with \.pdf, \.png or \.svg"):
            plots.save(plots.importance(selection()), tmp_path / name if name else name)
        assert not list(tmp_path.iterdir())

    def test_names_a_folder_that_is_missing(self, tmp_path):
        path = tmp_path / "missing" / "map.png"
        with pytest.raises(StorageError, match=r"map\.png: No such file or directory"):
            plots.save(plots.importance(selection()), path)

    @pytest.mark.parametrize("drawn", [3, None, "map"])
    def test_refuses_what_is_no_picture(self, drawn, tmp_path):
        with pytest.raises(InvalidArgumentError, match=r"^drawn=.*a Figure, or Axes of one"):
            plots.save(drawn, tmp_path / "map.png")
        assert not list(tmp_path.iterdir())

    def test_refuses_axes_without_a_figure(self, tmp_path):
        axes = plots.importance(selection())
        axes.remove()
        with pytest.raises(InvalidArgumentError, match="axes of a figure"):
            plots.save(axes, tmp_path / "map.png")


class TestCheckEnding:
    def test_ignores_the_case(self):
        assert check_ending("a/MAP.Png") == ".png"

    def test_names_the_callers_argument(self):
        with pytest.raises(InvalidArgumentError, match=r"plot='map\.gif'"):
            check_ending("map.gif", param="plot")


@pytest.mark.process
class TestImports:
    def run(self, code):
        return subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )

    def test_nothing_touches_the_global_state_of_pyplot(self, tmp_path):
        done = self.run(
            "import sys; from hifi import plots; from tests.hifi.plots.made import selection; "
            f"plots.save(plots.overview(selection()), {str(tmp_path / 'map.png')!r}); "
            "sys.exit('matplotlib.pyplot' in sys.modules)"
        )
        assert done.returncode == 0, done.stderr

    def test_without_matplotlib_names_the_extra(self):
        done = self.run(
            "import sys; sys.modules['matplotlib'] = None\n"
            "from hifi.errors import HifiError\n"
            "try:\n    import hifi.plots\n"
            "except ImportError as error:\n    print(isinstance(error, HifiError), error)"
        )
        assert done.stdout == (
            "True hifi.plots needs matplotlib, which is not installed; pip install 'hifi[plots]'\n"
        ), done.stderr

    def test_another_missing_package_keeps_its_own_error(self):
        done = self.run("import sys; sys.modules['numpy'] = None; import hifi.plots")
        assert "import of numpy halted" in done.stderr.splitlines()[-1]

    def test_loads_no_training(self):
        code = "import sys, hifi.plots; print('hifi.training.finetuning' in sys.modules)"
        assert self.run(code).stdout == "False\n"
