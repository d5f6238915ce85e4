from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from service.app import build_app
from store.administration.keys import revoke_key
from store.jobs.leases import Progress
from store.jobs.life import WorkEvent
from store.storage import ArtifactStorage
from store.tables import Job
from tests.browser.chromium import Page, chromium
from tests.service.gateways import Member, add_dataset_row, served
from tests.service.work import FILES, finished_job, running_job, select, step, succeed
from tests.waiting import eventually

if TYPE_CHECKING:
    from store.database.connection import Database
    from store.settings import Settings

pytestmark = pytest.mark.browser
EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"


@pytest.fixture
def storage(settings: Settings) -> ArtifactStorage:
    return ArtifactStorage(settings.artifacts_url)


@pytest.fixture
def url(settings: Settings, database: Database) -> Iterator[str]:  # noqa: ARG001 - made first
    with served(build_app(settings)) as url:
        yield url


@pytest.fixture
def page(url: str, tmp_path: Path) -> Iterator[Page]:
    """Yield a tab that shows the dashboard; assert that it has no errors at the end."""
    with chromium(tmp_path / "profile") as page:
        page.goto(f"{url}/")
        page.wait_for("document.querySelector('#key')")
        page.errors.clear()  # that the list was refused without a key
        yield page
        assert page.errors == []


def sign_in(page: Page, secret: str) -> None:
    page.evaluate(f"document.querySelector('#key').value = {json.dumps(secret)}")
    page.evaluate("document.querySelector('form.sign-in').requestSubmit()")


def open_job(page: Page, job_id: str) -> None:
    page.evaluate(f"location.hash = '#/jobs/{job_id}'")
    page.wait_for("document.querySelectorAll('.log li').length")


class TestSignIn:
    def test_refuses_a_wrong_key_and_takes_a_right_one(
        self, page: Page, database: Database, alice: Member
    ):
        running_job(database, alice.tenant_id, name="mrpc")
        sign_in(page, "hifi_wrong")
        page.wait_for("document.querySelector('.error')?.textContent.includes('unknown')")
        page.errors.clear()  # the refusal
        sign_in(page, alice.secret)
        page.wait_for("document.querySelector('tbody tr')")
        assert page.texts("tbody td:first-child") == ["mrpc"]
        page.evaluate("document.querySelector('#sign-out').click()")
        page.wait_for("document.querySelector('#key')")
        assert page.evaluate("sessionStorage.length") == 0
        page.errors.clear()

    def test_is_asked_for_again_when_the_key_is_revoked(
        self, page: Page, database: Database, alice: Member
    ):
        sign_in(page, alice.secret)
        page.wait_for("document.querySelector('table')")
        with database.write() as session:
            revoke_key(session, alice.key_id)
        page.wait_for("document.querySelector('#key')")
        assert page.evaluate("sessionStorage.length") == 0
        page.errors.clear()  # the refusal


