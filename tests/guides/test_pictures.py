"""What pictures show, as values: read from recordings, compared with what is known of them."""

from __future__ import annotations

import pytest

from meshnb.guides.meanings import HOPS, meaning
from meshnb.guides.pictures import (
    Chain,
    MeshGraph,
    State,
    age,
    certificates,
    change,
    istiod_ports,
    mesh_graph,
    request,
    sync,
)
from meshnb.traces.mesh import ConfigObject
from tests.cases import case_of
from tests.conftest import recording_names


def _graph(name: str) -> MeshGraph:
    case = case_of(name)
    graph = mesh_graph(case.facts, case.mesh, case.symptoms)
    assert graph is not None
    return graph


def _edges(graph: MeshGraph, state: State) -> dict[tuple[str, str], tuple[int, int]]:
    return {
        (graph.nodes[edge.source].name, graph.nodes[edge.target].name): (edge.failed, edge.count)
        for edge in graph.edges
        if edge.state is state
    }


def _object(name: str, text: str) -> ConfigObject:
    return next(item for item in case_of(name).mesh.objects if str(item) == text)


def _chain(name: str, text: str) -> Chain:
    case = case_of(name)
    return change(case.facts, _object(name, text), case.diagnosis.outcomes)


def test_the_broken_edges_are_where_failures_began_and_count_each_of_them() -> None:
    graph = _graph("subset-missing")
    broken = _edges(graph, State.BROKEN)
    assert broken == {("client", "reviews"): (13, 15), ("productpage", "reviews"): (29, 30)}
    assert (
        sum(failed for failed, _ in broken.values())
        == case_of("subset-missing").symptoms.found[0].count
    )


def test_an_edge_says_why_it_is_broken() -> None:
    graph = _graph("subset-missing")
    assert {edge.note for edge in graph.edges if edge.state is State.BROKEN} == {
        "503 NC (cluster not found)"
    }


def test_a_failure_that_only_the_servers_proxy_explains_breaks_the_edge_to_that_server() -> None:
    broken = _edges(_graph("app-wrong-port"), State.BROKEN)
    assert {target for _, target in broken} == {"ratings"}
    assert {source for source, _ in broken} == {"client", "reviews"}


def test_a_403_is_counted_although_callers_only_pass_it_on() -> None:
    broken = _edges(_graph("authz-principal-typo"), State.BROKEN)
    assert broken == {("client", "details"): (11, 15), ("productpage", "details"): (25, 30)}


def test_a_caller_without_a_proxy_stands_outside() -> None:
    broken = _edges(_graph("mtls-strict-legacy-client"), State.BROKEN)
    assert broken == {("outside the mesh", "ratings"): (9, 10)}


def test_a_request_that_the_gateway_itself_refuses_breaks_the_edge_to_the_gateway() -> None:
    broken = _edges(_graph("gateway-hosts-disjoint"), State.BROKEN)
    assert list(broken) == [("outside the mesh", "istio-ingressgateway")]


@pytest.mark.parametrize("name", ["healthy", "healthy-loaded", "market-healthy"])
def test_in_a_healthy_mesh_no_edge_and_no_node_is_marked(name: str) -> None:
    graph = _graph(name)
    assert {edge.state for edge in graph.edges} == {State.FINE}
    assert {node.state for node in graph.nodes} == {State.FINE}


def test_a_service_is_one_node_with_all_its_workloads() -> None:
    (reviews,) = [node for node in _graph("healthy").nodes if node.name == "reviews"]
    assert reviews.kind == "service"
    assert reviews.detail == "reviews-v1, reviews-v2"


def test_a_pod_that_waits_marks_its_node() -> None:
    (ratings,) = [node for node in _graph("not-ready-endpoint").nodes if node.name == "ratings"]
    assert ratings.state is State.BROKEN
    assert ratings.note == "1 not ready"


def test_a_request_is_followed_to_the_hop_where_it_ended() -> None:
    case = case_of("subset-missing")
    chain = request(case.symptoms.found[0], case.mesh)
    assert chain is not None
    states = {link.title: link.state for link in chain.links}
    assert [title for title, state in states.items() if state is State.BROKEN] == ["the cluster"]
    assert [title for title, state in states.items() if state is State.FINE] == [
        "the caller",
        "the listener",
        "the route",
    ]


@pytest.mark.parametrize(
    ("name", "hop"),
    [
        ("gateway-hosts-disjoint", "the route"),
        ("route-host-unknown", "the cluster"),
        ("service-selector-wrong", "the endpoint"),
        ("mtls-client-disable", "the connection"),
        ("tls-to-plaintext", "the connection"),
        ("authz-principal-typo", "the policies"),
        ("rate-limited", "the policies"),
        ("mtls-strict-legacy-client", "the listener"),
        ("fault-left-behind", "the route"),
        ("app-5xx", "the application"),
        ("app-wrong-port", "the application"),
        ("app-resets", "the application"),
        ("app-slow", "the application"),
        ("port-name-grpc", "the application"),
    ],
)
def test_flags_and_details_point_to_a_hop(name: str, hop: str) -> None:
    (cause, *_) = case_of(name).diagnosis.problems
    failure = next(symptom for symptom in cause.explains if symptom.failures).failures[-1]
    words, found = meaning(failure)
    assert found == hop
    assert words


