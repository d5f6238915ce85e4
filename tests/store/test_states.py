"""store.states: the life of a job as its diagram has it."""

from __future__ import annotations

import pytest

from store.states import FINISHED, LEASED, LIVE, JobStatus, may_follow

# new for each old, copied by hand from the diagram of a job's life
LIFE = {
    "queued": "validating cancelled",
    "validating": "selecting training queued cancelling failed",
    "selecting": "training queued cancelling failed",
    "training": "succeeded queued pausing cancelling failed",
    "pausing": "paused cancelling failed",
    "paused": "queued cancelled",
    "cancelling": "cancelled",
    "succeeded": "",
    "failed": "",
    "cancelled": "",
}


class TestTransitions:
    @pytest.mark.parametrize("old", JobStatus)
    def test_are_those_of_the_diagram(self, old: JobStatus):
        allowed = {str(new) for new in JobStatus if may_follow(new, old)}
        assert allowed == set(LIFE[old].split())

    def test_every_state_can_be_reached_and_every_job_can_end(self):
        reached = {JobStatus.QUEUED}
        while more := {n for n in JobStatus for o in reached if may_follow(n, o)} - reached:
            reached |= more
        assert reached == set(JobStatus)
        ending = set(FINISHED)
        while more := {o for o in JobStatus for n in ending if may_follow(n, o)} - ending:
            ending |= more
        assert ending == set(JobStatus)

    def test_a_state_is_queued_paused_leased_or_finished(self):
        assert LEASED | FINISHED | {JobStatus.QUEUED, JobStatus.PAUSED} == set(JobStatus)
        assert not LEASED & FINISHED
        assert set(JobStatus) - FINISHED == LIVE
