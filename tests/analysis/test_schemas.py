"""Objects against the definition of their kind, which stands among the manifests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from meshnb.sources import Manifests
from meshnb.tables import Facts
from tests.alteration import Altered
from tests.analysis.conftest import findings

#: Two of a oneOf, an unknown field, wrong types, a missing and an excluded field, one by one.
BAD = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: web
  namespace: shop
spec:
  hosts: [web]
  http:
    - mtach: []
      match:
        - uri:
            exact: /a
            prefix: /b
      timeout: 5
      retries:
        attempts: "3"
      route:
        - destination:
            port: {number: 80}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec:
  host: web
  trafficPolicy:
    loadBalancer: {simple: FASTEST}
    portLevelSettings: {}
"""

REFUSED = {
    "spec.http[0].mtach": ("there is no such field. Did you mean match?", 9),
    "spec.http[0].match[0].uri": ("only one of exact and prefix may be there", 11),
    "spec.http[0].timeout": ("5 is not a text", 14),
    "spec.http[0].retries.attempts": ("'3' is not a number", 16),
    "spec.http[0].route[0].destination": ("host is missing", 18),
    "spec.trafficPolicy.loadBalancer.simple": ("'FASTEST' is none of", 27),
    "spec.trafficPolicy.portLevelSettings": ("an object is not a list", 28),
}


@pytest.fixture
def folder(shared: Path, tmp_path: Path) -> Path:
    """Return a folder with the definitions of Istio's kinds in it."""
    shutil.copy(shared / "crds" / "istio-1.30.3.json", tmp_path / "definitions.json")
    return tmp_path


def test_each_field_that_its_definition_refuses_is_named_with_its_line(folder: Path) -> None:
    (folder / "bad.yaml").write_text(BAD)

    found = findings(Facts(Manifests(folder)), ["MNB1600"])

    assert {finding.path for _, finding in found} == set(REFUSED)
    for _, finding in found:
        problem, line = REFUSED[finding.path]
        assert f"{finding.path}: {problem}" in finding.message
        assert f"{folder / 'bad.yaml'}:{line}" in finding.message
        assert finding.level == "Error"


#: What breaks a rule that a definition has in CEL, and nothing else of it.
AGAINST_RULES = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  targetRefs: [{kind: Service, name: web, group: ""}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http:
    - timeout: 0.1ms
      route: [{destination: {host: web}}]
    - timeout: soon
      route: [{destination: {host: web}}]
    - timeout: 1h30m
      route: [{destination: {host: web}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web, namespace: shop}
spec:
  hosts: [web.example]
  endpoints: [{address: 192.0.2.1}]
  ports: [{number: 70000, name: http, protocol: HTTP}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: web, namespace: shop}
spec:
  jwtRules:
    - {issuer: me, jwksUri: "ftp://keys.example"}
    - {issuer: you, jwksUri: "https://keys.example"}
"""


def test_the_rules_of_a_definition_are_kept_to_and_its_defaults_known(folder: Path) -> None:
    (folder / "bad.yaml").write_text(AGAINST_RULES)

    found = findings(Facts(Manifests(folder)), ["MNB1600"])

    assert sorted(finding.path for _, finding in found) == [
        "spec",  # AuthorizationPolicy: a selector and a target
        "spec",  # ServiceEntry: endpoints, and the resolution that it has by default
        "spec.http[0].timeout",
        "spec.http[1].timeout",
        "spec.jwtRules[0].jwksUri",
        "spec.ports[0].number",
    ]


def test_rules_are_not_evaluated_on_what_a_cluster_says(folder: Path, tmp_path: Path) -> None:
    bundle = Altered("healthy", tmp_path)
    policy = next(yaml.safe_load_all(AGAINST_RULES))
    policy["spec"]["rulez"] = []
    bundle.objects("authorizationpolicies", lambda held: held.append(policy))
    shutil.copy(folder / "definitions.json", bundle.folder)
    asked = {
        "request": {
            "kind": "list",
            "apiVersion": "apiextensions.k8s.io/v1",
            "resource": "customresourcedefinitions",
        },
        "taken_at": "2026-11-23T02:49:00Z",
        "elapsed_ms": 1.0,
        "status": 200,
        "file": "definitions.json",
    }
    with (bundle.folder / "index.jsonl").open("a") as index:
        index.write("\n" + json.dumps(asked))

    found = findings(bundle.facts(), ["MNB1600"])

    assert [finding.path for _, finding in found] == ["spec.rulez"]


def test_a_version_that_its_kind_does_not_have_is_named(folder: Path) -> None:
    (folder / "bad.yaml").write_text(BAD.replace("io/v1\nkind: D", "io/v7\nkind: D"))

    found = [one.message for _, one in findings(Facts(Manifests(folder)), ["MNB1600"])]

    assert [message for message in found if "version v7 does not exist" in message]


def test_without_definitions_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(BAD)

    assert findings(Facts(Manifests(tmp_path)), ["MNB1600"]) == []


#: In Istio's own inputs, what its definitions refuse: fields that were taken out, or were never
#: there, servers without a port, and a policy with a selector and a target, on purpose.
IN_THE_GRID = {
    "conflicting-gateways-invalid-port.yaml": ["spec.servers[0]", "spec.servers[0]"],
    "deprecation.yaml": ["spec.workloadLabels", "spec.filters"],
    "envoy-filter-add-operation.yaml": [
        "spec.configPatches[0].match.app",
        "spec.configPatches[0].match.app",
    ],
    "k8sgateway-selector.yaml": ["spec"],
}


def test_what_istio_takes_is_not_refused(folder: Path, shared: Path) -> None:
    """All of its inputs but three are as the definitions of their kinds want them."""
    said: dict[str, list[str]] = {}
    for file in sorted((shared / "analysis" / "testdata").glob("*.yaml")):
        facts = Facts(Manifests(folder, file))
        paths = [finding.path for _, finding in findings(facts, ["MNB1600"])]
        if paths:
            said[file.name] = paths
    assert said == IN_THE_GRID


def test_the_definitions_of_the_gateway_api_are_read_too(folder: Path, shared: Path) -> None:
    shutil.copy(shared / "crds" / "gateway-api-1.5.1.json", folder / "gateway-api.json")
    route = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "r"},
        "spec": {"parentRefs": [{"name": "g"}], "rules": [{"backendRefs": [{"port": 80}]}]},
    }
    (folder / "route.json").write_text(json.dumps(route))

    found = findings(Facts(Manifests(folder)), ["MNB1600"])

    assert [(f.path, "name is missing" in f.message) for _, f in found] == [
        ("spec.rules[0].backendRefs[0]", True)
    ]
