"""HOST:PORT."""

import pytest

from stepd.errors import InvalidArgument
from stepd.targets import Target, is_loopback, is_wildcard, parse_target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("127.0.0.1:7070", Target("127.0.0.1", 7070)),
        ("shard-0.shards:7071", Target("shard-0.shards", 7071)),
        ("[::1]:0", Target("::1", 0)),
        (" localhost:65535\n", Target("localhost", 65535)),
    ],
)
def test_a_target_is_a_host_and_a_port_and_reads_back(text: str, target: Target) -> None:
    assert parse_target(text) == target
    assert str(target) == text.strip()


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":7070", "host:65536", "host:-1", "host:http", "::1:7070", "h:\uff11"]
)
def test_anything_else_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_target(text)
    assert repr(text) in str(caught.value)
    assert caught.value.details["given"] == text


def test_loopback_is_what_only_this_machine_can_reach() -> None:
    assert all(map(is_loopback, ["localhost", "LOCALHOST", "127.0.0.1", "127.8.8.8", "::1"]))
    assert not any(
        map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org", "127.0.0.1.nip.io"])
    )
    assert all(map(is_wildcard, ["0.0.0.0", "::"]))
    assert not any(map(is_wildcard, ["127.0.0.1", "localhost"]))
