"""A filter chain is chosen step by step, the most specific first, and never gone back."""

from __future__ import annotations

from typing import Any

import pytest

from meshnb.traces.envoy.configs import ProxyConfigs
from meshnb.traces.envoy.filter_chains import HTTP1, OTHER, TLS, Connection, match_chain
from tests.conftest import facts_of

_INSPECTED = [
    {"name": "envoy.filters.listener.tls_inspector"},
    {"name": "envoy.filters.listener.http_inspector"},
]


def _listener(*matches: dict[str, Any]) -> dict[str, Any]:
    chains = [{"name": f"c{n}", "filter_chain_match": match} for n, match in enumerate(matches)]
    return {"filter_chains": chains, "listener_filters": _INSPECTED}


_TLS = Connection("10.0.0.1", 443, "10.0.0.9", 0, TLS, "a.shop.example", ("h2", "http/1.1"))


@pytest.mark.parametrize(
    ("matches", "chosen"),
    [
        ([{}, {"destination_port": 443}], "c1"),
        # the port has a chain of its own, which wants another name: nobody takes it
        ([{}, {"destination_port": 443, "server_names": ["other.example"]}], None),
        ([{"server_names": ["*.example"]}, {"server_names": ["*.shop.example"]}], "c1"),
        ([{"server_names": ["a.shop.example"]}, {"server_names": ["*.shop.example"]}], "c0"),
        ([{"server_names": ["shop.example"]}], None),
        ([{"transport_protocol": "raw_buffer"}, {"transport_protocol": "tls"}], "c1"),
        # the first that the client offers
        ([{"application_protocols": ["http/1.1"]}, {"application_protocols": ["h2"]}], "c1"),
        ([{"application_protocols": ["istio"]}, {}], "c1"),
        (
            [
                {"prefix_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]},
                {"prefix_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 24}]},
            ],
            "c1",
        ),
        ([{"source_type": "SAME_IP_OR_LOOPBACK"}, {"source_type": "EXTERNAL"}], "c1"),
        ([{"source_prefix_ranges": [{"address_prefix": "10.1.0.0", "prefix_len": 16}]}], None),
    ],
)
def test_the_most_specific_chain_takes_a_connection(
    matches: list[dict[str, Any]], chosen: str | None
) -> None:
    found = match_chain(_listener(*matches), _TLS)
    assert (None if found.chain is None else found.name) == chosen
    assert len(found.passed_over) == len(matches) - (chosen is not None)


def test_without_an_inspector_tls_is_bytes_like_others() -> None:
    listener = {**_listener({"transport_protocol": "raw_buffer"}), "listener_filters": []}
    assert match_chain(listener, _TLS).name == "c0"


def test_a_chain_by_source_cannot_be_told_without_the_source() -> None:
    ranges = [{"address_prefix": "10.1.0.0", "prefix_len": 16}]
    listener = _listener({"source_prefix_ranges": ranges})
    assert match_chain(listener, Connection("10.0.0.1", 443)).undecided


@pytest.mark.parametrize(
    ("speaks", "name"),
    [(HTTP1, "filter chain 0"), (OTHER, "PassthroughFilterChain"), (TLS, "PassthroughFilterChain")],
)
def test_a_sidecar_takes_http_to_its_routes_and_passes_on_the_rest(speaks: str, name: str) -> None:
    config = ProxyConfigs(facts_of("healthy")).of("client.bookinfo")
    assert config is not None
    connection = Connection("10.96.195.7", 9080, "10.244.0.10", 0, speaks)
    assert match_chain(config.listeners["0.0.0.0_9080"].resource, connection).name == name
