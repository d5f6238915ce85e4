"""service.embedded.supervisor: parts are kept alive, stopped in order, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from service.embedded import supervisor as module
from service.embedded.supervisor import CrashLoopError, Part, Supervisor
from tests.root import ROOT
from tests.waiting import eventually, patience

pytestmark = pytest.mark.process

# Writes its pid, and one line more when it is told to end.
OBEDIENT = """
import os, signal, sys, time
def end(*_):
    with open(sys.argv[1], "a") as file: print("ended", os.getpid(), time.monotonic(), file=file)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
with open(sys.argv[1], "a") as file: print("started", os.getpid(), time.monotonic(), file=file)
while True: time.sleep(60)
"""
STUBBORN = OBEDIENT.replace("sys.exit(0)", "pass")


def part(file, *, code=OBEDIENT, **of):
    of.setdefault("name", file.name)
    return Part(command=(sys.executable, "-c", code, str(file)), **of)


def lines(file, word):
    """Return what a part wrote: pairs of pid and time."""
    text = file.read_text() if file.exists() else ""
    found = [line.split() for line in text.splitlines()]
    return [(int(pid), float(when)) for what, pid, when in found if what == word]


def is_alive(pid):
    """Return whether a process is alive and not a zombie."""
    command = ["ps", "-o", "stat=", "-p", str(pid)]
    state = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return bool(state) and not state.startswith("Z")


def run(parts, *steps, environment=None):
    """Run a supervisor; call each step until it returns something true, then the next."""
    left = list(steps)
    began = time.monotonic()

    def watch():
        assert time.monotonic() - began < patience(60), f"{len(left)} steps left"
        if left and left[0]():
            del left[0]

    return Supervisor(parts, environment=environment or os.environ).run(watch=watch)


def send(number):
    """Return a step that sends this process a signal."""

    def step():
        os.kill(os.getpid(), number)
        return True

    return step


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Restart parts at once, and poll often."""
    monkeypatch.setattr(module, "_FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(module, "_TICK_SECONDS", 0.01)


class TestRun:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_stops_at_a_signal_and_returns_its_number(self, tmp_path, number):
        file = tmp_path / "part"
        assert run([part(file)], lambda: lines(file, "started"), send(number)) == number
        assert [pid for pid, _ in lines(file, "ended")] == [
            pid for pid, _ in lines(file, "started")
        ]

    def test_restores_the_signal_handlers(self, tmp_path):
        before = signal.getsignal(signal.SIGTERM)
        run([part(tmp_path / "part")], send(signal.SIGTERM))
        assert signal.getsignal(signal.SIGTERM) is before

    def test_the_parts_have_its_environment_and_descriptors(self, tmp_path):
        file = tmp_path / "part"
        reading, writing = os.pipe()
        code = f"import os, sys; os.write({writing}, os.environ['WORD'].encode())\n{OBEDIENT}"
        parts = [part(file, code=code, descriptors=(writing,))]
        run(
            parts,
            lambda: lines(file, "started"),
            send(signal.SIGTERM),
            environment={**os.environ, "WORD": "told"},
        )
        assert os.read(reading, 100) == b"told"
        os.close(reading)
        os.close(writing)

    def test_a_part_that_is_killed_is_started_again(self, tmp_path):
        file = tmp_path / "part"

        def kill():
            os.kill(lines(file, "started")[-1][0], signal.SIGKILL)
            return True

        steps = []
        for count in range(1, module._MOST_QUICK_ENDS + 2):  # more often than a crash loop takes
            steps += [lambda count=count: len(lines(file, "started")) == count, kill]
        steps += [lambda: len(lines(file, "started")) == module._MOST_QUICK_ENDS + 2]
        assert run([part(file)], *steps, send(signal.SIGTERM)) == signal.SIGTERM


class TestCrashLoop:
    def test_is_reported_with_the_exit_code_and_stops_the_others(self, tmp_path):
        other = tmp_path / "other"
        broken = Part(name="worker", command=(sys.executable, "-c", "raise SystemExit(3)"))
        with pytest.raises(CrashLoopError, match=r"the worker ended 5 times .* \(exit code 3\)"):
            run([part(other), broken])
        assert not any(is_alive(pid) for pid, _ in lines(other, "started"))

    def test_a_part_that_worked_for_a_while_may_end(self, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "_QUICK_SECONDS", 0.0)
        file = tmp_path / "part"
        code = OBEDIENT.replace("while True: time.sleep(60)", "sys.exit(1)")
        starts = module._MOST_QUICK_ENDS + 2
        steps = [lambda: len(lines(file, "started")) >= starts, send(signal.SIGTERM)]
        assert run([part(file, code=code)], *steps) == signal.SIGTERM


class TestStop:
    def test_a_lower_rank_has_ended_before_the_next_is_stopped(self, tmp_path):
        worker, gateway = tmp_path / "worker", tmp_path / "gateway"
        slow = OBEDIENT.replace("def end(*_):", "def end(*_):\n    time.sleep(0.3)")
        parts = [part(gateway, rank=1), part(worker, code=slow)]
        started = [lambda: lines(gateway, "started") and lines(worker, "started")]
        run(parts, *started, send(signal.SIGTERM))
        assert lines(worker, "ended")[0][1] <= lines(gateway, "ended")[0][1]

    def test_a_part_that_does_not_end_in_time_is_killed(self, tmp_path):
        file = tmp_path / "part"
        parts = [part(file, code=STUBBORN, grace_seconds=0.3)]
        run(parts, lambda: lines(file, "started"), send(signal.SIGTERM))
        assert lines(file, "ended")  # it was told
        assert not is_alive(lines(file, "started")[0][0])

    def test_a_second_signal_kills_at_once(self, tmp_path):
        file = tmp_path / "part"

        def send_two():
            os.kill(os.getpid(), signal.SIGINT)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            return True

        before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        try:
            parts = [part(file, code=STUBBORN, grace_seconds=3600.0)]
            run(parts, lambda: lines(file, "started"), send_two)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert not is_alive(lines(file, "started")[0][0])

    def test_killing_takes_what_a_part_started_along(self, tmp_path):
        file = tmp_path / "part"
        child = tmp_path / "child"
        code = (
            "import subprocess, sys\n"
            f"subprocess.Popen([sys.executable, '-c', {STUBBORN!r}, {str(child)!r}])\n{STUBBORN}"
        )
        parts = [part(file, code=code, grace_seconds=0.1)]
        both = [lambda: lines(file, "started") and lines(child, "started")]
        run(parts, *both, send(signal.SIGTERM))
        (pid, _) = lines(child, "started")[0]
        eventually(lambda: not is_alive(pid))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's doing")
class TestDeathOfTheSupervisor:
    def test_its_parts_are_terminated(self, tmp_path):
        file = tmp_path / "part"
        code = (
            "import os, sys\n"
            "from service.embedded.supervisor import Part, Supervisor\n"
            f"command = (sys.executable, '-c', {OBEDIENT!r}, {str(file)!r})\n"
            "part = Part(name='part', command=command)\n"
            "Supervisor([part], environment=os.environ).run(watch=lambda: None)"
        )
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        eventually(lambda: lines(file, "started"))
        process.kill()
        process.wait()
        eventually(lambda: lines(file, "ended"))
