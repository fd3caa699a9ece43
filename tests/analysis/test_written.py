"""What the grid has no case for: each a few lines of YAML, and what is said about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshnb.checks import CHECKS
from meshnb.sources import Manifests
from meshnb.tables import Facts
from tests.analysis.conftest import findings

VIRTUAL_SERVICE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
"""
POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: rule, namespace: shop}
spec:
"""
TWO_PORTS = f"{SERVICE}  ports: [{{name: http, port: 80}}, {{name: http-b, port: 81}}]\n"
ROUTE = "  hosts: [web]\n  http: [{{route: [{{destination: {{host: web{port}}}}}]}}]\n"

#: A manifest, the check and the message that say something, the object, and the path in it.
SAID: dict[str, tuple[str, str, str, str, str]] = {
    "a-port-that-the-destination-does-not-have": (
        f"{VIRTUAL_SERVICE}{ROUTE.format(port=', port: {number: 82}')}---{TWO_PORTS}",
        "MNB1002",
        "IST0101",
        "VirtualService shop/web",
        "spec.http[0].route[0].destination.port.number",
    ),
    "a-listener-without-its-certificate": (
        (
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n"
            "metadata: {name: edge, namespace: shop}\n"
            "status:\n  conditions: [{type: Programmed, status: 'True'}]\n"
            "  listeners: [{name: web, conditions: [{type: ResolvedRefs, status: 'True'}]},"
            " {name: secure, conditions: [{type: Conflicted, status: 'False'},"
            " {type: ResolvedRefs, status: 'False', reason: InvalidCertificateRef}]}]\n"
        ),
        "MNB1552",
        "",
        "Gateway shop/edge",
        "status.listeners[1].conditions[1]",
    ),
    "no-port-of-a-destination-with-two": (
        f"{VIRTUAL_SERVICE}{ROUTE.format(port='')}---{TWO_PORTS}",
        "MNB1003",
        "IST0112",
        "VirtualService shop/web",
        "spec.http[0].route[0].destination.host",
    ),
    "a-match-for-a-gateway-that-it-is-not-bound-to": (
        (
            f"{VIRTUAL_SERVICE}  hosts: [web]\n"
            "  http: [{match: [{gateways: [edge]}], directResponse: {status: 200}}]\n"
        ),
        "MNB1008",
        "",
        "VirtualService shop/web",
        "spec.http[0].match[0].gateways[0]",
    ),
    "a-deployment-whose-image-auto-nothing-replaces": (
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: edge, namespace: shop}\n"
            "spec: {template: {spec: {containers: [{name: istio-proxy, image: auto}]}}}\n"
        ),
        "MNB1154",
        "IST0146",
        "Deployment shop/edge",
        "spec.template.spec.containers",
    ),
    "a-running-pod-with-image-auto": (
        f"{POD}  containers: [{{name: istio-proxy, image: auto}}]\n",
        "MNB1154",
        "IST0147",
        "Pod shop/web",
        "spec.containers",
    ),
    "an-external-name-with-a-port-called-tcp": (
        (
            f"{SERVICE}  type: ExternalName\n  externalName: a.example\n"
            "  ports: [{name: tcp, port: 80}]\n"
        ),
        "MNB1201",
        "IST0150",
        "Service shop/web",
        "spec.ports[0].name",
    ),
    "a-port-without-a-protocol": (
        f"{SERVICE}  ports: [{{name: web, port: 8080}}]\n",
        "MNB1201",
        "IST0118",
        "Service shop/web",
        "spec.ports[0].name",
    ),
    "a-removal-of-a-route": (
        (
            "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\n"
            "metadata: {name: f, namespace: shop}\n"
            "spec: {configPatches: [{applyTo: HTTP_ROUTE, patch: {operation: REMOVE}}]}\n"
        ),
        "MNB1352",
        "IST0154",
        "EnvoyFilter shop/f",
        "spec.configPatches[0]",
    ),
    "a-control-plane-called-by-address": (
        (
            "apiVersion: admissionregistration.k8s.io/v1\nkind: MutatingWebhookConfiguration\n"
            "metadata: {name: istio-sidecar-injector-far}\n"
            "webhooks: [{name: a.istio.io, clientConfig: {url: 'https://[2001:db8::1]:15017/inject'}}]"
        ),
        "MNB1412",
        "IST0164",
        "MutatingWebhookConfiguration istio-sidecar-injector-far",
        "webhooks[0].clientConfig.url",
    ),
    "a-policy-for-pods-that-do-not-exist": (
        (
            f"{POLICY}  selector: {{matchLabels: {{app: wbe}}}}\n---{POD}"
            "  containers: [{name: istio-proxy, image: p}]\n"
        ),
        "MNB1451",
        "IST0127",
        "AuthorizationPolicy shop/rule",
        "spec.selector.matchLabels",
    ),
    "a-rule-for-a-namespace-that-does-not-exist": (
        (
            f"{POLICY}  rules: [{{from: [{{source: {{notNamespaces: ['sho*', shpo]}}}}]}}]\n---\n"
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"
        ),
        "MNB1452",
        "IST0101",
        "AuthorizationPolicy shop/rule",
        "spec.rules[0].from[0].source.notNamespaces[1]",
    ),
    "an-istiod-that-fetches-keys-from-anywhere": (
        (
            "apiVersion: apps/v1\nkind: Deployment\n"
            "metadata: {name: istiod, namespace: mesh, labels: {app: istiod}}\n"
            "spec: {template: {spec: {containers: [{name: discovery, image: pilot}]}}}\n---\n"
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\n"
            "metadata: {name: jwt, namespace: shop}\n"
        ),
        "MNB1454",
        "IST0175",
        "Deployment mesh/istiod",
        "spec.template.spec.containers",
    ),
}


def source_of(folder: Path, text: str, **settings: str) -> Manifests:
    """Return manifests of one file with this text; settings are files beside it, by option."""
    (folder / "manifests").mkdir()
    (folder / "manifests" / "all.yaml").write_text(text)
    files = {}
    for name, content in settings.items():
        files[name] = folder / f"{name}.yaml"
        files[name].write_text(content)
    return Manifests(
        folder / "manifests",
        mesh_config=files.get("mesh_config"),
        mesh_networks=files.get("mesh_networks"),
    )


@pytest.mark.parametrize(("text", "code", "same_as", "subject", "path"), SAID.values(), ids=SAID)
def test_this_is_said_of(
    text: str, code: str, same_as: str, subject: str, path: str, tmp_path: Path
) -> None:
    found = findings(Facts(source_of(tmp_path, text)), [code])

    assert [(one, f.same_as, str(f.subject), f.path) for one, f in found] == [
        (code, same_as, subject, path)
    ]


def test_a_telemetry_that_still_sends_to_lightstep_is_found(tmp_path: Path) -> None:
    text = (
        "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: t, namespace: shop}\n"
        "spec: {tracing: [{providers: [{name: zipkin}, {name: old}]}]}\n"
    )
    settings = "extensionProviders: [{name: old, lightstep: {}}, {name: zipkin, zipkin: {}}]"

    found = findings(Facts(source_of(tmp_path, text, mesh_config=settings)), ["MNB1265"])

    assert [finding.path for _, finding in found] == ["spec.tracing[0].providers[1].name"]


def test_an_object_suppresses_messages_by_their_codes(tmp_path: Path) -> None:
    """As with `istioctl analyze`, by the annotation galley.istio.io/analyze-suppress."""
    text = (
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  annotations:\n"
        '    galley.istio.io/analyze-suppress: "IST0001, IST0118"\n'
        "    networking.istio.io/exportThree: '*'\nspec: {ports: [{name: web, port: 8080}]}\n"
    )
    assert [f.same_as for _, f in findings(Facts(source_of(tmp_path, text)))] == ["IST0108"]


def test_a_policy_for_a_waypoint_needs_no_pods_in_its_namespace(tmp_path: Path) -> None:
    """`istioctl analyze` overlooks targetRefs, and says that such a policy is for nothing."""
    text = (
        f"{POLICY}  targetRefs: [{{kind: Gateway, group: gateway.networking.k8s.io, name: w}}]\n"
        f"---{POD.replace('shop', 'other')}  containers: []\n"
    )
    assert findings(Facts(source_of(tmp_path, text)), ["MNB1451"]) == []


def test_the_old_form_of_a_gateways_name_is_understood(tmp_path: Path) -> None:
    """It is name.namespace.svc.cluster.local; ./name is another one.

    istiod takes both, and `istioctl analyze` says that such gateways do not exist.
    """
    text = (
        f"{VIRTUAL_SERVICE}  hosts: [a.example]\n"
        "  gateways: [edge.front.svc.cluster.local, ./own]\n---\n"
        "apiVersion: networking.istio.io/v1\nkind: Gateway\n"
        "metadata: {name: edge, namespace: front}\n"
        "spec: {servers: [{hosts: ['*'], port: {number: 80, name: http, protocol: HTTP}}]}\n---\n"
        "apiVersion: networking.istio.io/v1\nkind: Gateway\n"
        "metadata: {name: own, namespace: shop}\n"
        "spec: {servers: [{hosts: ['*'], port: {number: 80, name: http, protocol: HTTP}}]}\n"
    )
    assert findings(Facts(source_of(tmp_path, text)), ["MNB1005", "MNB1006"]) == []


def test_a_subset_needs_pods_of_the_services_own_namespace(tmp_path: Path) -> None:
    """`istioctl analyze` is content with a pod of any namespace that has the labels."""
    text = (
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n"
        "metadata: {name: web, namespace: shop}\n"
        "spec: {host: web, subsets: [{name: v2, labels: {version: v2}}]}\n"
        f"---{SERVICE}  selector: {{app: web}}\n"
        f"---{POD.replace('shop', 'other').replace('app: web', 'app: web, version: v2')}  x: 1\n"
    )
    found = findings(Facts(source_of(tmp_path, text)), ["MNB1052"])
    assert [finding.same_as for _, finding in found] == ["IST0173"]


def test_a_pod_of_a_namespace_with_a_revision_needs_a_sidecar_too(tmp_path: Path) -> None:
    """`istioctl analyze` looks at istio-injection=enabled only. A webhook has to serve it."""
    namespace = (
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/rev: new}}\n"
    )
    webhook = (
        "---\napiVersion: admissionregistration.k8s.io/v1\nkind: MutatingWebhookConfiguration\n"
        "metadata: {name: i}\nwebhooks: [{name: a.istio.io, namespaceSelector: {matchLabels: "
        "{istio.io/rev: new}}}]\n"
    )
    pod = f"---{POD}  containers: [{{name: web, image: web}}]\n"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()

    served = findings(Facts(source_of(tmp_path / "a", namespace + webhook + pod)), ["MNB1153"])
    unserved = findings(Facts(source_of(tmp_path / "b", namespace + pod)), ["MNB1153"])

    assert [str(finding.subject) for _, finding in served] == ["Pod shop/web"]
    assert unserved == []


def test_where_no_pods_are_written_those_of_the_workloads_count(tmp_path: Path) -> None:
    """A folder of manifests has Deployments, rarely pods; without either, nothing is concluded."""
    sidecar = (
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: s, namespace: shop}\n"
        "spec: {workloadSelector: {labels: {app: web}}, egress: [{hosts: ['./*']}]}\n"
    )
    deployment = (
        "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, namespace: shop}\n"
        "spec: {template: {metadata: {labels: {app: NAME}}, spec: {containers: []}}}\n"
    )
    said = {}
    for name in ("web", "other", ""):
        (tmp_path / f"case-{name}").mkdir()
        text = sidecar + (deployment.replace("NAME", name) if name else "")
        found = findings(Facts(source_of(tmp_path / f"case-{name}", text)), ["MNB1251"])
        said[name] = [finding.same_as for _, finding in found]

    assert said == {"web": [], "other": ["IST0101"], "": []}


def test_what_is_there_as_a_text_of_odd_shape_breaks_no_check(tmp_path: Path) -> None:
    """Each kind, with a spec in which nothing has the shape that it should have."""
    odd = "[{}, 5, null, [], 'x', {a: [{b: 1}]}]"
    fields = (
        "hosts gateways http tls tcp servers ports subsets selector workloadSelector rules "
        "exportTo configPatches accessLogging tracing webhooks listeners template trafficPolicy "
        "targetRefs versions names containers egress ingress addresses"
    )
    kinds = {
        "networking.istio.io/v1": "VirtualService DestinationRule Gateway ServiceEntry Sidecar "
        "WorkloadEntry EnvoyFilter ProxyConfig",
        "security.istio.io/v1": "AuthorizationPolicy PeerAuthentication RequestAuthentication",
        "telemetry.istio.io/v1": "Telemetry",
        "extensions.istio.io/v1alpha1": "WasmPlugin",
        "gateway.networking.k8s.io/v1": "Gateway HTTPRoute",
        "apps/v1": "Deployment",
        "apiextensions.k8s.io/v1": "CustomResourceDefinition",
        "admissionregistration.k8s.io/v1": "MutatingWebhookConfiguration",
        "v1": "Service Pod Namespace ConfigMap Secret Node",
    }
    spec = "".join(f"  {name}: {odd}\n" for name in fields.split())
    texts = [
        f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: n{number}, namespace: shop}}\n"
        f"data: {odd}\nwebhooks: {odd}\nstatus: {odd}\nspec:\n{spec}"
        for version, names in kinds.items()
        for number, kind in enumerate(names.split() * 2)
    ]
    facts = Facts(source_of(tmp_path, "---\n".join(texts)))

    assert {code for code, _ in findings(facts)} <= set(CHECKS)
