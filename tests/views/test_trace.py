"""Traces as cards to choose from: where it broke, by which rows, and what cannot be decided."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ipywidgets
import pytest

from meshnb.guides import Case
from meshnb.guides.journeys import journey
from meshnb.guides.pictures import State
from meshnb.sources import open_source
from meshnb.sources.base import HttpQuestion
from meshnb.tables import Facts
from meshnb.views import ChangeView, ConnectionView, RequestView, SourceChooser
from meshnb.views.journey import WIDTH, _Layout, height
from meshnb.views.trace import TraceView
from tests.cases import case_of, part_of
from tests.conftest import recording_names
from tests.widgets import control, parts, shown

VIEWS = (RequestView, ChangeView, ConnectionView)
JASON = "GET /reviews/0 with header end-user: jason from pod client to reviews:9080"


def _state(view: TraceView) -> State:
    assert view.account is not None
    return view.account.state


# --- One request ---------------------------------------------------------------------------------


def test_a_request_in_words_is_followed_to_the_hop_where_it_ends() -> None:
    view = RequestView(case_of("subset-missing"), JASON)
    assert _state(view) is State.BROKEN
    html = view.html()
    assert "It is answered 503 NC cluster_not_found by client.bookinfo." in html
    (end,) = re.findall(r"<details open><summary>(.*?)</summary>", html)
    assert "cluster" in end
    assert "it ends here" in end
    assert "reviews:9080</title>" in html
    assert "· not reached" in html


def test_each_hop_opens_to_its_row_its_resource_and_its_object() -> None:
    html = RequestView(case_of("subset-missing"), JASON).html()
    html = html[html.index("</svg>") :]
    route = html[html.index("route 0 (/*) takes it.") : html.index("The proxy has no cluster")]
    assert "routes row 6, from GET bookinfo/client:15000/config_dump?include_eds" in route
    assert "<code>9080 / reviews.bookinfo.svc.cluster.local:9080 / 0</code>" in route
    assert "outbound|9080|v3|reviews.bookinfo.svc.cluster.local" in route
    assert "Made from <code>VirtualService bookinfo/reviews</code>" in route
    assert "        subset: v3" in route
    assert "istioctl proxy-config route client.bookinfo" in route


def test_what_was_passed_over_is_told_with_the_reason() -> None:
    html = RequestView(case_of("subset-missing"), JASON).html()
    assert "<strong>allow_any</strong>: reviews is closer to reviews than *" in html


def test_the_first_request_offered_is_one_that_failed_as_its_client_saw_it() -> None:
    view = RequestView(case_of("mtls-client-disable"))
    choice = control(view, "A request of the logs")
    label = {value: text for text, value in choice.options}[choice.value]
    assert label.startswith("✗ ")
    assert "GET /ratings/*" in label
    assert label.endswith("log of client.bookinfo")
    assert "The log of client.bookinfo has 503 UC" in view.html()


def test_alike_requests_are_offered_once_and_what_went_well_comes_last() -> None:
    options = control(RequestView(case_of("subset-missing")), "A request of the logs").options
    signs = [text[0] for text, _ in options]
    assert signs == sorted(signs, reverse=True)
    assert len({text for text, _ in options}) == len(options)
    assert len(options) < len(case_of("subset-missing").facts["access_log"]) / 4


def test_choosing_a_line_clears_the_words_and_words_clear_the_choice() -> None:
    view = RequestView(case_of("subset-missing"))
    choice, words = control(view, "A request of the logs"), control(view, "or in words")
    words.value = JASON
    assert choice.value is None
    assert "end-user: jason" in shown(view)
    choice.value = choice.options[0][1]
    assert words.value == ""
    assert "end-user: jason" not in shown(view)


def test_a_chance_is_no_verdict() -> None:
    view = RequestView(case_of("fault-left-behind"), "GET /ratings/0 from client to ratings:9080")
    assert _state(view) is State.ODD
    assert "varies" in view.html()
    assert "50% of requests" in view.text()


def test_where_nobody_writes_lines_a_request_is_made_up_that_could_be_sent() -> None:
    view = RequestView(case_of("ztunnel-deny"))
    assert control(view, "or in words").value.startswith("GET / from web-")
    assert _state(view) is State.BROKEN
    assert "AuthorizationPolicy" in view.html()
    assert "  at \n" not in view.text()


def test_a_proxy_that_did_not_answer_leaves_it_undecided_and_says_so() -> None:
    case = part_of(
        "healthy",
        lambda q: not (isinstance(q, HttpQuestion) and q.pod == "client" and "dump" in q.path),
    )
    view = RequestView(case, JASON)
    assert _state(view) is State.UNKNOWN
    assert "client.bookinfo did not say what it holds" in view.html()
    assert "What cannot be decided, and why:" in view.html()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("GET /reviews from clint to reviews:9080", "Did you mean client"),
        ("GET /reviews from client", "It is not said where the request goes to."),
        ("GET /reviews from client to reviews:http", "is no port"),
    ],
)
def test_words_that_describe_no_request_are_a_card_that_says_what_is_missing(
    words: str, said: str
) -> None:
    view = RequestView(case_of("subset-missing"), words)
    assert view.account is None
    assert 'role="alert"' in view.html()
    assert said in view.html()
    assert view.text().startswith("✗ ")


# --- One change ----------------------------------------------------------------------------------


def test_the_ladder_marks_the_first_broken_rung() -> None:
    view = ChangeView(case_of("envoyfilter-rejected"))
    assert control(view, "Object").value == "EnvoyFilter/bookinfo/broken-lua"
    html = view.html()
    assert re.findall(r'<span class="mnb-name">(\w+)</span>', html) == [
        *("stored", "valid", "selected", "seen", "pushed", "accepted", "active", "used")
    ]
    (broken,) = re.findall(
        r'<li class="mnb-broken"><span class="mnb-dot"[^>]*>✗</span>(.*?)<br>', html
    )
    assert "accepted" in broken
    assert "it stops here" in html
    assert "script load error" in html
    assert "The object as it is stored" in html


def test_each_rung_opens_to_the_proxies_on_it_the_broken_ones_at_once() -> None:
    html = ChangeView(case_of("envoyfilter-rejected")).html()
    assert html.count("<summary>6 proxies</summary>") >= 4
    assert html.count("<details open><summary>6 proxies</summary>") == 1
    assert "proxy_status row" in html


def test_an_object_can_be_asked_for_by_name_and_the_nearest_is_offered() -> None:
    view = ChangeView(case_of("subset-missing"))
    view.ask("DestinationRule/bookinfo/reviews")
    assert _state(view) is State.FINE
    assert "in force" in view.html()
    view.ask("DestinationRule/bookinfo/review")
    assert view.account is None
    assert "Did you mean DestinationRule/bookinfo/reviews" in view.html()


def test_every_object_is_offered_with_when_it_was_changed_and_can_be_followed() -> None:
    view = ChangeView(case_of("healthy"))
    choice = control(view, "Object")
    for label, value in choice.options:
        choice.value = value
        assert view.account is not None, label
    assert choice.options[-1] == ("MeshConfig, the mesh's settings", "MeshConfig")
    assert all("changed 2026-" in label for label, _ in choice.options[:-1])


# --- One connection ------------------------------------------------------------------------------


def test_both_ends_stand_side_by_side_and_the_one_at_fault_is_marked() -> None:
    view = ConnectionView(case_of("mtls-client-disable"))
    client, server = re.findall(r'<div class="mnb-end (mnb-\w+)"><h3>(.*?)</h3>', view.html())
    assert client[0] == "mnb-broken"
    assert client[1].startswith("client: client.bookinfo ")
    assert "at fault" in client[1]
    assert server == ("mnb-fine", "server: ratings-v1-589dc858f-xrq2g.bookinfo:9080")
    assert "DestinationRule bookinfo/ratings" in view.html()
    assert "PeerAuthentication bookinfo/default" in view.html()


def test_certificates_of_both_ends_stand_on_lines_of_time() -> None:
    html = ConnectionView(case_of("healthy"), "client.bookinfo", "ratings.bookinfo:9080").html()
    rows = re.findall(r'<th scope="row">(.*?)</th>', html)
    assert rows == [
        "client shows spiffe://cluster.local/ns/bookinfo/sa/default",
        "server shows spiffe://cluster.local/ns/bookinfo/sa/ratings",
        "client sends along O=cluster.local",
        "client trusts O=cluster.local",
        "server sends along O=cluster.local",
        "server trusts O=cluster.local",
    ]
    assert "ends in 24 h" in html


def test_either_end_can_be_chosen() -> None:
    view = ConnectionView(case_of("mtls-client-disable"))
    control(view, "Server").value = "details.bookinfo:9080"
    assert _state(view) is State.FINE
    control(view, "Client").value = "outside"
    assert _state(view) is State.BROKEN
    control(view, "or another server").value = "nobody.nowhere:1"
    assert view.account is None
    assert "nobody.nowhere" in view.html()


def test_a_server_that_nobody_recorded_leaves_it_undecided() -> None:
    view = ConnectionView(case_of("healthy"), "client.bookinfo", "203.0.113.7:443")
    assert _state(view) is State.UNKNOWN
    assert "nobody recorded what is there" in view.text()


# --- All of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recording_names())
def test_each_recording_has_something_to_follow_and_the_text_says_what_the_card_says(
    name: str,
) -> None:
    for kind in VIEWS:
        view: Any = kind(case_of(name))
        assert view.account is not None, view.text()
        bundle = view._repr_mimebundle_()
        assert bundle["text/plain"] == view.text()
        assert view.html() in bundle["text/html"]
        assert view.text().splitlines()[0].endswith(view.account.title)
        assert view.account.says in view.text()
        assert sum(line.startswith("    ") for line in view.text().splitlines()) == len(
            view.account.parts
        )


@pytest.mark.parametrize("name", recording_names())
def test_no_box_of_the_way_covers_another(name: str) -> None:
    for kind in (RequestView, ConnectionView):
        view: Any = kind(case_of(name))
        drawn = journey(view.account)
        layout = _Layout(drawn)
        boxes = [(*layout.corners[place], height(stay)) for place, stay in enumerate(drawn.stays)]
        for place, (x, y, high) in enumerate(boxes):
            assert x + WIDTH <= layout.size[0]
            assert y + high <= layout.size[1]
            for left, top, tall in boxes[:place]:
                assert abs(x - left) >= WIDTH or y >= top + tall or top >= y + high


def test_what_is_broken_has_a_sign_and_a_word_and_not_only_a_colour() -> None:
    html = RequestView(case_of("subset-missing"), JASON).html()
    picture = html[html.index("<svg") : html.index("</svg>")]
    assert ">✗</text>" in picture
    assert ">cluster (stopped)</text>" in picture
    assert 'role="img" aria-label="✗ client.bookinfo: ✓ listener' in picture


def test_every_control_has_a_label() -> None:
    for kind in VIEWS:
        view: Any = kind(case_of("healthy"))
        controls = [
            part for part in parts(view) if isinstance(part, ipywidgets.Dropdown | ipywidgets.Text)
        ]
        assert len(controls) >= 2
        assert all(part.description for part in controls)


def test_traces_follow_what_is_chosen() -> None:
    chooser = SourceChooser("recorded:subset-missing")
    views = [kind(chooser) for kind in VIEWS]
    chooser.choose("recorded:healthy")
    assert [_state(view) for view in views] == [State.FINE] * 3
    chooser.choose("recorded:nothing")
    for view in views:
        assert view.account is None
        assert view.text() == "Nothing is open yet: choose a mesh above."


def test_hops_are_listed_in_the_order_in_which_they_are_come_by() -> None:
    html = RequestView(case_of("subset-missing"), JASON).html()
    order = [html.index(f"<strong>{name}</strong>:") for name in ("listener", "route", "cluster")]
    assert order == sorted(order)


def test_of_manifests_only_a_change_can_be_followed(tmp_path: Path) -> None:
    (tmp_path / "rule.yaml").write_text(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\n"
        "metadata: {name: cart, namespace: shop}\n"
        "spec: {hosts: [cart], http: [{route: [{destination: {host: cart}}]}]}\n"
    )
    case = Case.of(Facts(open_source(tmp_path)))
    for kind in (RequestView, ConnectionView):
        view: Any = kind(case)
        assert view.account is None
        assert "No pod was recorded" in view.html()
    change = ChangeView(case)
    assert _state(change) is not State.FINE
    assert "VirtualService shop/cart" in change.text()
    assert "Manifests do not run." in change.html()


def test_each_way_is_told_under_its_condition() -> None:
    view = RequestView(case_of("healthy"), "GET /reviews/0 from client to reviews:9080")
    assert _state(view) is State.FINE
    heads = re.findall(r'<li class="mnb-where">(.*?)</li>', view.html())
    assert heads[0] == "at client.bookinfo"
    assert heads[1].startswith("at client.bookinfo, <em>if it is among the 80% for ")
    assert len([head for head in heads if "the 20%" in head]) == 3
    assert view.text().count("if it is among the 80%") == 3
