"""Pictures as HTML and SVG, without any script."""

from __future__ import annotations

import re

import pytest

from meshnb.guides.pictures import Edge, MeshGraph, Node, State, mesh_graph, sync
from meshnb.views.graph import _Layout
from meshnb.views.pictures import picture
from tests.cases import case_of
from tests.conftest import recording_names


def _graph(name: str) -> MeshGraph:
    case = case_of(name)
    graph = mesh_graph(case.facts, case.mesh, case.symptoms)
    assert graph is not None
    return graph


def test_broken_edges_carry_their_count_and_their_reason() -> None:
    html = picture(_graph("subset-missing"))
    assert "✗ 503 NC 13 of 15" in html
    assert "✗ 503 NC 29 of 30" in html
    assert html.count("<title>503 NC (cluster not found)</title>") == 4


def test_the_graph_says_what_is_broken_to_those_who_do_not_see_it() -> None:
    html = picture(_graph("subset-missing"))
    (label,) = re.findall(r'role="img" aria-label="([^"]*)"', html)
    assert label == (
        "Who calls whom. Broken: client to reviews: 503 NC (cluster not found); "
        "productpage to reviews: 503 NC (cluster not found)."
    )
    assert "The same in words" in html


@pytest.mark.parametrize("name", recording_names())
def test_no_node_covers_another_and_everything_is_within_the_picture(name: str) -> None:
    case = case_of(name)
    graph = mesh_graph(case.facts, case.mesh, case.symptoms)
    if graph is None:
        assert not len(case.facts["access_log"])
        return
    layout = _Layout(graph)
    right, bottom = layout.size
    corners = layout.corners
    for place, (x, y) in enumerate(corners):
        assert 0 <= x <= right - 168
        assert 0 <= y <= bottom - 46
        for other_x, other_y in corners[:place]:
            assert abs(x - other_x) >= 168 or abs(y - other_y) >= 46
    for edge in graph.edges:
        for x, y in layout.route(edge):
            assert 0 <= x <= right
            assert 0 <= y <= bottom


def test_a_call_leads_to_the_right_unless_it_closes_a_ring() -> None:
    graph = _graph("healthy")
    layout = _Layout(graph)
    for edge in graph.edges:
        assert layout.corners[edge.source][0] < layout.corners[edge.target][0]


def test_a_ring_of_calls_can_be_drawn() -> None:
    nodes = tuple(Node(name, "", "service") for name in "abc")
    edges = (Edge(0, 1, 1, 0), Edge(1, 2, 1, 0), Edge(2, 0, 1, 1, State.BROKEN, "503"))
    html = picture(MeshGraph("a ring", nodes, edges, 3))
    assert html.count('class="mnb-head"') == 3


def test_what_is_left_out_of_a_picture_is_counted() -> None:
    nodes = (Node("a", "", "service"),)
    assert "a mesh · 1 of 90" in picture(MeshGraph("a mesh", nodes, (), 90))


def test_each_cell_of_the_heat_map_has_a_sign_a_word_and_an_age() -> None:
    shown = sync(case_of("envoyfilter-rejected").facts)
    assert shown is not None
    html = picture(shown)
    assert html.count('<td class="mnb-broken"><span aria-hidden="true">✗</span> ERROR') == 6
    assert '<span class="mnb-age">29 s</span>' in html
    assert html.count('<th scope="row">') == 7
