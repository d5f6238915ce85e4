"""hifi.cli.interrupt: the first Ctrl-C is an answer, the second one is not to be argued with."""

from __future__ import annotations

import signal
import threading

import pytest

from hifi.cli.interrupt import stop_on_interrupt
from hifi.training.events import Control


@pytest.fixture
def handler():
    """Yield a function that sets the handler of Ctrl-C; restore the handler afterwards."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda action: signal.signal(signal.SIGINT, action)
    signal.signal(signal.SIGINT, before)


class TestStopOnInterrupt:
    @pytest.mark.parametrize("stop", [Control.PAUSE, Control.CANCEL])
    def test_the_first_ctrl_c_requests_a_stop_and_the_second_raises(self, stop, handler, capfd):
        handler(signal.default_int_handler)
        with stop_on_interrupt(stop) as ask:
            assert ask() is Control.CONTINUE
            signal.raise_signal(signal.SIGINT)
            assert ask() is stop
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert "stopping at the next step" in capfd.readouterr().err

    def test_restores_the_handler_when_the_block_fails(self, handler):
        handler(signal.default_int_handler)
        with pytest.raises(RuntimeError), stop_on_interrupt(Control.CANCEL):
            raise RuntimeError
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_an_ignored_ctrl_c_stays_ignored(self, handler):
        handler(signal.SIG_IGN)
        with stop_on_interrupt(Control.CANCEL) as ask:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert ask() is Control.CONTINUE

    def test_changes_nothing_outside_the_main_thread(self):
        answers = []

        def work():
            with stop_on_interrupt(Control.CANCEL) as ask:
                answers.append(ask())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert answers == [Control.CONTINUE]