class TestJobs:
    def test_escapes_names(
        self, page: Page, database: Database, storage: ArtifactStorage, alice: Member
    ):
        job_id, lease = running_job(database, alice.tenant_id, name=EVIL)
        lease.report(Progress(phase=EVIL), events=[WorkEvent(type="message", message=EVIL)])
        lease.fail(code="dataset_invalid", message=EVIL)
        finished_job(database, storage, alice.tenant_id, name="mrpc")
        sign_in(page, alice.secret)
        page.wait_for("document.querySelectorAll('tbody tr').length == 2")
        assert page.texts("tbody td:first-child") == ["mrpc", EVIL]
        open_job(page, job_id)
        page.wait_for("document.querySelector('.error')")
        assert page.texts("h1") == [EVIL]
        assert page.evaluate("document.querySelectorAll('main img, main script').length") == 0
        page.evaluate("new Promise((resolve) => setTimeout(resolve, 300))")

    def test_injected_markup_does_not_run(self, page: Page):
        page.evaluate(f"document.querySelector('main').innerHTML = {json.dumps(EVIL)}")
        page.evaluate("new Promise((resolve) => setTimeout(resolve, 300))")
        assert any("Content Security Policy" in error for error in page.errors)
        assert not any("dialog" in error for error in page.errors)
        page.errors.clear()

    def test_follows_progress(self, page: Page, database: Database, alice: Member):
        _, lease = running_job(database, alice.tenant_id, name="mrpc")
        sign_in(page, alice.secret)
        page.wait_for("document.querySelector('progress')")
        lease.report(Progress(phase="training", step=40, total_steps=80))
        page.wait_for("document.querySelector('progress')?.value == 50")
        lease.fail(code="out_of_memory", message="too large")
        page.wait_for("document.querySelector('.chip')?.textContent == 'failed'")

    def test_newest_keeps_the_filter(self, page: Page, database: Database, alice: Member):
        for _ in range(2):
            _, lease = running_job(database, alice.tenant_id)
            lease.fail(code="out_of_memory", message="too large")
        last, lease = running_job(database, alice.tenant_id)
        lease.fail(code="out_of_memory", message="too large")
        sign_in(page, alice.secret)
        page.wait_for("document.querySelectorAll('tbody tr').length == 3")
        page.evaluate(f"location.hash = '#/?status=failed&after={last}'")
        page.wait_for("document.querySelectorAll('tbody tr').length == 2")
        page.evaluate("document.querySelector('.foot a').click()")
        page.wait_for("document.querySelectorAll('tbody tr').length == 3")
        assert page.evaluate("document.querySelector('select').value") == "failed"


class TestDocumentation:
    def test_lists_the_api_once_signed_in(self, page: Page, url: str, alice: Member):
        page.goto(f"{url}/docs")
        page.wait_for("document.querySelector('#notice')?.textContent.includes('sign in')")
        page.errors.clear()  # the refusal
        page.goto(f"{url}/")
        page.wait_for("document.querySelector('#key')")
        sign_in(page, alice.secret)
        page.wait_for("document.querySelector('table, main p')")
        page.errors.clear()
        page.goto(f"{url}/docs")
        page.wait_for("document.querySelectorAll('.opblock').length > 20")
        opening = "document.querySelector('[id^=operations-models-] .opblock-summary-control')"
        page.evaluate(f"{opening}.click()")
        page.wait_for("document.querySelector('.try-out__btn')")
        page.evaluate("document.querySelector('.try-out__btn').click()")
        page.wait_for("document.querySelector('.execute')")
        page.evaluate("document.querySelector('.execute').click()")
        page.wait_for("document.querySelector('.live-responses-table .response-col_status')")
        assert page.texts(".live-responses-table tbody .response-col_status")[0].startswith("200")


