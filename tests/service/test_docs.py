"""docs/operations.md and docs/service.md: settings, calls, codes and metrics that are there."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from hifi import cli
from hifi.data.formats.limits import MAX_CHARACTERS, ReadLimits
from hifi.tuning import states
from service import app
from service.app import build_app
from service.connections import heads, protocol
from service.datasets import routes as datasets
from service.http import auth, middleware
from service.http.shares import Shares
from service.inference.documents import MAX_VALUES
from service.inference.routes import MAX_BODY_BYTES
from service.operations.metrics import Metrics
from store import logs
from store.database import pages
from store.jobs.spec import JobSpec
from store.orders import MAX_INPUTS, MAX_SECONDS
from store.settings import PREFIX, Settings
from store.states import JobStatus
from store.storage import blobs, breaker
from tests.root import ROOT
from worker.engine import computing
from worker.inference import serving, stalling
from worker.inference.app import MAX_REQUESTS

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

LIMITS_TABLE = dict(
    re.findall(
        r"^\| ([^|]*) \| ([^|]*) \| [^|]* \|$",
        OPERATIONS.partition("| what | limit |")[2].partition("\n\n")[0],
        re.MULTILINE,
    )
)
DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}
_READ = ReadLimits()
_SHARES = {name: share._most for name, share in vars(Shares()).items() if hasattr(share, "_most")}
LIMITS = {  # what the rows of the table must contain
    "connections of a gateway": [
        f"{DEFAULTS['max_connections']} in all",
        f"{DEFAULTS['max_connections_per_address']} per address",
    ],
    "a request's head": [
        f"{protocol._HEAD_SECONDS:g} s",
        f"{heads.HEAD_BYTES >> 10} KiB",
        f"{heads._MOST_FIELDS} fields",
    ],
    "a body on its way": [
        f"{middleware._BODY_SECONDS:g} s in all",
        f"{middleware._BODY_BYTES_PER_SECOND >> 10} KiB/s",
    ],
    "an answer that is not taken": [f"{protocol._STALL_SECONDS:g} s"],
    "invalid keys from an address": [
        f"{auth._MOST_FAILURES} {({60.0: 'a minute'})[auth._WINDOW_SECONDS]}"
    ],
    "open requests of a tenant at a gateway": [
        f"{_SHARES['streams']} streams",
        f"{_SHARES['uploads']} uploads",
        f"{_SHARES['downloads']} downloads",
        f"{_SHARES['merges']} merged models",
        f"{_SHARES['predictions']} predictions",
    ],
    "requests of a tenant that a gateway answers at once": [
        f"{app._THREADS_EACH} that read or change rows",
        f"{app._POSTS_EACH} that post jobs",
    ],
    "a page of jobs or data sets": [{1 << 20: "a million characters"}[pages._MOST_CHARACTERS]],
    "bytes of an upload": [
        f"{DEFAULTS['max_upload_bytes'] >> 30} GiB",
        {4: "unpacked four times"}[datasets._UNPACKED],
        f"at least {_READ.max_bytes >> 30} GiB",
    ],
    "a data set": [
        f"{_READ.max_rows // 10**6} million rows",
        f"{_READ.max_columns:,} columns",
        f"a row {_READ.max_row_bytes >> 20} MiB",
        f"a text {MAX_CHARACTERS:,} characters",
    ],
    "converting an upload": [
        f"{DEFAULTS['converter_seconds']:g} s",
        f"{DEFAULTS['converter_memory_bytes'] >> 30} GiB of memory",
    ],
    "stored bytes of a tenant": [f"{DEFAULTS['tenant_max_bytes'] >> 30} GiB"],
    "waiting and running jobs of a tenant": [
        f"{DEFAULTS['tenant_max_queued']:,} and {DEFAULTS['tenant_max_running']} "
    ],
    "a job's run time": [{86400.0: "a day"}[DEFAULTS["job_max_seconds"]]],
    "memory of a worker's engine": [{0.5: "half of the machine"}[computing._MEMORY_SHARE]],
    "hidden states of a job": [
        {8: "an eighth of the engine's memory"}[states._MEMORY_SHARE],
        f"at most {states._MOST_MEMORY >> 30} GiB",
        {1: "its last GiB"}[states._LEFT_FREE >> 30],
    ],
    "a prediction request": [
        f"{MAX_INPUTS} inputs",
        f"{MAX_BODY_BYTES >> 20} MiB",
        f"{MAX_SECONDS:g} s",
    ],
    "inputs in flight at inference": [f"{DEFAULTS['infer_max_inputs']:,} "],
    "merged models at inference": [
        f"{MAX_REQUESTS} at once",
        f"{stalling.STALL_SECONDS:g} s",
    ],
    "memory of inference": [{3 / 8: "three eighths of the machine"}[serving._MEMORY_SHARE]],
    "the artifact store": [
        f"{blobs._STREAM_SECONDS:g} s per part of a download",
        f"after {breaker._FAILURES} failures",
        f"none for {breaker._PAUSE_SECONDS:g} s",
    ],
    "the log": [
        f"{logs._LONGEST:,} characters",
        f"{logs._MOST_ALIKE} warnings or errors of a kind a minute",
    ],
}


class TestSettings:
    def test_all_are_in_the_table_and_no_others(self):
        told = re.findall(rf"^\| `{PREFIX}(\w+)` \|", OPERATIONS, re.MULTILINE)
        assert sorted(told) == sorted(name.upper() for name in Settings.model_fields)

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("port", "`8000`"),
            ("infer_device_bytes", "4 GiB"),
            ("infer_host_bytes", "4 GiB"),
            ("infer_disk_bytes", "8 GiB"),
            ("infer_backbone_bytes", "8 GiB"),
            ("infer_batch_wait_ms", "0"),
            ("infer_max_inputs", "4096"),
            ("infer_timeout_seconds", "30"),
            ("max_connections", "500"),
            ("max_connections_per_address", "250"),
            ("max_upload_bytes", "1 GiB"),
            ("converter_seconds", "300"),
            ("converter_memory_bytes", "1 GiB"),
            ("tenant_max_queued", "1000"),
            ("tenant_max_running", "16"),
            ("tenant_max_bytes", "100 GiB"),
            ("job_max_seconds", "86400 (a day)"),
            ("turn_seconds", "300"),
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
        default = DEFAULTS[name]
        if name.endswith("_bytes"):
            assert told == f"{default >> 30} GiB"
        else:
            shown = f"{default:.0f}" if isinstance(default, float) else str(default)
            assert told.partition(" ")[0].strip("`") == shown


class TestLimits:
    """The page's table of limits."""

    def test_has_these_rows_and_no_others(self):
        assert LIMITS_TABLE.keys() == LIMITS.keys()

    @pytest.mark.parametrize("row", LIMITS)
    def test_is_as_the_code_has_it(self, row):
        for limit in LIMITS[row]:
            assert re.search(rf"(?<![\d.,]){re.escape(limit)}", LIMITS_TABLE[row]), limit


class TestJobSpec:
    def test_the_defaults_are_as_documented(self):
        (told,) = re.findall(r"\$HIFI_URL/jobs -H [^\n]*? -d '(\{.*?\})'", SERVICE, re.DOTALL)
        spec = json.loads(told)
        least = JobSpec(model=spec["model"], dataset=spec["dataset"])
        assert spec["training"] == least.training.model_dump()
        assert (spec["preset"], spec["score"]) == (least.preset, least.score)
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