@pytest.mark.parametrize("name", recording_names())
def test_every_failed_request_has_a_path_with_exactly_one_broken_hop(name: str) -> None:
    case = case_of(name)
    for symptom in case.symptoms:
        chain = request(symptom, case.mesh)
        assert (chain is None) == (not symptom.failures)
        if chain is not None:
            assert sum(link.state is State.BROKEN for link in chain.links) == 1
            assert {link.title for link in chain.links} <= set(HOPS)


def test_a_change_is_followed_to_its_first_broken_rung() -> None:
    chain = _chain("subset-missing", "VirtualService bookinfo/reviews")
    assert [(link.title, link.state) for link in chain.links] == [
        ("stored", State.FINE),
        ("sound", State.BROKEN),
        ("sent", State.FINE),
        ("accepted", State.FINE),
        ("in use", State.FINE),
    ]


def test_an_object_that_proxies_refuse_breaks_at_the_rung_of_acceptance() -> None:
    chain = _chain("envoyfilter-rejected", "EnvoyFilter bookinfo/broken-lua")
    states = {link.title: link for link in chain.links}
    assert states["accepted"].state is State.BROKEN
    assert "6 proxies refuse LDS" in states["accepted"].detail


def test_what_a_lost_proxy_did_not_take_is_said() -> None:
    chain = _chain("istiod-unreachable-stale", "VirtualService bookinfo/reviews")
    states = {link.title: link for link in chain.links}
    assert states["accepted"].state is State.BROKEN
    assert "reviews-v2" in states["accepted"].detail


def test_an_object_in_a_mesh_without_istiod_has_unknown_rungs() -> None:
    chain = _chain("istiod-down", "VirtualService bookinfo/reviews")
    states = {link.title: link.state for link in chain.links}
    assert states["sent"] is State.UNKNOWN
    assert states["accepted"] is State.UNKNOWN


def test_the_ports_of_istiod_are_on_the_map_with_their_users() -> None:
    ports = istiod_ports(case_of("healthy").facts)
    assert ports is not None
    assert {port.port: port.state for port in ports.ports} == dict.fromkeys(
        (8080, 9876, 15010, 15012, 15014, 15017), State.FINE
    )
    (discovery,) = [port for port in ports.ports if port.port == 15012]
    assert discovery.used_by == "every proxy"


def test_without_an_istiod_there_is_no_map_of_its_ports() -> None:
    assert istiod_ports(case_of("istiod-down").facts) is None


def test_proxies_that_refuse_stand_on_top_of_the_map_with_the_age() -> None:
    shown = sync(case_of("envoyfilter-rejected").facts)
    assert shown is not None
    refusing = [
        proxy
        for proxy, cells in shown.rows
        if cells[shown.kinds.index("LDS")].state is State.BROKEN
    ]
    assert len(refusing) == 6
    assert refusing == [proxy for proxy, _ in shown.rows[:6]]
    cell = shown.rows[0][1][shown.kinds.index("LDS")]
    assert (cell.word, cell.age) == ("ERROR", "29 s")


def test_a_proxy_that_no_istiod_knows_is_on_the_map_as_well() -> None:
    shown = sync(case_of("istiod-unreachable-stale").facts)
    assert shown is not None
    proxy, cells = shown.rows[0]
    assert proxy == "reviews-v2-79bdb4f448-sdvj9.bookinfo"
    assert {cell.word for cell in cells} == {"not connected"}


def test_in_a_healthy_mesh_every_cell_is_fine_or_has_nothing_to_say() -> None:
    shown = sync(case_of("healthy").facts)
    assert shown is not None
    assert {cell.state for _, cells in shown.rows for cell in cells} == {
        State.FINE,
        State.UNREACHED,
    }


def test_certificates_are_judged_by_the_time_of_the_recording() -> None:
    line = certificates(case_of("healthy").facts)
    assert line is not None
    assert line.now == case_of("healthy").facts.now
    assert len(line.spans) == 7
    assert {span.state for span in line.spans} == {State.FINE}
    assert all(span.note == "ends in 24 h" for span in line.spans)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(None, ""), (0.4, "0 s"), (31.4, "31 s"), (600, "10 min"), (8000, "2 h"), (2e5, "2 d")],
)
def test_an_age_is_told_in_one_unit(seconds: float | None, told: str) -> None:
    assert age(seconds) == told


@pytest.mark.parametrize("name", ["subset-missing", "envoyfilter-rejected", "healthy"])
def test_every_picture_says_in_words_what_it_shows(name: str) -> None:
    case = case_of(name)
    for picture in (
        mesh_graph(case.facts, case.mesh, case.symptoms),
        istiod_ports(case.facts),
        sync(case.facts),
        certificates(case.facts),
    ):
        assert picture is not None
        lines = list(picture.lines())
        assert lines
        assert all(line[0] in {state.sign for state in State} for line in lines)


def test_no_two_states_have_one_sign_or_one_word() -> None:
    assert len({state.sign for state in State}) == len(State)
    assert len({state.word for state in State}) == len(State)
