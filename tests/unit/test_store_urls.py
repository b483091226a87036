"""What `--redis` may be, without a server."""

import pytest

from gateway.store.home import connect
from gateway.store.urls import Address, Cluster, OneServer, Sentinels, parse


@pytest.mark.parametrize("url", ["redis://h", "rediss://u:p@h:1/2?x=y", "unix:///a/socket?db=1"])
def test_one_server_is_left_to_redis_py(url: str) -> None:
    assert parse(url) == OneServer(url)


def test_sentinels_have_a_service_and_a_login_of_their_own() -> None:
    place = parse("redis+sentinel://me:p%40ss@a,b:1,[::1]:2/my%20queue/3?sentinel_password=x/y&ssl_ca_certs=/ca")
    assert isinstance(place, Sentinels)
    assert place.seeds == (Address("a", 26379), Address("b", 1), Address("::1", 2))
    assert place.service == "my queue"
    assert place.sentinel.at(Address("::1", 2)) == "redis://:x%2Fy@[::1]:2?ssl_ca_certs=%2Fca"
    assert place.server.at(Address("h", 9)) == "redis://me:p%40ss@h:9/3?ssl_ca_certs=%2Fca"


def test_a_cluster_is_named_by_some_of_its_nodes() -> None:
    place = parse("rediss+cluster://:pw@a:1,b")
    assert isinstance(place, Cluster)
    assert place.seeds == (Address("a", 1), Address("b", 6379))
    assert place.server.at(Address("10.0.0.1", 7)) == "rediss://:pw@10.0.0.1:7/0"


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("http://:hunter2@h", "start with"),
        ("redis+proxy://:hunter2@h", "start with"),
        ("unix+cluster://:hunter2@h", "start with"),
        ("redis+cluster://:hunter2@", "HOST:PORT"),
        ("redis+cluster://:hunter2@a,,b", "HOST:PORT"),
        ("redis+cluster://:hunter2@a:b", "HOST:PORT"),
        ("redis+cluster://:hunter2@a/1", "no database"),
        ("redis+sentinel://:hunter2@a", "name the service"),
        ("redis+sentinel://:hunter2@a//1", "name the service"),
        ("redis+sentinel://:hunter2@a/s/x", "by its number"),
        ("redis+sentinel://:hunter2@[::1/s", "be a URL"),
        ("redis+sentinel://:hunter2@a\u2100b/s", "be a URL"),
    ],
)
def test_others_are_refused_in_words_that_keep_the_password(url: str, word: str) -> None:
    with pytest.raises(ValueError, match=word) as refusal:
        connect(url)
    assert "hunter2" not in str(refusal.value)
