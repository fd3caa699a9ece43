"""The guides for what people see: each leads to the fault seen so, or says where to look."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from meshnb.checks import CHECKS
from meshnb.guides import GUIDES, Case, Walk
from meshnb.guides.confusable import CONFUSABLE
from meshnb.guides.focus import SIGHTS, at_hand, codes, noticed_by, obvious_sight
from meshnb.guides.pictures import Chain, Journey, State
from meshnb.guides.weak_spots import weak_spots
from meshnb.sources.base import HttpQuestion, ListQuestion, LogQuestion, Question
from tests.accuracy import names
from tests.alteration import Altered
from tests.cases import case_of, part_of
from tests.checks.test_altered import BLOCKED, EARLIER, NOWHERE, SINCE
from tests.conftest import recording_names, truth_of

HEALTHY = [name for name in recording_names() if truth_of(name)["healthy"]]
#: Words of a label's symptom, and the guide that somebody who says so opens.
_SAID = {
    "unavailable": r"\b50[0-3]\b|no healthy upstream",
    "not_found": r"\b404\b",
    "forbidden": r"\b403\b|\b429\b|denied",
    "connection": r"\breset\b|refused|TLS errors|nobody reaches|handshake",
    "slow": r"\b504\b",
    "hangs": r"\bhangs\b",
    "not_injected": r"no sidecar",
    "not_ready": r"never becomes ready|do not start",
    "change": r"configuration has no effect|changes to .* have no effect|new route|never sees",
    "policy": r"rules for .* have no effect",
}
SEEN = [
    (guide, name)
    for name in recording_names()
    if name not in HEALTHY
    for guide, words in _SAID.items()
    if re.search(words, truth_of(name)["symptom"])
]


def _walk(guide: str, recording: str) -> Walk:
    return Walk.start(GUIDES[guide], case_of(recording)).finish()


def test_every_faulty_recording_is_seen_somehow() -> None:
    assert {name for _, name in SEEN} == set(recording_names()) - set(HEALTHY)


@pytest.mark.parametrize(("guide", "name"), SEEN)
def test_who_sees_a_fault_is_led_to_it_by_the_guide_for_that(guide: str, name: str) -> None:
    truth, end = truth_of(name), _walk(guide, name)
    assert {stop.guide.name for stop in end.trail} == {guide}, "led elsewhere"
    (cause,) = end.page.causes
    subjects = (cause.subject, *cause.finding.related)
    assert any(names(truth, subject) for subject in subjects)
    assert cause.failure_class.value in truth.get("classes", [truth["class"]])
    assert cause.finding.remedy
    (told_apart,) = [stop for stop in end.trail if stop.step.name == "apart"]
    assert told_apart.verdict.startswith("It is this: ")


@pytest.mark.parametrize(("guide", "name"), SEEN)
def test_the_page_that_tells_apart_says_what_decided_and_what_was_ruled_out(
    guide: str, name: str
) -> None:
    end = _walk(guide, name)
    place = [stop.step.name for stop in end.trail].index("apart")
    page = end.back(to=place).page
    assert re.match(r"Decided by \w+, from .+\. Ruled out: \d+ of \d+\.", page.reading)
    proof, table = page.tables
    assert proof.of > 0
    assert table.of >= len(CONFUSABLE[guide])
    here = list(table.rows["here"])
    assert here[0] == "✗ this is it"
    assert here.count("✗ this is it") == 1, table.rows.to_string()
    known = [branch for branch in CONFUSABLE[guide] if branch.name == table.rows.iloc[0, 1]]
    assert known, "the fault stands in no branch of its guide"


@pytest.mark.parametrize("name", [name for name in recording_names() if name not in HEALTHY])
def test_any_guide_leads_on_to_a_fault_that_is_seen_otherwise(name: str) -> None:
    truth = truth_of(name)
    for guide in CONFUSABLE:
        if at_hand(case_of(name), guide):
            continue
        walk = Walk.start(GUIDES[guide], case_of(name))
        assert walk.page.verdict.startswith("That is not seen here: ")
        assert "What the evidence shows instead: " in walk.page.reading
        (cause,) = walk.finish().page.causes
        assert any(names(truth, one) for one in (cause.subject, *cause.finding.related))


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("guide", list(CONFUSABLE))
def test_on_a_healthy_mesh_a_guide_says_that_it_is_not_seen_and_where_to_look(
    guide: str, name: str
) -> None:
    walk = Walk.start(GUIDES[guide], case_of(name))
    assert walk.page.verdict == f"That is not seen here: {SIGHTS[guide]}."
    assert walk.page.state is State.FINE
    assert re.search(r"\d+ lines? in the access logs, \d+ pods? and \d+ events?", walk.page.reading)
    assert [fork.guide for fork in walk.forks] == ["check_mesh", ""]


@pytest.mark.parametrize("guide", list(CONFUSABLE))
def test_who_goes_on_all_the_same_is_told_nothing_wrong(guide: str) -> None:
    walk = Walk.start(GUIDES[guide], case_of("healthy"))
    walk = walk.choose(walk.forks[1].value).next()
    while not walk.ended:
        assert walk.page.state is not State.BROKEN, walk.page.verdict
        pick = walk.page.pick
        if pick is not None and pick.asks_first and pick.obvious:
            walk = walk.choose(pick.obvious)
            assert walk.page.state is not State.BROKEN, walk.page.verdict
        if walk.here.step.name == "apart":
            assert walk.page.verdict == "Nothing is found that would make this."
        walk = walk.next()
    assert walk.page.causes == ()
    assert [fork.guide for fork in walk.forks] == ["check_mesh"]


_HELD_BACK: dict[str, Callable[[Question], bool]] = {
    "access logs": lambda q: isinstance(q, LogQuestion),
    "pods": lambda q: isinstance(q, ListQuestion) and q.resource == "pods",
    "events": lambda q: isinstance(q, ListQuestion) and q.resource == "events",
}


@pytest.mark.parametrize("missing", list(_HELD_BACK))
def test_what_was_not_recorded_is_unknown_and_not_fine(missing: str) -> None:
    held = _HELD_BACK[missing]
    case = part_of("healthy", lambda question: not held(question))
    for guide in CONFUSABLE:
        page = Walk.start(GUIDES[guide], case).page
        assert page.state is State.UNKNOWN, guide
        assert page.verdict.startswith("Whether it happens cannot be told: ")
        assert "Not everything could be seen: " in page.reading


def test_without_access_logs_the_fault_is_found_by_what_proxies_hold() -> None:
    case = part_of("subset-missing", lambda question: not isinstance(question, LogQuestion))
    walk = Walk.start(GUIDES["unavailable"], case)
    assert walk.page.state is State.UNKNOWN
    (cause,) = walk.finish().page.causes
    assert str(cause.subject) == "VirtualService bookinfo/reviews"


def test_a_branch_that_could_not_be_decided_is_unknown_with_the_reason() -> None:
    def kept(question: Question) -> bool:
        return not (isinstance(question, HttpQuestion) and question.port == 15000)

    end = Walk.start(GUIDES["forbidden"], part_of("authz-deny-named", kept)).finish()
    place = [stop.step.name for stop in end.trail].index("apart")
    page = end.back(to=place).page
    assert "Not known: " in page.reading
    because = page.tables[-1].rows.set_index("here")["because"]
    assert all("could not be decided, because" in text for text in because.loc[["? unknown"]])


# --- What each guide asks and shows ---------------------------------------------------------------

#: For each guide that asks: a recording, the step that asks, the right answer, and words of the
#: answer with names of that mesh.
_ASKING = [
    ("unavailable", "subset-missing", "ended", "the cluster", "503 NC cluster_not_found"),
    ("not_found", "gateway-name-wrong", "answerer", "gateway", "istio-ingressgateway"),
    ("forbidden", "authz-principal-typo", "refuser", "none", "bookinfo/details-v1"),
    ("forbidden", "authz-deny-named", "refuser", "deny", "no-strangers"),
    ("forbidden", "rate-limited", "refuser", "limit", "429 RL"),
    ("forbidden", "ztunnel-deny", "refuser", "ztunnel", "policy rejection"),
    ("connection", "mtls-strict-legacy-client", "ended", "the listener", "filter_chain_not_found"),
    ("slow", "app-slow", "answerer", "client", "time that the route allows"),
    ("hangs", "server-first-undeclared", "protocol", "client", "mail is one of them"),
    ("not_injected", "not-injected-annotation", "decision", "pod", "labels or annotations"),
    ("not_injected", "revision-unknown", "decision", "webhook", "none serves that"),
    ("not_ready", "istiod-down", "lacking", "made", "cannot be made"),
    ("not_ready", "app-crash-loop", "lacking", "application", "details is"),
    ("not_ready", "bootstrap-wrong-discovery", "lacking", "both", "ratings-v1"),
    ("change", "envoyfilter-rejected", "rung", "accepted", "broken-lua"),
    ("change", "duplicate-virtualservice", "rung", "selected", "details-canary"),
    ("policy", "waypoint-missing", "rung", "selected", "garden-wp"),
    ("external", "healthy", "leaving", "ALLOW_ANY", "outboundTrafficPolicy.mode ALLOW_ANY"),
    ("check_mesh", "healthy", "port", "15012", "xDS and certificate signing"),
]


@pytest.mark.parametrize(("guide", "recording", "step", "right", "words"), _ASKING)
def test_a_guide_asks_before_it_tells_and_tells_with_names_of_this_mesh(
    guide: str, recording: str, step: str, right: str, words: str
) -> None:
    walk = Walk.start(GUIDES[guide], case_of(recording))
    walk = walk.choose(walk.forks[-1].value)
    while walk.here.step.name != step:
        walk = walk.next()
    pick = walk.page.pick
    assert pick is not None
    assert pick.asks_first
    assert pick.obvious == right
    assert walk.page.state is State.UNKNOWN
    assert words not in walk.page.verdict + walk.page.reading
    told = walk.choose(right).page
    assert words in told.reading, told.reading
    assert told.reading.startswith("That is it")
    wrong = next(option.value for option in pick.options if option.value != right)
    assert walk.choose(wrong).page.reading.startswith("Not ")
    assert walk.choose(wrong).page.verdict == told.verdict


def test_every_guide_asks_once_before_it_tells() -> None:
    assert {guide for guide, *_ in _ASKING} | {"unauthorized"} == set(SIGHTS)


@pytest.mark.parametrize(
    ("guide", "recording", "step", "picture", "words"),
    [
        ("unavailable", "subset-missing", "way", Journey, "no cluster outbound|9080|v3|reviews"),
        ("not_found", "gateway-hosts-disjoint", "way", Journey, "No route of blackhole:8080"),
        ("forbidden", "authz-principal-typo", "way", Journey, "sa/product-page, but it is"),
        ("connection", "mtls-client-disable", "ends", Journey, "takes plain HTTP/1.1"),
        ("connection", "https-to-http-port", "ends", Journey, "productpage"),
        ("change", "envoyfilter-rejected", "rung", Chain, "no further than the rung “accepted”"),
        ("policy", "waypoint-missing", "rung", Chain, "no further than the rung “selected”"),
    ],
)
def test_where_something_can_be_followed_it_is_followed_to_where_it_ends(
    guide: str, recording: str, step: str, picture: type, words: str
) -> None:
    end = _walk(guide, recording)
    place = [stop.step.name for stop in end.trail].index(step)
    page = end.back(to=place).page
    assert isinstance(page.picture, picture)
    assert words in page.verdict
    assert page.state is State.BROKEN
    assert page.command


def test_what_no_proxy_stops_is_said_to_fail_behind_the_last_one() -> None:
    end = _walk("unavailable", "app-wrong-port")
    page = end.back(to=2).page
    assert page.state is State.ODD
    assert page.verdict.startswith("No proxy stops it: ")


@pytest.mark.parametrize("guide", list(SIGHTS))
def test_every_step_of_every_guide_names_a_command_that_shows_the_same(guide: str) -> None:
    for recording in ("subset-missing", "route-shadowed", "bootstrap-wrong-discovery"):
        walk = Walk.start(GUIDES[guide], case_of(recording))
        if walk.forks:
            walk = walk.choose(walk.forks[-1].value)
        while not walk.ended:
            assert walk.page.command, (recording, walk.here.step.name)
            assert "{" not in walk.page.command
            walk = walk.next()


# --- Faults that no recording has -----------------------------------------------------------------


@pytest.fixture
def altered(tmp_path: Path) -> Altered:
    """Return the recording of a healthy mesh, to be altered."""
    return Altered("healthy", tmp_path)


def _tokens_expired(altered: Altered) -> None:
    rules = [{"issuer": "https://issuer.example.org"}]
    spec = {"selector": {"matchLabels": {"app": "ratings"}}, "jwtRules": rules}
    altered.add("requestauthentications", "tokens", "bookinfo", EARLIER, spec=spec)
    details = "jwt_authn_access_denied{Jwt_is_expired}"
    caller = "10.244.0.10"
    altered.at_server("ratings:9080", SINCE, caller=caller, code="401", details=details, **NOWHERE)


def _host_not_registered(altered: Altered) -> None:
    altered.pages(
        lambda page: page["outboundTrafficPolicy"].update(mode="REGISTRY_ONLY"), path="/debug/mesh"
    )
    altered.request("client", "/ratings/0", since=SINCE, **BLOCKED)


def _policy_for_nobody(altered: Altered) -> None:
    spec = {"selector": {"matchLabels": {"app": "revews"}}, "rules": [{}], "action": "DENY"}
    altered.add("authorizationpolicies", "own", "bookinfo", EARLIER, spec=spec)


@pytest.mark.parametrize(
    ("alter", "guide", "code", "subject"),
    [
        (_tokens_expired, "unauthorized", "MNB510", "Pod bookinfo/client"),
        (_host_not_registered, "external", "MNB232", "ConfigMap istio-system/istio"),
        (_policy_for_nobody, "policy", "MNB505", "AuthorizationPolicy bookinfo/own"),
    ],
)
def test_a_fault_that_no_recording_has_is_found_in_the_guide_for_it(
    altered: Altered, alter: Callable[[Altered], None], guide: str, code: str, subject: str
) -> None:
    """Altered: expired tokens; a host that is not registered; a policy that selects nobody."""
    alter(altered)
    case = Case.of(altered.facts())
    end = Walk.start(GUIDES[guide], case).finish()
    (cause,) = end.page.causes
    assert (cause.check.code, str(cause.subject)) == (code, subject)
    assert {stop.guide.name for stop in end.trail} == {guide}
    assert "It is this: " in next(s.verdict for s in end.trail if s.step.name == "apart")


def test_the_reason_in_the_log_tells_a_bad_token_from_a_missing_one(altered: Altered) -> None:
    """Altered: the tokens that the client shows to ratings have expired."""
    _tokens_expired(altered)
    walk = Walk.start(GUIDES["unauthorized"], Case.of(altered.facts())).next()
    assert walk.page.pick is not None
    assert walk.page.pick.obvious == "token"
    assert "is not accepted" in walk.choose("missing").page.reading


# --- What a fault is noticed by, and weak spots ---------------------------------------------------


def test_every_check_of_a_running_mesh_belongs_to_a_guide_or_is_named_here() -> None:
    of_guides = {code for name in CONFUSABLE for code in codes(name)}
    others = {code for code, check in CHECKS.items() if not check.lint and code not in of_guides}
    # Nobody sees these as something that fails: they are about tools, versions and logs.
    assert others == {"MNB135", "MNB136", "MNB624"}


#: What is seen more often than what the label says: requests to a pod that is not ready, what the
#: server logs of TLS, a 404 from before the gateway was closed, a rule that is no policy yet.
_SEEN_OTHERWISE = (
    *("bootstrap-wrong-discovery", "tls-to-plaintext"),
    *("gateway-selector-wrong", "waypoint-missing"),
)


@pytest.mark.parametrize("name", [name for name in recording_names() if name not in HEALTHY])
def test_the_obvious_guide_of_a_recording_is_one_that_its_label_says(name: str) -> None:
    says = {guide for guide, recording in SEEN if recording == name}
    case = case_of(name)
    assert obvious_sight(case) == noticed_by(case, case.diagnosis.problems[0])
    assert obvious_sight(case) in says or name in _SEEN_OTHERWISE, obvious_sight(case)


def test_weak_spots_of_a_healthy_mesh_are_facts_with_rows() -> None:
    spots = weak_spots(case_of("healthy"))
    weak = {spot.says for spot in spots if spot.state is State.ODD}
    for words in (
        "accept plain text",
        "Everybody may call",
        "answers xDS in plain text on 15010",
        "8080 and istiod-849979b494-z8nb9:15014 answer over plain HTTP",
        "start with an istio-init that has NET_ADMIN and NET_RAW",
        "holds the key of the mesh's root",
    ):
        assert any(words in says for says in weak), words
    assert all(spot.rows for spot in spots if spot.state is State.ODD)
    (root,) = [spot for spot in spots if spot.says.startswith("The root O=cluster.local")]
    assert root.state is State.FINE
    assert "ends 2036-11-20, in 3650 d" in root.says
    assert root.rows[0].of > 0


def test_a_wide_gateway_is_a_weak_spot(altered: Altered) -> None:
    """Altered: the Gateway takes any host from any namespace."""
    altered.each(
        "gateways", "bookinfo-gateway", lambda one: one["spec"]["servers"][0].update(hosts=["*"])
    )
    spots = weak_spots(Case.of(altered.facts()))
    assert any(
        "bookinfo-gateway takes *" in spot.says and spot.rows
        for spot in spots
        if spot.state is State.ODD
    )


def test_what_was_not_asked_is_an_unknown_weak_spot() -> None:
    case = part_of("healthy", lambda question: not isinstance(question, HttpQuestion))
    unknown = [spot for spot in weak_spots(case) if spot.state is State.UNKNOWN]
    assert any("root" in spot.topic for spot in unknown)
    assert all(spot.says for spot in unknown)


def test_the_check_of_a_mesh_comes_back_to_a_fault_that_is_there() -> None:
    end = _walk("check_mesh", "subset-missing")
    assert end.page.state is State.BROKEN
    assert [fork.guide for fork in end.forks] == ["unavailable"]
