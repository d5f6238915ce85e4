"""docker-compose.yml and the Dockerfile: what can be seen of them without a Docker engine."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess

import pytest
import yaml

from hifi.cli import main
from service.health import CHECKS
from store.settings import PREFIX, Settings
from tests.root import ROOT

TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
ONE_SHOTS = {name for name, service in SERVICES.items() if service["restart"] == "no"}
LASTING = SERVICES.keys() - ONE_SHOTS
OURS = {name for name, service in SERVICES.items() if "HIFI_IMAGE" in service["image"]}
REQUIRED = {
    "POSTGRES_PASSWORD": "p" * 32,
    "REDIS_PASSWORD": "r" * 32,
    "S3_ACCESS_KEY": "hifi",
    "S3_SECRET_KEY": "s" * 32,
    "S3_ROOT_PASSWORD": "o" * 32,
    "INFER_TOKEN": "i" * 32,
    "HIFI_ALLOWED_HOSTS": "hifi.example.org,127.0.0.1",
}
_VARIABLE = re.compile(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}")
_SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|MC_HOST|REDISCLI_AUTH")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


USES = {  # what each of our processes may reach
    "migrate": {"tables"},
    "gateway": {"tables", "queue", "artifacts", "inference"},
    "worker": {"tables", "queue", "artifacts"},
    "inference": {"tables", "artifacts", "inference"},
}


def interpolate(text):
    """Fill in variables as compose does, from the required ones and the defaults."""

    def fill(found):
        name, mark, default = found.groups()
        if name in REQUIRED:
            return REQUIRED[name]
        assert mark == ":-", f"{name} has no default, and no test value"
        return default

    return _VARIABLE.sub(fill, text).replace("$$", "$")


def settings_of(service):
    """Return the environment of a service, variables filled in."""
    return {name: interpolate(str(value)) for name, value in service["environment"].items()}


def users_of(resource):
    """Return the names of our services that may reach something."""
    return {name for name in OURS if resource in USES[name.removesuffix("-gpu")]}


class TestServices:
    def test_are_those_of_the_design(self):
        assert SERVICES.keys() == {
            *("postgres", "redis", "storage-volume", "storage", "storage-bucket"),
            *("migrate", "gateway", "inference", "inference-gpu", "worker", "worker-gpu"),
        }
        assert {"storage-volume", "storage-bucket", "migrate"} == ONE_SHOTS
        assert {"migrate", "gateway", "inference", "inference-gpu", "worker", "worker-gpu"} == OURS

    @pytest.mark.parametrize("name", sorted(LASTING))
    def test_a_long_running_one_has_a_health_check_and_restarts(self, name):
        service = SERVICES[name]
        check = service["healthcheck"]
        assert check["test"][0] in ("CMD", "CMD-SHELL")
        assert check.keys() == {"test", "interval", "timeout", "start_period", "retries"}
        assert service["restart"] == "unless-stopped"

    @pytest.mark.parametrize("name", sorted(SERVICES))
    def test_none_has_rights_that_it_does_not_need(self, name):
        service = SERVICES[name]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service
        if name == "storage-volume":  # one chown
            assert service["cap_add"] == ["CHOWN"]
            assert service["network_mode"] == "none"
        else:
            assert "cap_add" not in service
            assert service["user"].partition(":")[0] not in ("root", "0")

    @pytest.mark.parametrize("name", sorted(OURS))
    def test_ours_write_to_their_volumes_alone(self, name):
        assert SERVICES[name]["read_only"] is True

    def test_the_gateway_alone_is_reached_from_outside_and_on_loopback(self):
        published = {
            name: service["ports"] for name, service in SERVICES.items() if "ports" in service
        }
        assert list(published) == ["gateway"]
        assert interpolate(published["gateway"][0]) == "127.0.0.1:8000:8000"
        assert COMPOSE["networks"]["inside"]["internal"] is True
        outside = [
            name for name, service in SERVICES.items() if "outside" in service.get("networks", [])
        ]
        assert outside == ["gateway"]

    def test_each_waits_for_what_it_needs(self):
        for name, service in SERVICES.items():
            for other, condition in service.get("depends_on", {}).items():
                kind = "service_completed_successfully" if other in ONE_SHOTS else "service_healthy"
                assert condition == {"condition": kind}, (name, other)
        for name in ("gateway", "worker", "worker-gpu"):
            assert SERVICES[name]["depends_on"].keys() == {"migrate", "storage-bucket", "redis"}
        for name in ("inference", "inference-gpu"):
            assert SERVICES[name]["depends_on"].keys() == {"migrate", "storage-bucket"}

    def test_every_volume_that_is_mounted_is_there_and_used(self):
        mounted = {
            source
            for service in SERVICES.values()
            for source in (volume.split(":")[0] for volume in service.get("volumes", ()))
            if re.fullmatch(r"[a-z-]+", source)
        }
        assert mounted == set(COMPOSE["volumes"])
        assert {"postgres-data", "storage-data"} <= mounted

    def test_images_of_others_have_a_version(self):
        for name in SERVICES.keys() - OURS:
            assert re.search(r":[\w.-]*\d", SERVICES[name]["image"]), name
            assert ":latest" not in SERVICES[name]["image"]

    def test_a_gpu_is_requested_for_services_that_use_one(self):
        (device,) = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
        assert SERVICES["worker-gpu"]["profiles"] == ["gpu"]
        assert SERVICES["worker"]["profiles"] == ["cpu"]

    def test_a_worker_has_time_to_hand_its_job_back(self):
        assert SERVICES["worker"]["stop_grace_period"] == "120s"


class TestLimits:
    @pytest.mark.parametrize("name", sorted(SERVICES))
    def test_each_has_limits_of_memory_processes_and_cpus(self, name):
        service = SERVICES[name]
        assert re.fullmatch(r"\d+[mg]", interpolate(str(service["mem_limit"])))
        assert float(interpolate(str(service["cpus"]))) > 0
        assert int(interpolate(str(service["pids_limit"]))) > 0

    @pytest.mark.parametrize("name", sorted(OURS - {"migrate"}))
    def test_those_of_our_processes_can_be_changed(self, name):
        for limit in ("mem_limit", "cpus", "pids_limit"):
            assert _VARIABLE.fullmatch(SERVICES[name][limit])

    @pytest.mark.parametrize("name", ["worker", "inference"])
    def test_as_many_threads_compute_as_there_are_cpus(self, name):
        threads = SERVICES[name]["environment"]["OMP_NUM_THREADS"]
        assert threads == SERVICES[name]["cpus"]

    @pytest.mark.parametrize("name", ["gateway", "inference", "worker"])
    def test_several_can_run(self, name):
        assert "container_name" not in SERVICES[name]
        assert all("${HIFI_PUBLISH" in port for port in SERVICES[name].get("ports", ()))


class TestSecrets:
    def test_have_no_default_anywhere(self):
        for name, mark, _ in _VARIABLE.findall(TEXT):
            if _SECRET.search(name) or name in REQUIRED:
                assert mark == ":?", f"${{{name}}} may be left out"

    def test_are_never_written_down(self):
        for name, service in SERVICES.items():
            for variable, value in service.get("environment", {}).items():
                if _SECRET.search(variable):
                    rest = _VARIABLE.sub("", str(value))
                    assert rest in ("", "http://storage-root:@storage:9000"), (name, variable)
        assert not re.search(r"://\w+:\w+@", _VARIABLE.sub("", TEXT))

    def test_no_process_gets_one_that_it_does_not_need(self):
        has = {
            "POSTGRES_PASSWORD": {"postgres", *users_of("tables")},
            "REDIS_PASSWORD": {"redis", *users_of("queue")},
            "S3_ROOT_PASSWORD": {"storage", "storage-bucket"},
            "S3_SECRET_KEY": {"storage-bucket", *users_of("artifacts")},
            "INFER_TOKEN": users_of("inference"),
        }
        for secret, services in has.items():
            holders = {
                name
                for name, service in SERVICES.items()
                if any(secret == found[0] for found in _VARIABLE.findall(yaml.dump(service)))
            }
            assert holders == services, secret

    def test_are_in_no_command(self):
        for name, service in SERVICES.items():
            words = " ".join(map(str, service.get("command", ())))
            assert not any(_SECRET.search(found[0]) for found in _VARIABLE.findall(words)), name


class TestStorageUser:
    def test_may_use_its_bucket_only(self):
        policy = json.loads(settings_of(SERVICES["storage-bucket"])["POLICY"])
        granted = {
            (action, resource)
            for statement in policy["Statement"]
            for action in statement["Action"]
            for resource in statement["Resource"]
        }
        assert all(
            resource in ("arn:aws:s3:::hifi", "arn:aws:s3:::hifi/*") for _, resource in granted
        )
        assert {f"s3:{verb}Object" for verb in ("Get", "Put", "Delete")} <= {
            action for action, resource in granted if resource.endswith("/*")
        }
        assert ("s3:ListBucket", "arn:aws:s3:::hifi") in granted

    @pytest.mark.process
    @pytest.mark.parametrize(
        ("answer", "code", "expected"),
        [("", 0, 0), ("mc: <ERROR> ... already in effect. ...", 1, 0), ("denied", 1, 1)],
    )
    def test_is_created_once_and_then_left(self, answer, code, expected, tmp_path):
        # mc of this test writes its arguments down, and answers only the last command.
        script = f"""#!/bin/sh
