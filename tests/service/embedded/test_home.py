"""service.embedded.home: one service per folder, and a socket that fits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from service.embedded.home import HomeError, choose_infer_url, make_home, own_home
from tests.root import ROOT

HOLD = (
    "import sys, pathlib; from service.embedded.home import own_home\n"
    "with own_home(pathlib.Path(sys.argv[1])):\n"
    "    print('held', flush=True); sys.stdin.read()"
)


class TestOwnHome:
    def test_makes_a_folder_that_is_private(self, tmp_path):
        home = tmp_path / "a" / "b"
        with own_home(home) as is_left_over:
            assert not is_left_over
        assert home.stat().st_mode & 0o777 == 0o700

    def test_refuses_a_second_service_and_names_the_first(self, tmp_path):
        with (
            own_home(tmp_path),
            pytest.raises(HomeError, match=f"by process {os.getpid()}"),
            own_home(tmp_path),
        ):
            pytest.fail("entered")

    def test_another_folder_is_free(self, tmp_path):
        with own_home(tmp_path / "a"), own_home(tmp_path / "b"):
            pass

    def test_is_free_again_after_an_end_and_after_an_error(self, tmp_path):
        with pytest.raises(KeyError), own_home(tmp_path):
            raise KeyError
        with own_home(tmp_path) as is_left_over:
            assert not is_left_over

    @pytest.mark.process
    def test_is_free_after_its_owner_was_killed_and_logs_it(self, tmp_path):
        command = [sys.executable, "-c", HOLD, str(tmp_path)]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(HomeError, match=f"by process {process.pid}"), own_home(tmp_path):
            pytest.fail("entered")
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with own_home(tmp_path) as is_left_over:
            assert is_left_over

    def test_a_folder_that_cannot_be_created_is_reported(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(HomeError, match="HIFI_HOME"):
            make_home(tmp_path / "file" / "home")


class TestChooseInferUrl:
    def test_is_a_socket_in_the_folder(self, tmp_path):
        assert choose_infer_url(tmp_path) == f"unix://{tmp_path}/infer.sock"

    def test_is_a_valid_url_for_any_folder_name(self):
        url = choose_infer_url(Path("/home/me/50% of #1?"))
        assert unquote(urlsplit(url).path) == "/home/me/50% of #1?/infer.sock"

    @pytest.mark.parametrize(("letters", "scheme"), [(107, "unix"), (108, "http")])
    def test_is_a_port_where_the_path_is_too_long(self, letters, scheme):
        home = Path("/" + "x" * (letters - len("//infer.sock")))
        assert len(str(home / "infer.sock")) == letters
        url = choose_infer_url(home)
        assert url.startswith(f"{scheme}://")
        assert scheme == "unix" or url.startswith("http://127.0.0.1:")
