"""The settings: defaults that need no server, and errors that name the variable."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from store.errors import SettingsError
from store.settings import PREFIX, Settings, read_settings


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


class TestDefaults:
    def test_everything_lies_in_home(self, monkeypatch, tmp_path: Path):
        monkeypatch.chdir(tmp_path)
        settings = read_settings()
        home = tmp_path / ".hifi"
        assert settings.home == home
        assert settings.database_url == f"sqlite:///{home}/hifi.db"
        assert settings.artifacts_url == str(home / "artifacts")
        assert settings.models == home / "models"
        assert settings.is_embedded
        assert not home.exists()

    def test_home_moves_every_default_location(self, monkeypatch, tmp_path: Path):
        monkeypatch.setenv("HIFI_HOME", str(tmp_path / "here"))
        monkeypatch.setenv("HIFI_MODELS", "/models")
        settings = read_settings()
        assert settings.artifacts_url == str(tmp_path / "here" / "artifacts")
        assert settings.models == Path("/models")

    def test_an_empty_variable_is_one_that_is_unset(self, monkeypatch):
        monkeypatch.setenv("HIFI_DATABASE_URL", "")
        monkeypatch.setenv("HIFI_PORT", "")
        assert read_settings().database_url.startswith("sqlite:///")
        assert read_settings().port == 8000

    def test_a_broker_elsewhere_is_not_embedded(self, monkeypatch):
        monkeypatch.setenv("HIFI_BROKER_URL", "redis://127.0.0.1:6379/0")
        assert not read_settings().is_embedded


class TestValues:
    @pytest.mark.parametrize(
        ("value", "hosts"),
        [("a.example", ("a.example",)), ("a.example, b.example,", ("a.example", "b.example"))],
    )
    def test_hosts_are_separated_by_commas(self, value, hosts, monkeypatch):
        monkeypatch.setenv("HIFI_ALLOWED_HOSTS", value)
        assert read_settings().allowed_hosts == hosts

    def test_secrets_do_not_show(self, monkeypatch):
        monkeypatch.setenv("HIFI_INFER_TOKEN", "hunter2")
        settings = read_settings()
        assert "hunter2" not in repr(settings)
        monkeypatch.setenv("HIFI_DATABASE_URL", "postgresql://hifi:hunter2@db/hifi")
        monkeypatch.setenv("HIFI_BROKER_URL", "redis://:hunter2@broker")
        assert "hunter2" not in repr(read_settings())
        assert settings.infer_token is not None
        assert settings.infer_token.get_secret_value() == "hunter2"

    @pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:3"])
    def test_devices(self, device, monkeypatch):
        monkeypatch.setenv("HIFI_DEVICE", device)
        assert read_settings().device == device


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "value", "named"),
        [
            ("PORT", "x", "HIFI_PORT='x': a whole number"),
            ("PORT", "65536", "HIFI_PORT='65536': .*65535"),
            ("LEASE_SECONDS", "x", "HIFI_LEASE_SECONDS='x': a number"),
            ("LEASE_SECONDS", "0", "HIFI_LEASE_SECONDS='0': .*greater than 0"),
            ("LEASE_SECONDS", "inf", "HIFI_LEASE_SECONDS='inf': .*finite"),
            ("MAX_UPLOAD_BYTES", "-1", "HIFI_MAX_UPLOAD_BYTES='-1'"),
            ("AUTH", "open", "HIFI_AUTH='open': .*'none' or 'keys'"),
            ("DEVICE", "tpu", "HIFI_DEVICE='tpu': auto, cpu, cuda or cuda:N"),
            ("ALLOW_HUB", "maybe", "HIFI_ALLOW_HUB='maybe': .*boolean"),
            ("LOG_FORMAT", "xml", "HIFI_LOG_FORMAT='xml'"),
        ],
    )
    def test_name_the_variable_its_value_and_the_limit(self, name, value, named, monkeypatch):
        monkeypatch.setenv(PREFIX + name, value)
        with pytest.raises(SettingsError, match=named):
            read_settings()

    @pytest.mark.parametrize("name", ["DATABASE_URL", "BROKER_URL"])
    def test_an_address_is_refused_without_showing_its_password(self, name, monkeypatch):
        monkeypatch.setenv(PREFIX + name, "mysql://hifi:hunter2@db/hifi")
        with pytest.raises(SettingsError, match=f"^HIFI_{name}: ") as caught:
            read_settings()
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "value", "named"),
        [
            ("HOME", "~stranger/x", "home of an unknown user"),
            ("MODELS", "~stranger/x", "home of an unknown user"),
            ("ALLOWED_HOSTS", " , ", "HIFI_ALLOWED_HOSTS"),
            ("INFER_URL", "http://192.0.2.1:8001", "HIFI_INFER_TOKEN"),
        ],
    )
    def test_settings_that_cannot_be_used(self, name, value, named, monkeypatch):
        monkeypatch.setenv(PREFIX + name, value)
        with pytest.raises(SettingsError, match=named):
            read_settings()

    def test_a_remote_inference_process_requires_a_token(self, monkeypatch):
        monkeypatch.setenv("HIFI_INFER_URL", "http://192.0.2.1:8001")
        monkeypatch.setenv("HIFI_INFER_TOKEN", "secret")
        assert read_settings().infer_url == "http://192.0.2.1:8001"
        monkeypatch.delenv("HIFI_INFER_TOKEN")
        monkeypatch.setenv("HIFI_INFER_URL", "unix:///run/hifi.sock")
        assert read_settings().infer_url == "unix:///run/hifi.sock"

    def test_all_are_reported_at_once(self, monkeypatch):
        monkeypatch.setenv("HIFI_PORT", "x")
        monkeypatch.setenv("HIFI_AUTH", "open")
        with pytest.raises(SettingsError, match=r"HIFI_AUTH=.*; HIFI_PORT="):
            read_settings()

    @pytest.mark.parametrize("host", ["192.0.2.1", "::", "gpu-1.example"])
    def test_a_server_open_to_others_requires_keys(self, host, monkeypatch):
        monkeypatch.setenv("HIFI_HOST", host)
        with pytest.raises(SettingsError, match=f"HIFI_HOST={host} .*HIFI_AUTH=keys"):
            read_settings()
        monkeypatch.setenv("HIFI_AUTH", "keys")
        assert read_settings().host == host

    def test_settings_cannot_be_changed(self):
        with pytest.raises(ValueError, match="frozen"):
            Settings().port = 1


class TestInferenceProcesses:
    ONE, TWO = "http://127.0.0.1:8001", "unix:///run/a.sock"

    def test_are_separated_by_commas(self):
        assert Settings(infer_url=f"{self.ONE}, {self.TWO},").infer_urls == (self.ONE, self.TWO)

    def test_one_listens_where_it_is_asked(self):
        assert Settings(infer_url=self.TWO).own_infer_url() == self.TWO

    def test_listens_where_it_is_told(self):
        settings = Settings(infer_url=f"{self.ONE},{self.TWO}", infer_listen=self.TWO)
        assert settings.own_infer_url() == self.TWO

    def test_of_several_each_must_be_told(self):
        settings = Settings(infer_url=f"{self.ONE},{self.TWO}")
        with pytest.raises(SettingsError, match="names 2 inference processes: set HIFI"):
            settings.own_infer_url()

    @pytest.mark.parametrize(
        ("url", "fault"),
        [
            (f"{ONE},{ONE}", f"names {ONE} twice"),
            (",", "names no process"),
            (f"{ONE},http://192.0.2.1:8001", "HIFI_INFER_URL=http://192.0.2.1:8001 accepts"),
        ],
    )
    def test_are_refused(self, monkeypatch: pytest.MonkeyPatch, url: str, fault: str):
        monkeypatch.setenv("HIFI_INFER_URL", url)
        with pytest.raises(SettingsError, match=re.escape(fault)):
            read_settings()

    def test_listening_for_other_machines_needs_a_token(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("HIFI_INFER_LISTEN", "http://0.0.0.0:8001")
        with pytest.raises(SettingsError, match=r"HIFI_INFER_LISTEN=.*8001 accepts"):
            read_settings()
        monkeypatch.setenv("HIFI_INFER_TOKEN", "secret")
        assert read_settings().own_infer_url() == "http://0.0.0.0:8001"
