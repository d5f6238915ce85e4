"""docs/operations.md and docs/service.md: settings, calls, codes and metrics that are there."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from hifi import cli
from hifi.data.formats.limits import MAX_CHARACTERS
from service.app import build_app
from service.inference.documents import MAX_VALUES
from service.inference.routes import MAX_BODY_BYTES
from service.operations.metrics import Metrics
from store.jobs.spec import JobSpec
from store.orders import MAX_INPUTS, MAX_SECONDS
from store.settings import PREFIX, Settings
from store.states import JobStatus
from tests.root import ROOT

OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
SERVICE = (ROOT / "docs" / "service.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", OPERATIONS + SERVICE, re.DOTALL)
COMMANDS = sorted(
    {
        found.strip()
        for found in re.findall(r"\bhifi ([a-z][^#|`\n&]*)", "\n".join(BLOCKS))
        if not found.startswith("tenants usage #")
    }
)


class TestSettings:
    def test_all_are_in_the_table_and_no_others(self):
        told = re.findall(rf"^\| `{PREFIX}(\w+)` \|", OPERATIONS, re.MULTILINE)
        assert sorted(told) == sorted(name.upper() for name in Settings.model_fields)

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("port", "`8000`"),
            ("infer_timeout_seconds", "30"),
            ("tenant_max_queued", "1000"),
            ("tenant_max_running", "16"),
            ("lease_seconds", "60"),
            ("checkpoint_seconds", "60"),
            ("engine_stall_seconds", "120"),
            ("log_format", "`text`"),
            ("auth", "`none`"),
            ("device", "`auto`"),
            ("host", "`127.0.0.1`"),
        ],
    )
    def test_defaults_are_as_documented(self, name, told):
        row = re.search(rf"^\| `{PREFIX}{name.upper()}` \| ([^|]*) \|", OPERATIONS, re.MULTILINE)
        assert row[1] == told
        default = Settings.model_fields[name].default
        assert told.strip("`") == (f"{default:g}" if isinstance(default, float) else str(default))


class TestJobSpec:
    def test_the_defaults_are_as_documented(self):
        (told,) = re.findall(r"\$HIFI_URL/jobs -H [^\n]*? -d '(\{.*?\})'", SERVICE, re.DOTALL)
        spec = json.loads(told)
        least = JobSpec(model=spec["model"], dataset=spec["dataset"])
        rate = re.search(r"except `learning_rate`, whose default is ([\de-]+):", SERVICE)
        training = {**spec["training"], "learning_rate": float(rate[1])}
        assert training == least.training.model_dump()
        scoring = {name: spec[name] for name in least.describe(rows=10_000)}
        assert scoring == least.describe(rows=10_000)


class TestCommands:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_parse(self, command):
        words = [word.replace("…", "x") for word in shlex.split(command)]
        words = ["keys" if word == "KEY" else word for word in words]
        cli._build_parser(words).parse_args(words)

    def test_the_page_has_commands(self):
        assert {command.split()[0] for command in COMMANDS} >= {"serve", "jobs", "tenants"}


class TestCalls:
    def test_the_paths_exist(self, tmp_path):
        routes = {
            re.sub(r"\{\w+\}", "{}", path): {verb.upper() for verb in verbs}
            for path, verbs in build_app(Settings(home=tmp_path)).openapi()["paths"].items()
        }
        called = {
            re.sub(r"(job|ds|ten|key)_…|\{id\}", "{}", path)
            for path in re.findall(r"\$HIFI_URL(/[\w/…{}]*)", SERVICE)
        }
        assert called >= {"/datasets", "/models", "/jobs", "/jobs/{}/events", "/jobs/{}/merged"}
        assert called <= routes.keys()
        verbs = re.findall(r"`(GET|POST|DELETE) (/[\w/{}]+)`", SERVICE)
        for verb, path in verbs:
            assert verb in routes[re.sub(r"\{\w+\}", "{}", path)], (verb, path)

    def test_every_status_is_documented(self):
        for status in JobStatus:
            assert f"`{status}`" in SERVICE

    def test_the_python_is_python(self):
        (code,) = re.findall(r"```python\n(.*?)```", SERVICE, re.DOTALL)
        compile(code, "service.md", "exec")

    @pytest.mark.parametrize("text", [OPERATIONS, SERVICE])
    def test_links_lead_somewhere(self, text):
        for path in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (ROOT / "docs" / path).exists()

    def test_limits_of_predictions_are_those_that_hold(self):
        text = SERVICE.partition("## Predictions")[2].partition("\n## ")[0]
        assert f"1 to {MAX_INPUTS} inputs, {MAX_BODY_BYTES >> 20} MiB" in text
        assert f"{MAX_VALUES:,} JSON values" in text
        assert f"{MAX_CHARACTERS:,} characters" in text
        assert f"{MAX_SECONDS:g} at most" in text

    def test_codes_are_raised_somewhere(self):
        sources = "".join(
            path.read_text(encoding="utf-8")
            for room in ("hifi/data", "service", "store", "worker")
            for path in (ROOT / room).rglob("*.py")
        )
        tables = SERVICE.partition("## Codes")[2] + SERVICE.partition("| code of an item")[2]
        rows = re.findall(r"^\| (`[a-z]+_[^|]*) \|", tables, re.MULTILINE)
        codes = {code for row in rows for code in re.findall(r"`([a-z]+_[a-z_]+)`", row)}
        assert codes >= {"invalid_request", "engine_crashed", "text_too_long", "blob_lost"}
        for code in codes:
            assert f'"{code}"' in sources, code


class TestMetrics:
    def test_documented_ones_exist(self):
        text = Metrics().render(None, inference=[]).decode()
        source = "".join(
            (ROOT / path).read_text(encoding="utf-8")
            for path in ("service/operations/metrics.py", "worker/inference/metrics.py")
        )
        rows = re.findall(r"^\| (`hifi_[^|]*) \|", OPERATIONS, re.MULTILINE)
        told = [name for row in rows for name in re.findall(r"`(hifi_\w+)(?:\{[^`]*\})?`", row)]
        assert len(told) >= 14
        for name in told:
            assert name in text or f'"{name.removesuffix("_total")}"' in source, name
