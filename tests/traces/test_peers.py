"""Who sent a request, where the log shows the client that X-Forwarded-For names."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshnb.tables import Facts
from meshnb.traces.ends.places import running_pod
from meshnb.traces.envoy.matchers import Undecided
from meshnb.traces.failures import FAILURES
from meshnb.traces.following.identities import Identities
from meshnb.traces.following.inbound import SENT, Inbound
from meshnb.traces.mesh import MESH
from meshnb.traces.peers import is_forwarded
from meshnb.traces.request import Request, follow_request
from tests.alteration import Altered, Line

_CLIENT = "203.0.113.9"


def _forwarded(line: Line) -> list[Line]:
    """Let a server's proxy take the client from X-Forwarded-For, as behind a gateway."""
    return [line._replace(forwarded=_CLIENT, remote=f"{_CLIENT}:0") if line.inbound else line]


def _alone(line: Line) -> list[Line]:
    """Do the same, and lose the lines of the callers."""
    return _forwarded(line) if line.inbound else []


def _row(facts: Facts) -> int:
    """Return a line of details that productpage's request wrote."""
    log = facts["access_log"]
    chosen = log[log["proxy"].str.startswith("details") & (log["direction"] == "inbound")]
    senders = log.loc[log["proxy"].str.startswith("productpage"), "request_id"]
    called = chosen[chosen["request_id"].isin(senders.dropna())]
    return int((called if len(called) else chosen).index[0])


def test_the_peer_is_who_logged_the_same_id_and_this_endpoint(tmp_path: Path) -> None:
    """Altered: details takes the client from X-Forwarded-For."""
    facts = Altered("healthy", tmp_path).lines("", _forwarded).facts()
    request = Request.of_line(facts, _row(facts))
    caller = running_pod(MESH.make(facts), "productpage-v1")
    assert caller is not None
    assert request.source == caller.address
    assert dict(request.headers)["x-forwarded-for"] == _CLIENT
    line = facts["access_log"].iloc[_row(facts)]
    met = Inbound(facts, MESH.make(facts)).meet({name: line[name] for name in SENT})
    assert not isinstance(met, Undecided)
    assert met.arrival.names == Identities(facts, MESH.make(facts)).names(caller)
    assert (met.arrival.source, met.arrival.remote) == (request.source, _CLIENT)


def test_without_the_callers_line_the_peer_is_not_known(tmp_path: Path) -> None:
    """Altered: the same, and no caller's log is left; details admits nobody that there is."""
    rule = {"from": [{"source": {"principals": ["cluster.local/ns/bookinfo/sa/nobody"]}}]}
    altered = Altered("healthy", tmp_path).lines("", _alone)
    altered.add(
        "authorizationpolicies",
        "few",
        "bookinfo",
        "2026-01-01T00:00:00Z",
        spec={"selector": {"matchLabels": {"app": "details"}}, "rules": [rule]},
    )
    facts = altered.facts()
    request = Request.of_line(facts, _row(facts))
    assert not request.source
    trace = follow_request(facts, request)
    assert any("who sent it to the proxy is not known" in one for one in trace.undecided)


@pytest.mark.parametrize(
    ("direction", "remote", "forwarded", "expected"),
    [
        ("inbound", "203.0.113.9:0", None, True),
        ("inbound", "203.0.113.9", "198.51.100.1, 203.0.113.9", True),
        ("inbound", "10.0.0.7:4711", None, False),
        # A gateway adds the peer to the header, and that is the peer.
        ("outbound", "203.0.113.9:4711", "203.0.113.9", False),
    ],
)
def test_a_remote_address_is_forwarded_if_the_header_names_it(
    direction: str, remote: str, forwarded: str | None, expected: bool
) -> None:
    line = {
        "direction": direction,
        "downstream_remote_address": remote,
        "x_forwarded_for": forwarded,
    }
    assert is_forwarded(line) is expected


def test_a_failure_has_no_peer_address_where_the_log_shows_a_forwarded_one(tmp_path: Path) -> None:
    """Altered: details' failures are of a client behind a gateway."""
    facts = Altered("app-5xx", tmp_path).lines("", _forwarded).facts()
    found = [one for one in FAILURES.make(facts) if one.direction == "inbound"]
    assert found
    assert {(one.peer_address, one.remote_address) for one in found} == {("", f"{_CLIENT}:0")}
