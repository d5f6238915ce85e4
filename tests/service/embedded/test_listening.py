"""service.embedded.listening: an address that is open before all else, or an error that helps."""

from __future__ import annotations

import socket
import threading

import pytest

from service.embedded.listening import ListenError, free_loopback_port, listen, url_of
from store.settings import Settings
from tests.waiting import within


def settings(tmp_path, **of):
    return Settings(home=tmp_path, **{"port": 0, **of})


class TestListen:
    def test_with_port_0_takes_a_free_one_and_puts_it_in_the_url(self, tmp_path):
        with listen(settings(tmp_path)) as listener:
            port = listener.getsockname()[1]
            assert port != 0
            assert url_of(listener) == f"http://127.0.0.1:{port}"
            socket.create_connection(("127.0.0.1", port)).close()

    def test_ipv6_is_written_in_brackets(self, tmp_path):
        with listen(settings(tmp_path, host="::1")) as listener:
            assert url_of(listener).startswith("http://[::1]:")

    def test_all_interfaces_are_reached_by_loopback(self, tmp_path):
        with listen(settings(tmp_path, host="0.0.0.0", auth="keys")) as listener:  # noqa: S104
            assert url_of(listener).startswith("http://127.0.0.1:")

    def test_a_port_in_use_is_reported_with_a_hint(self, tmp_path):
        with listen(settings(tmp_path)) as listener:
            port = listener.getsockname()[1]
            reason = rf"127\.0\.0\.1:{port} \(Address already in use\): .*--port"
            with pytest.raises(ListenError, match=reason):
                listen(settings(tmp_path, port=port))

    def test_a_port_that_becomes_free_is_waited_for(self, tmp_path):
        first = listen(settings(tmp_path))
        port = first.getsockname()[1]
        threading.Timer(0.2, first.close).start()
        with listen(settings(tmp_path, port=port), patience=3600.0) as listener:
            assert listener.getsockname()[1] == port

    def test_an_address_of_others_is_not_waited_for(self, tmp_path):
        with within(5), pytest.raises(ListenError):
            listen(settings(tmp_path, host="203.0.113.1", auth="keys"), patience=3600.0)


class TestFreeLoopbackPort:
    def test_can_be_listened_on(self, tmp_path):
        with listen(settings(tmp_path, port=free_loopback_port())):
            pass


class TestConnections:
    def test_send_small_packets_at_once(self, tmp_path):
        # Without it each answer waits for the caller's delayed acknowledgement: 40 ms on Linux.
        with (
            listen(settings(tmp_path)) as listener,
            socket.create_connection(listener.getsockname()),
            listener.accept()[0] as accepted,
        ):
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