class TestJob:
    def test_is_live_from_its_first_step_to_its_files(
        self,
        page: Page,
        database: Database,
        storage: ArtifactStorage,
        alice: Member,
        tmp_path: Path,
    ):
        spec = {"model": "minilm", "k": 3, "task": {"metric": "f1"}}
        job_id, lease = running_job(database, alice.tenant_id, name="mrpc", spec=spec)
        sign_in(page, alice.secret)
        page.wait_for("document.querySelector('tbody tr')")
        open_job(page, job_id)
        select(lease, job_id)
        page.wait_for("document.querySelectorAll('rect.head').length == 8")
        assert page.evaluate("document.querySelectorAll('rect.head.selected').length") == 4
        yardsticks = {"majority": {"f1": -0.25, "loss": 0.7}, "probe": {"f1": 0.75, "loss": 0.6}}
        lease.report(
            Progress(), events=[WorkEvent(type="yardsticks", message="f1", data=yardsticks)]
        )
        page.wait_for("document.querySelectorAll('.bars meter').length == 2")
        for number in (1, 2, 3):
            progress = Progress(phase="training", step=number * 25, total_steps=100)
            lease.report(progress, events=[step(number * 25)])
        page.wait_for("document.querySelector('polyline.curve')?.points.length == 3")
        page.wait_for("document.querySelector('progress')?.value == 75")
        metrics = {"step": 75, "f1": 0.875, "loss": 1.25}
        lease.report(
            Progress(), events=[WorkEvent(type="metrics", message="f1", step=75, data=metrics)]
        )
        page.wait_for("document.querySelectorAll('polyline.curve').length == 3")
        # Both losses on one axis, shares on another.
        assert page.texts("figcaption b") == ["loss", "validation"]
        assert page.texts(".charts figure:first-child .legend") == [
            "training 0.01333",
            "validation 1.250",
        ]
        assert page.texts(".charts figure:last-child .legend") == ["f1 0.8750"]
        page.wait_for("document.querySelectorAll('.bars meter').length == 3")
        assert page.texts(".bar-row span") == ["majority", "probe", "tuned"]
        assert page.texts(".bar-row b") == ["-0.2500", "0.7500", "0.8750"]
        values = "[...document.querySelectorAll('.bars meter')].map((bar) => bar.value)"
        assert page.evaluate(values) == [0, 0.75, 0.875]
        succeed(lease, storage, alice.tenant_id)
        page.wait_for("document.querySelectorAll('.files a').length == 5")
        assert page.texts(".chip") == ["succeeded"]
        assert page.evaluate("document.querySelector('progress')") is None
        listed = page.texts(".log li b")
        assert listed[0] == listed[-1] == "status"
        assert listed.count("step") == 3

        page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        page.evaluate("document.querySelector('.files a').click()")
        file = tmp_path / "mrpc.safetensors"
        size = len(FILES["float32"])
        eventually(lambda: file.exists() and file.stat().st_size >= size, message="the download")
        assert file.read_bytes() == FILES["float32"]

    def test_is_found_by_its_name(
        self, page: Page, database: Database, storage: ArtifactStorage, alice: Member
    ):
        job_id = finished_job(database, storage, alice.tenant_id, name="größe 1/2")
        sign_in(page, alice.secret)
        page.wait_for("document.querySelector('tbody tr')")
        assert page.evaluate("document.title") == "Jobs · HiFi"
        open_job(page, "gr%C3%B6%C3%9Fe%201%2F2")
        page.wait_for("document.title == 'größe 1/2 · succeeded · HiFi'")
        assert job_id in page.texts("main p.muted")
        finished_job(database, storage, alice.tenant_id, name="größe 1/2")
        page.evaluate("location.hash = '#/'")
        page.wait_for("document.querySelectorAll('tbody tr').length == 2")
        page.evaluate("location.hash = '#/jobs/gr%C3%B6%C3%9Fe%201%2F2'")
        page.wait_for(
            "document.querySelector('#notice').textContent.startsWith('Several jobs are')"
        )
        assert page.evaluate("document.title") == "HiFi"

    def test_names_its_data_set(self, page: Page, database: Database, alice: Member):
        dataset = add_dataset_row(database, alice, name="libs")
        job_id, _ = running_job(
            database, alice.tenant_id, spec={"model": "minilm", "dataset": dataset}
        )
        sign_in(page, alice.secret)
        page.wait_for("document.querySelector('tbody tr')")
        open_job(page, job_id)
        page.wait_for("document.querySelector('main').textContent.includes('libs (')")
        shown = dict(zip(page.texts("dt"), page.texts("dd"), strict=True))
        assert shown["data set"] == f"libs ({dataset})"

    def test_shows_its_settings_dates_and_times(
        self, page: Page, database: Database, alice: Member
    ):
        training = {"epochs": 3, "learning_rate": 0.0005, "early_stopping_patience": None}
        job_id, lease = running_job(
            database, alice.tenant_id, spec={"model": "minilm", "training": training}
        )
        select(lease, job_id)
        sign_in(page, alice.secret)
        page.wait_for("document.querySelector('tbody tr')")
        open_job(page, job_id)
        shown = dict(zip(page.texts("dt"), page.texts("dd"), strict=True))
        assert shown["learning rate"] == "0.0005"
        assert shown["early stopping patience"] == "none"
        year = str(datetime.now(tz=UTC).year)
        assert year in shown["posted"]
        assert all(year in line for line in page.texts(".log li time"))
        # Layer 0 at the bottom.
        page.wait_for("document.querySelector('rect.head')")
        lowest = "[...document.querySelectorAll('rect.head')].at(-1).getAttribute('aria-label')"
        assert page.evaluate(lowest).startswith("layer 0, head 3")

    def test_tells_how_long_a_job_has_waited_run_and_trained(
        self, page: Page, database: Database, storage: ArtifactStorage, alice: Member
    ):
        job_id = finished_job(database, storage, alice.tenant_id)
        posted = datetime(2026, 1, 1, tzinfo=UTC)
        started = posted + timedelta(minutes=2, seconds=5)
        times = {"started_at": started, "finished_at": started + timedelta(hours=1, minutes=3)}
        with database.write() as session:
            change = sa.update(Job).where(Job.id == job_id)
            session.execute(change.values(created_at=posted, **times))
        sign_in(page, alice.secret)
        page.wait_for("document.querySelector('tbody tr')")
        open_job(page, job_id)
        page.wait_for("document.querySelector('main').textContent.includes('trained')")
        shown = dict(zip(page.texts("dt"), page.texts("dd"), strict=True))
        assert (shown["waited"], shown["ran"]) == ("2 min 5 s", "1 h 3 min")
        assert shown["trained"] == "4 s"

    def test_shows_which_classes_are_taken_for_which(
        self,
        page: Page,
        database: Database,
        storage: ArtifactStorage,
        alice: Member,
        tmp_path: Path,
    ):
        scores = {"precision": 0.75, "recall": 2 / 3, "f1": 0.5, "support": 9}
        report = {
            "split": "test",
            "classes": 3,
            "per_class": [{"label": EVIL, **scores}, {"label": "dog " * 30, **scores}],
            "confusion": [[8, 1, 0], [2, 1000, 7], [0, 0, 0]],
        }
        training = {"class_weights": {"dog": 2.5}}
        spec = {"model": "minilm", "training": training}
        job_id, lease = running_job(database, alice.tenant_id, spec=spec)
        select(lease, job_id)
        succeed(lease, storage, alice.tenant_id, test={"accuracy": 0.625}, report=report)
        sign_in(page, alice.secret)
        page.wait_for("document.querySelector('tbody tr')")
        open_job(page, job_id)
        page.wait_for("document.querySelector('.confusion table')")
        assert page.texts(".confusion caption") == [
            "test split, 1,018 rows, 3 classes; shaded by the share of the row"
        ]
        names = [EVIL, "dog " * 30, "(others)"]
        assert page.texts(".confusion tbody th[scope=row]") == names
        heads = page.texts(".confusion thead tr:last-child th[scope=col]")
        assert heads == ["precision", "recall", "f1", "rows", *names]
        assert page.texts(".confusion .cell") == [
            *("8", "1", "0"),
            *("2", "1,000", "7"),
            *("0", "0", "0"),
        ]
        shades = (
            "[...document.querySelectorAll('.cell')].map((cell) => cell.className.split(' ')[1])"
        )
        assert page.evaluate(shades) == [
            *("shade-8", "shade-1", "shade-0"),
            *("shade-0", "shade-9", "shade-0"),
            *["shade-0"] * 3,
        ]
        assert page.texts(".confusion tbody tr:first-child td:not(.cell)") == [
            *("0.7500", "0.6667", "0.5000", "9")
        ]
        shown = dict(zip(page.texts("dt"), page.texts("dd"), strict=True))
        assert shown["test accuracy"] == "0.6250"
        assert shown["class weights"] == '{"dog":2.5}'
        page.screenshot(tmp_path / "phone.png", width=390)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390

    def test_fits_on_a_phone(
        self,
        page: Page,
        database: Database,
        storage: ArtifactStorage,
        alice: Member,
        tmp_path: Path,
    ):
        job_id = finished_job(database, storage, alice.tenant_id, name="x" * 128)
        sign_in(page, alice.secret)
        page.wait_for("document.querySelector('tbody tr')")
        open_job(page, job_id)
        page.wait_for("document.querySelector('rect.head')")
        page.screenshot(tmp_path / "phone.png", width=390)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