echo "$@" >> {tmp_path}/calls
case "$3" in attach) echo {shlex.quote(answer)} >&2; exit {code} ;; esac
"""
        (tmp_path / "mc").write_text(script)
        (tmp_path / "mc").chmod(0o755)
        service = SERVICES["storage-bucket"]
        (command,) = service["command"]
        environment = settings_of(service) | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        command = interpolate(command).replace("/tmp/policy.json", f"{tmp_path}/policy.json")  # noqa: S108
        done = subprocess.run(
            [*service["entrypoint"], command], env=environment, capture_output=True, check=False
        )
        assert done.returncode == expected, done.stderr
        assert (tmp_path / "calls").read_text().splitlines() == [
            "mb --ignore-existing storage/hifi",
            f"admin user add storage hifi {'s' * 32}",
            f"admin policy create storage hifi {tmp_path}/policy.json",
            "admin policy attach storage hifi --user hifi",
        ]
        assert json.loads((tmp_path / "policy.json").read_bytes())["Version"] == "2012-10-17"


class TestOurProcesses:
    @pytest.mark.parametrize("name", sorted(OURS))
    def test_their_commands_exist(self, name, capsys):
        command = SERVICES[name]["command"]
        assert main([*command, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: hifi {command[0]}")

    @pytest.mark.parametrize("name", sorted(OURS))
    def test_their_settings_exist_and_are_accepted(self, name, monkeypatch):
        environment = settings_of(SERVICES[name])
        for variable in list(os.environ):
            if variable.startswith(PREFIX):
                monkeypatch.delenv(variable)
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
            if variable.startswith(PREFIX):
                assert variable.removeprefix(PREFIX).lower() in Settings.model_fields
        settings = Settings()
        expected = USES[name.removesuffix("-gpu")]
        assert settings.database_url.startswith("postgresql://") == ("tables" in expected)
        assert settings.is_embedded == ("queue" not in expected)
        assert (settings.artifacts_url == "s3://hifi") == ("artifacts" in expected)
        assert (settings.infer_token is not None) == ("inference" in expected)

    def test_the_gateway_asks_for_keys(self):
        environment = settings_of(SERVICES["gateway"])
        assert (environment["HIFI_AUTH"], environment["HIFI_HOST"]) == ("keys", "0.0.0.0")  # noqa: S104

    @pytest.mark.parametrize("name", ["inference", "inference-gpu"])
    def test_the_gateway_finds_the_inference_process_where_it_listens(self, name):
        asked = settings_of(SERVICES["gateway"])
        listens = settings_of(SERVICES[name])
        networks = SERVICES[name]["networks"]
        assert name == "inference" or "inference" in networks["inside"]["aliases"]
        assert asked["HIFI_INFER_URL"] == "http://inference:8001"
        assert listens["HIFI_INFER_LISTEN"] == "http://0.0.0.0:8001"
        assert asked["HIFI_INFER_TOKEN"] == listens["HIFI_INFER_TOKEN"]

    @pytest.mark.parametrize("name", sorted(OURS - {"migrate"}))
    def test_their_health_is_looked_at_by_a_check_that_exists(self, name):
        words = SERVICES[name]["healthcheck"]["test"]
        assert words[:4] == ["CMD", "python", "-m", "service.health"]
        assert words[4] == name.removesuffix("-gpu")
        assert words[4] in CHECKS


class TestDockerfile:
    def test_runs_without_root(self):
        last = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[-1]
        assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
        assert re.search(r"^ENTRYPOINT \[\"hifi\"\]$", last, re.MULTILINE)

    def test_looks_at_its_health_by_a_check_that_exists(self):
        check = re.search(r'HEALTHCHECK .*"service.health", "(\w+)"\]', DOCKERFILE)
        assert check[1] in CHECKS

    def test_its_command_exists(self, capsys):
        words = re.search(r"^CMD \[(.*)\]$", DOCKERFILE, re.MULTILINE)[1]
        assert main([*re.findall(r'"([^"]+)"', words), "--help"]) == 0
        assert capsys.readouterr().out

    def test_installs_nothing_unpinned(self):
        installs = re.findall(r"pip install(?: [^&\n]*)?", DOCKERFILE)
        assert installs
        assert all("--constraint constraints.txt" in install for install in installs)

    def test_what_it_copies_is_there_and_reaches_the_builder(self):
        allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8")
        copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
        names = [name for line in copied for name in line.split()]
        assert {"hifi", "store", "service", "worker", "migrations", "pyproject.toml"} <= set(names)
        for name in names:
            path = ROOT / name
            assert path.exists()
            assert f"!{name}/**" in allowed if path.is_dir() else f"!{name}\n" in allowed

    def test_has_no_secret(self):
        declared = re.findall(r"^(?:ARG|ENV) +(.*)$", DOCKERFILE, re.MULTILINE)
        assert not any(_SECRET.search(line.upper()) for line in declared)


class TestCompose:
    @pytest.mark.process
    def test_takes_the_file(self):
        docker = shutil.which("docker")
        command = [str(docker), "compose", "--file", str(ROOT / "docker-compose.yml")]
        if (
            docker is None
            or subprocess.run(
                [docker, "compose", "version"], capture_output=True, check=False
            ).returncode
        ):
            pytest.skip("there is no docker client with compose")
        environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **REQUIRED}
        for profile in ("cpu", "gpu"):
            done = subprocess.run(
                [*command, "--profile", profile, "config", "--quiet"],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        for name in REQUIRED:
            less = {key: value for key, value in environment.items() if key != name}
            done = subprocess.run([*command, "config"], env=less, capture_output=True, check=False)
            assert done.returncode != 0, f"{name} may be left out"
