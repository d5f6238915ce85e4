"""Whatever one tenant does, another's calls are answered as ever."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.integration.deployment import peak_megabytes
from tests.integration.hostile import ACTS, HANGING_STORE, OVER_QUOTA
from tests.integration.neighbours import Neighbours, neighbours
from tests.waiting import patience

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
    with site.under(act) as statuses:
        for _ in range(ROUNDS):
            for name, seconds in site.seconds().items():
                limit = max(PROMPT_SECONDS, 3 * alone[name])
                assert seconds < patience(limit), (name, seconds, alone[name])
            time.sleep(1.0)
    assert statuses.keys() - {"begun"} <= STATUSES[act], statuses
    assert site.parts() == before  # no process had to be started again
    assert peak_megabytes(before["gateway"]) < GATEWAY_MEGABYTES
