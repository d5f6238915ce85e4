"""Whatever one tenant does, another's calls are answered as ever."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from typing import Any

import pytest

from hifi.backbones.packaged import PACKAGED_MODEL
from hifi.data.formats.limits import MAX_CHARACTERS
from tests.integration.deployment import peak_megabytes
from tests.integration.hostile import ACTS, HANGING_STORE, OVER_QUOTA, START
from tests.integration.neighbours import ENGINE_BYTES, INFERENCE_BYTES, Neighbours, neighbours
from tests.repeated_rows import repeated_rows
from tests.waiting import eventually, patience

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("neighbours"),
]
PROMPT_SECONDS = 2.0
ROUNDS = 3
GATEWAY_MEGABYTES = 200.0
# What the hostile tenant hears, apart from answers that it did not wait for.
STATUSES = {
    "huge texts": {"422"},
    "longest texts": {"201", "202"},
    OVER_QUOTA: {"201", "204", "403"},
    HANGING_STORE: {"429", "503"},
    "slow uploads": {"201", "422", "429"},
    "half-open connections": set(),
    "long jobs": {"201", "202"},
    "models that nobody reads": {"200"},
    "predictions": {"200", "429"},
    "large predictions": {"200", "429"},
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neighbours]:
    with neighbours(tmp_path_factory.mktemp("neighbours") / "home") as found:
        found.seconds()  # loads what is loaded once
        yield found


@pytest.fixture(scope="module")
def alone(site: Neighbours) -> dict[str, float]:
    """Return the seconds of each kind of call while nothing else happens."""
    return site.seconds()


@pytest.mark.parametrize("act", ACTS)
def test_a_hostile_tenant_delays_no_other(act: str, site: Neighbours, alone: dict[str, float]):
    before = site.parts()
    with site.under(act) as heard:
        for _ in range(ROUNDS):
            for name, seconds in site.seconds().items():
                limit = max(PROMPT_SECONDS, 3 * alone[name])
                assert seconds < patience(limit), (name, seconds, alone[name])
            time.sleep(1.0)
        if STATUSES[act]:
            eventually(lambda: heard().keys() & STATUSES[act], message=f"an answer to {act}")
        if act in START:  # the engine has a job
            check_memory(eventually(site.engine, message="an engine"), most=ENGINE_BYTES)
        assert site.failures() <= {"out_of_memory"}
        assert site.engines_lost() == 0
    assert heard().keys() <= {"begun", *STATUSES[act]}, heard()
    assert site.parts() == before  # no process had to be started again
    check_memory(before["inference"], most=INFERENCE_BYTES)
    assert peak_megabytes(before["gateway"]) < GATEWAY_MEGABYTES


@pytest.mark.parametrize(
    ("batch_size", "tokens", "ending"), [(64, 128, None), (128, 512, "out_of_memory")]
)
def test_a_job_of_the_longest_texts_ends_as_its_memory_allows(
    batch_size: int, tokens: int, ending: str | None, site: Neighbours
):
    content = repeated_rows("word " * (MAX_CHARACTERS // 5), rows=128)

    def post(path: str, **content: Any) -> str:
        answer = site.client.post(f"{site.url}{path}", headers=site.hostile.headers, **content)
        assert answer.is_success, answer.text
        return str(answer.json()["id"])

    dataset = post("/datasets", files={"train": ("train.parquet", content)})
    training = {"epochs": 1, "batch_size": batch_size, "max_length": tokens}
    spec = {"model": PACKAGED_MODEL, "dataset": dataset, "training": training}
    path = f"/jobs/{post('/jobs', json=spec)}"

    def ended() -> dict[str, Any] | None:
        job = site.client.get(f"{site.url}{path}", headers=site.hostile.headers).json()
        return job if job["finished_at"] else None

    job = eventually(ended, seconds=300, message="the end of the job")
    assert (job["error"] and job["error"]["code"]) == ending, job["error"]
    assert site.time_prediction() < patience(PROMPT_SECONDS)


def check_memory(pid: int, *, most: int) -> None:
    """Assert that a process limits its memory, as soon as it has started, and keeps to it."""
    eventually(lambda: resource.prlimit(pid, resource.RLIMIT_DATA)[0] == most, message="a limit")
    assert peak_megabytes(pid) < most >> 20
