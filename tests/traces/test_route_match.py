"""Virtual hosts and routes are found as Envoy finds them, with why others are not taken."""

from __future__ import annotations

from typing import Any

import pytest

from meshnb.traces.envoy.matchers import Headers
from meshnb.traces.envoy.route_match import host_of, match_route, virtual_host

_HOSTS = {
    "exact": ["a.shop.example"],
    "longer": ["*.shop.example"],
    "shorter": ["*.example"],
    "end": ["a.*"],
    "port": ["a.shop.example:8080"],
    "rest": ["*"],
}
_CONFIG = {"virtual_hosts": [{"name": n, "domains": domains} for n, domains in _HOSTS.items()]}


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("a.shop.example", "exact"),
        ("b.shop.example", "longer"),
        ("b.example", "shorter"),
        ("a.org", "end"),
        ("a.shop.example:8080", "port"),
        ("a.shop.example:80", "end"),
        ("b.org", "rest"),
        (".example", "rest"),
    ],
)
def test_the_closest_domain_counts(host: str, name: str) -> None:
    found = virtual_host(_CONFIG, host)
    assert found.host is not None
    assert found.host["name"] == name
    assert len(found.passed_over) == len(_HOSTS) - 1


@pytest.mark.parametrize(
    ("authority", "manager", "config", "host"),
    [
        ("A.Shop:80", {}, {}, "a.shop:80"),
        ("a.shop:80", {}, {"ignore_port_in_host_matching": True}, "a.shop"),
        ("a.shop:80", {"strip_any_host_port": True}, {}, "a.shop"),
        ("a.shop:80", {"strip_matching_host_port": True}, {}, "a.shop"),
        ("a.shop:81", {"strip_matching_host_port": True}, {}, "a.shop:81"),
        ("a.shop.", {"strip_trailing_host_dot": True}, {}, "a.shop"),
        ("[::1]:80", {"strip_any_host_port": True}, {}, "[::1]"),
        ("[::1]", {"strip_any_host_port": True}, {}, "[::1]"),
    ],
)
def test_the_port_is_cut_off_where_that_is_asked_for(
    authority: str, manager: dict[str, Any], config: dict[str, Any], host: str
) -> None:
    assert host_of(authority, manager, config, 80) == host


@pytest.mark.parametrize(
    ("match", "taken"),
    [
        ({"prefix": "/a"}, True),
        ({"prefix": "/A", "case_sensitive": False}, True),
        ({"prefix": "/A"}, False),
        ({"path": "/a/b"}, True),
        ({"path": "/a"}, False),
        ({"path_separated_prefix": "/a"}, True),
        ({"path_separated_prefix": "/a/b"}, True),
        ({"path_separated_prefix": "/a/"}, False),
        ({"safe_regex": {"regex": "/a/."}}, True),
        ({"safe_regex": {"regex": "/a"}}, False),
        ({"prefix": "/", "headers": [{"name": "x", "string_match": {"exact": "1"}}]}, True),
        ({"prefix": "/", "headers": [{"name": "y", "present_match": True}]}, False),
        ({"prefix": "/", "query_parameters": [{"name": "q", "present_match": True}]}, True),
        ({"prefix": "/", "query_parameters": [{"name": "p", "present_match": True}]}, False),
        ({"prefix": "/", "grpc": {}}, False),
        ({"prefix": "/", "runtime_fraction": {"default_value": {"numerator": 0}}}, False),
        ({"connect_matcher": {}}, False),
    ],
)
def test_a_route_takes_a_request_whose_every_condition_holds(
    match: dict[str, Any], taken: bool
) -> None:
    headers = Headers({":method": "GET", "x": "1"}, complete=True)
    found = match_route({"routes": [{"match": match}]}, headers, "/a/b?q=1")
    assert bool(found.candidates) is taken
    assert bool(found.passed_over) is not taken
    assert found.certain is taken


def test_what_a_log_does_not_show_leaves_several_routes() -> None:
    unknown = {"prefix": "/", "headers": [{"name": "user", "string_match": {"exact": "x"}}]}
    routes = [{"match": unknown}, {"match": {"prefix": "/a"}}, {"match": {"prefix": "/"}}]
    found = match_route({"routes": routes}, Headers({":method": "GET"}), "/a")
    assert [candidate.position for candidate in found.candidates] == [0, 1]
    assert "user is not known" in found.candidates[0].unless
    assert found.certain
