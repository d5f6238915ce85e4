"""store.machine: what a process creates belongs to its user alone."""

from __future__ import annotations

import warnings

import pytest

from store.machine import make_private, private_files


def mode_of(path):
    return path.stat().st_mode & 0o777


class TestPrivateFiles:
    def test_files_and_folders_of_a_block_are_for_this_user(self, tmp_path):
        with private_files():
            (tmp_path / "a" / "b").mkdir(parents=True)
            (tmp_path / "a" / "file").write_bytes(b"")
        assert [mode_of(path) for path in sorted(tmp_path.rglob("*"))] == [0o700, 0o700, 0o600]

    def test_the_users_own_mask_holds_again_afterwards(self, tmp_path):
        before = tmp_path / "before"
        before.write_bytes(b"")
        with pytest.raises(KeyError), private_files():
            raise KeyError
        (tmp_path / "after").write_bytes(b"")
        assert mode_of(tmp_path / "after") == mode_of(before)


class TestMakePrivate:
    def test_a_new_folder_is_for_this_user(self, tmp_path):
        with warnings.catch_warnings(action="error"):
            make_private(tmp_path / "home")
            make_private(tmp_path / "home")
        assert mode_of(tmp_path / "home") == 0o700

    @pytest.mark.parametrize("mark", ["serve.lock", "hifi.db"])
    def test_a_home_that_was_open_is_closed(self, tmp_path, mark):
        tmp_path.chmod(0o755)
        (tmp_path / mark).write_bytes(b"")
        with pytest.warns(UserWarning, match=r"was open to other users \(0755\); now it is not"):
            make_private(tmp_path)
        assert mode_of(tmp_path) == 0o700

    def test_another_folder_stays_as_it_is_with_a_warning(self, tmp_path):
        tmp_path.chmod(0o750)
        with pytest.warns(UserWarning, match=rf"\(0750\).*chmod 700 {tmp_path}"):
            make_private(tmp_path)
        assert mode_of(tmp_path) == 0o750
