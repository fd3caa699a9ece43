"""Both ends of a connection agree with what the access logs show of real ones."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meshnb.errors import UsageError
from meshnb.tables import Facts
from meshnb.traces.connection import Connections, ConnectionTrace, follow_connection
from meshnb.traces.ends.places import find_client
from meshnb.traces.envoy.balancing import hosts_of
from meshnb.traces.mesh import MESH
from tests.alteration import Altered
from tests.conftest import facts_of, recording_names

CLIENT, RATINGS, DETAILS = "client.bookinfo", "ratings.bookinfo:9080", "details.bookinfo:9080"
LEGACY = "legacy/legacy-client"
GATEWAY = "istio-ingressgateway.istio-system"
NOW = datetime(2026, 11, 23, 2, 50, tzinfo=UTC)
#: In the recording ``healthy``: the time of a change that all logs are younger than.
CREATED = "2026-11-23T02:40:00Z"


@pytest.fixture
def healthy(tmp_path: Path) -> Altered:
    """Return the recording of a healthy mesh, to be altered."""
    return Altered("healthy", tmp_path)


# --- What really happened -------------------------------------------------------------------------


def _split(address: Any) -> tuple[str, int]:
    host, _, port = str(address).rpartition(":")
    return host.strip("[]"), int(port)


class _Agreement:
    """Compares the lines of a recording's access logs with the traces of their connections."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.connections = Connections(facts)
        self.mesh = self.connections.mesh
        self.log = facts["access_log"]
        refused = self.log[self.log["details"] == "filter_chain_not_found"]
        self.refused = set(refused["downstream_remote_address"].dropna())
        self.traces: dict[tuple[str, str, str], ConnectionTrace | None] = {}

    def verdicts(self) -> Iterator[str]:
        """Yield right, undecided or wrong with why for each line that tells of a connection."""
        for row in self.log.to_dict("records"):
            if pd.isna(row["upstream_host"]) or pd.isna(row["cluster"]):
                if row["details"] == "filter_chain_not_found":
                    yield self._refusal(row)
                continue
            if not str(row["cluster"]).startswith("outbound"):
                continue
            yield self._outbound(row)

    def _trace(self, row: Mapping[Any, Any]) -> ConnectionTrace | None:
        key = (str(row["proxy"]), str(row["cluster"]), str(row["upstream_host"]))
        if key not in self.traces:
            self.traces[key] = None
            client = self.mesh.pod_of(key[0])
            config = self.connections.configs.of(key[0])
            cluster = config.clusters.get(key[1]) if config is not None else None
            if config is not None and cluster is not None and client is not None:
                for host in hosts_of(config, key[1]):
                    if host.name == key[2]:
                        self.traces[key] = self.connections.between(client, cluster, host)
        return self.traces[key]

    def _changed(self, row: Mapping[Any, Any]) -> bool:
        """Whether an end took over another configuration after the line was written."""
        times = []
        client = self.connections.configs.of(str(row["proxy"]))
        if client is not None and (cluster := client.clusters.get(str(row["cluster"]))) is not None:
            times.append(cluster.since)
        server = self.mesh.pod_at(_split(row["upstream_host"])[0])
        config = self.connections.configs.of(server.proxy) if server is not None else None
        listener = config.listeners.get("virtualInbound") if config is not None else None
        if listener is not None:
            times.append(listener.since)
        return any(time is not None and time > row["start_time"] for time in times)

    def _outbound(self, row: Mapping[Any, Any]) -> str:
        trace = self._trace(row)
        if trace is None:
            return "undecided: the endpoint is gone"
        if self._changed(row):
            return "undecided: changed since"
        flags = set(row["flags"])
        failure = "" if pd.isna(row["upstream_failure"]) else str(row["upstream_failure"])
        cut_off = "UC" in flags and row["upstream_local_address"] in self.refused
        if row["details"] == "via_upstream" or (row["response_code"] or 0) in range(200, 500):
            if trace.verdict == "fails":
                return f"wrong: it worked, predicted {trace.says}"
            return "right" if trace.verdict == "works" else f"undecided: {trace.says}"
        if "TLS_error" not in failure and not cut_off:
            return "right"
        if trace.verdict != "fails":
            return f"wrong: it failed with {row['details']}, predicted {trace.says}"
        if trace.client.flags not in flags or failure not in trace.client.log:
            return f"wrong: it failed with {row['details']}, predicted {trace.client.log}"
        return "right"

    def _refusal(self, row: Mapping[Any, Any]) -> str:
        """Return whether the trace agrees with a server that found no filter chain."""
        server = self.mesh.pod_of(str(row["proxy"]))
        assert server is not None
        address, port = _split(row["downstream_local_address"])
        config = self.connections.configs.of(server.proxy)
        listener = config.listeners.get("virtualInbound") if config is not None else None
        if (
            listener is not None
            and listener.since is not None
            and listener.since > row["start_time"]
        ):
            return "undecided: changed since"
        caller = self.mesh.pod_at(_split(row["downstream_remote_address"])[0])
        name = row["requested_server_name"]
        target = f"{server.namespace}/{server.pod}"
        known = caller.proxy if caller is not None and caller.proxy else "outside"
        more = {} if pd.isna(name) else {"server_name": str(name)}
        traces = [
            self.connections.follow(client, target, port, tls=tls, **more)
            for client in dict.fromkeys((known, "outside"))
            for tls in (False, True)
        ]
        said = any(one.verdict == "fails" and one.server.flags == "NR" for one in traces)
        return "right" if said else f"wrong: {address}:{port} refused, predicted {traces[0].says}"


@pytest.mark.parametrize("name", recording_names())
def test_no_line_of_an_access_log_contradicts_the_trace(name: str) -> None:
    """What worked is not predicted to fail; what failed for TLS is, with flag and reason."""
    verdicts = list(_Agreement(facts_of(name)).verdicts())
    counts = Counter(verdict.partition(":")[0] for verdict in verdicts)
    print(f"{name}: {dict(counts)}")
    assert [verdict for verdict in verdicts if verdict.startswith("wrong")] == []
    assert counts["right"] >= 0.6 * len(verdicts)


@pytest.mark.parametrize("name", [one for one in recording_names() if one.endswith("healthy")])
def test_in_a_healthy_mesh_no_connection_fails(name: str) -> None:
    """Every proxy with every host of every cluster that leads to a pod."""
    connections = Connections(facts_of(name))
    count = 0
    for proxy in connections.configs:
        client, config = connections.mesh.pod_of(proxy), connections.configs.of(proxy)
        if client is None or config is None:
            continue
        for cluster in config.clusters.values():
            for host in hosts_of(config, cluster.name) if "outbound|" in cluster.name else ():
                trace = connections.between(client, cluster, host)
                # A gateway's Service offers ports that no Gateway opens.
                unopened = "has no listener on port" in trace.says
                # A policy of the ambient mesh may well keep a gateway out.
                unopened = unopened or trace.steps[-1].stage == "policies"
                assert trace.verdict != "fails" or unopened, trace.says
                count += trace.verdict == "works"
    assert count >= 2


#: Of each labelled fault of TLS: the connection, the side at fault, and what led there.
FAULTS: dict[str, tuple[str, str, dict[str, Any], str, str]] = {
    "mtls-client-disable": (CLIENT, RATINGS, {}, "client", "DestinationRule bookinfo/ratings"),
    "mtls-strict-legacy-client": (
        *(LEGACY, RATINGS, {}),
        *("client", "PeerAuthentication bookinfo/default"),
    ),
    "tls-to-plaintext": (CLIENT, DETAILS, {}, "client", "DestinationRule bookinfo/details"),
    "https-to-http-port": (
        *("client-tls.bookinfo", "productpage.bookinfo:9080", {"tls": True}),
        *("client", ""),
    ),
    "gateway-secret-missing": (
        *("outside", f"{GATEWAY}:443", {"tls": True, "server_name": "bookinfo.example.com"}),
        *("server", "Gateway bookinfo/bookinfo-tls"),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_labelled_fault_is_at_the_side_that_the_label_names(name: str) -> None:
    client, server, more, fault, item = FAULTS[name]
    trace = follow_connection(facts_of(name), client, server, **more)
    assert (trace.verdict, trace.fault) == ("fails", fault)
    assert not item or item in trace.client.objects + trace.server.objects


def test_each_step_cites_a_row_that_is_there() -> None:
    for name, client, server in (
        ("mtls-client-disable", CLIENT, RATINGS),
        ("healthy", CLIENT, RATINGS),
        ("tls-to-plaintext", CLIENT, DETAILS),
    ):
        facts = facts_of(name)
        steps = follow_connection(facts, client, server).steps
        assert any(step.table == "clusters" for step in steps)
        for step in steps:
            assert not step.table or 0 <= int(step.row or 0) < len(facts[step.table])
            if step.table == "clusters":
                assert facts["clusters"]["cluster"].iloc[step.row or 0] == step.resource


def test_a_trace_is_told_as_a_table_and_as_json() -> None:
    trace = follow_connection(facts_of("healthy"), CLIENT, "reviews.bookinfo")
    assert trace.frame()["stage"].tolist()[-2:] == ["server's certificate", "client's certificate"]
    told = json.loads(json.dumps(trace.to_json()))
    assert told["verdict"] == "works"
    assert told["server"]["certificate"]["certificates"][0]["sans"] == [
        "spiffe://cluster.local/ns/bookinfo/sa/reviews"
    ]
    assert {one["verdict"] for one in told["endpoints"]} == {"works"}
    assert len(told["endpoints"]) == 2


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean ratings"):
        follow_connection(facts_of("healthy"), CLIENT, "rating.bookinfo", 9080)
    with pytest.raises(UsageError, match="It has 9080"):
        follow_connection(facts_of("healthy"), CLIENT, "ratings.bookinfo", 80)


# --- What a proxy holds, altered ------------------------------------------------------------------


def in_dump(pod: str, section: str, change: Callable[[Any], None]) -> dict[str, Any]:
    """Return the arguments of a change to one section of the config dumps of pods named so."""

    def only(document: Any) -> None:
        for part in document.get("configs", []):
            if part["@type"].endswith(section):
                change(part)

    return {"change": only, "port": 15000, "path": "/config_dump?include_eds", "pod": pod}


def pods_of(altered: Altered, prefix: str) -> list[str]:
    """Return the names of the pods that begin so."""
    return sorted(
        path.name for path in (altered.folder / "proxies" / "bookinfo").glob(f"{prefix}*")
    )


def hold(altered: Altered, prefix: str, section: str, change: Callable[[Any], None]) -> Altered:
    """Change what the proxies of pods hold, in one section."""
    for pod in pods_of(altered, prefix):
        asked = in_dump(pod, section, change)
        altered.pages(asked.pop("change"), **asked)
    return altered


def with_secret(altered: Altered, prefix: str, name: str, pem: bytes | None) -> Altered:
    """Give proxies another certificate or root; None takes it away again while it is awaited."""

    def change(part: Any) -> None:
        held = part["dynamic_active_secrets"]
        (entry,) = [one for one in held if one["name"] == name]
        if pem is None:
            held.remove(entry)
            part.setdefault("dynamic_warming_secrets", []).append({"name": name, "secret": {}})
        elif name == "ROOTCA":
            source = entry["secret"]["validation_context"]["trusted_ca"]
            source["inline_bytes"] = base64.b64encode(pem).decode()
        else:
            source = entry["secret"]["tls_certificate"]["certificate_chain"]
            source["inline_bytes"] = base64.b64encode(pem).decode()

    return hold(altered, prefix, "SecretsConfigDump", change)


class Authority:
    """A certificate authority, which signs what a test needs."""

    def __init__(self, name: str = "cluster.local", issuer: Authority | None = None) -> None:
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, name)])
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.issuer = issuer or self

    @cached_property
    def pem(self) -> bytes:
        """Its own certificate, as PEM."""
        return self._made(self.name, self.issuer, datetime(2026, 1, 1, tzinfo=UTC), YEARS, True)

    def leaf(
        self, name: str, begins: datetime | None = None, ends: datetime | None = None
    ) -> bytes:
        """Return a certificate for a SPIFFE name or a host."""
        begins = begins or datetime(2026, 11, 22, tzinfo=UTC)
        ends = ends or datetime(2026, 11, 25, tzinfo=UTC)
        kind = x509.UniformResourceIdentifier if ":" in name else x509.DNSName
        return self._made(x509.Name([]), self, begins, ends, False, kind(name))

    def _made(
        self,
        subject: x509.Name,
        issuer: Authority,
        begins: datetime,
        ends: datetime,
        is_ca: bool,
        *names: x509.GeneralName,
    ) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        made = builder.sign(issuer.key, hashes.SHA256())
        return made.public_bytes(serialization.Encoding.PEM)


YEARS = datetime(2036, 1, 1, tzinfo=UTC)
EARLIER, LATER = datetime(2026, 11, 23, 1, tzinfo=UTC), datetime(2026, 11, 24, tzinfo=UTC)
IDENTITY = "spiffe://cluster.local/ns/bookinfo/sa/"
OLD, NEW = Authority(), Authority()
MIDDLE = Authority("middle", NEW)


def issue(
    altered: Altered,
    client: bytes | None = None,
    server: bytes | None = None,
    client_root: bytes = b"",
    server_root: bytes = b"",
) -> ConnectionTrace:
    """Give every proxy the root OLD, and the two ends certificates and roots; follow them."""
    with_secret(altered, "", "ROOTCA", OLD.pem)
    for prefix, own, root in (("client", client, client_root), ("ratings", server, server_root)):
        with_secret(altered, prefix, "default", own)
        if root:
            with_secret(altered, prefix, "ROOTCA", root)
    return follow_connection(altered.facts(), CLIENT, RATINGS)


def good(authority: Authority, name: str = "ratings", **dates: datetime) -> bytes:
    """Return a certificate for a service account of bookinfo."""
    return authority.leaf(IDENTITY + name, **dates)


UNTRUSTED, UNKNOWN = "unable_to_get_local_issuer_certificate", "TLSV1_ALERT_UNKNOWN_CA"
STRANGER = "SAN_matcher,_certificate_SANs_are_[spiffe://cluster.local/ns/bookinfo/sa/reviews]"
CALLER, SERVER = good(OLD, "default"), good(OLD)
FOREIGN = OLD.leaf("spiffe://td2/ns/bookinfo/sa/default")
BEHIND = good(MIDDLE)


@pytest.mark.parametrize(
    ("client", "server", "roots", "fault", "text"),
    [
        (CALLER, SERVER, {}, "none", ""),
        (CALLER, good(OLD, ends=EARLIER), {}, "server", "_certificate_has_expired"),
        (CALLER, good(OLD, begins=LATER), {}, "server", "_certificate_is_not_yet_valid"),
        (good(OLD, "default", ends=EARLIER), SERVER, {}, "client", "CERTIFICATE_EXPIRED"),
        (CALLER, good(NEW), {}, "server", UNTRUSTED),
        (good(NEW, "default"), SERVER, {}, "client", UNKNOWN),
        (CALLER, SERVER, {"client_root": NEW.pem}, "client", UNTRUSTED),
        (CALLER, SERVER, {"server_root": NEW.pem}, "server", UNKNOWN),
        (CALLER, good(NEW), {"client_root": OLD.pem + NEW.pem}, "none", ""),
        (CALLER, BEHIND + MIDDLE.pem, {"client_root": NEW.pem}, "none", ""),
        (CALLER, BEHIND, {"client_root": NEW.pem}, "unknown", UNTRUSTED),
        (CALLER, good(OLD, "reviews"), {}, "server", STRANGER),
        (FOREIGN, SERVER, {}, "client", "ALERT"),
        (None, SERVER, {}, "client", "Secret_is_not_supplied_by_SDS"),
        (CALLER, None, {}, "server", "Connection_reset_by_peer"),
    ],
)
def test_certificates_of_both_ends_are_judged_by_the_other(
    healthy: Altered,
    client: bytes | None,
    server: bytes | None,
    roots: dict[str, bytes],
    fault: str,
    text: str,
) -> None:
    """Altered: the two ends have other certificates or roots than the rest of the mesh."""
    trace = issue(healthy, client, server, **roots)
    assert trace.verdict == ("works" if fault == "none" else "fails"), trace.says
    assert trace.fault == fault, trace.says
    assert text in trace.client.log


def test_a_name_that_a_rule_demands_is_the_clients_fault(healthy: Altered) -> None:
    """Altered: a DestinationRule names another identity than the server has."""
    spec = {
        "host": "ratings",
        "trafficPolicy": {"tls": {"mode": "ISTIO_MUTUAL", "subjectAltNames": [IDENTITY + "other"]}},
    }
    kind = {"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule"}
    healthy.add("destinationrules", "ratings", "bookinfo", CREATED, **kind, spec=spec)
    hold(healthy, "client", "ClustersConfigDump", _demanding("other"))
    trace = follow_connection(healthy.facts(), CLIENT, RATINGS)
    assert (trace.verdict, trace.fault) == ("fails", "client")
    assert "SAN_matcher" in trace.client.log


def _clusters(part: Any) -> Iterator[Any]:
    for entry in part["dynamic_active_clusters"]:
        if entry["cluster"]["name"] == "outbound|9080||ratings.bookinfo.svc.cluster.local":
            yield entry["cluster"]


def _demanding(account: str) -> Callable[[Any], None]:
    def change(part: Any) -> None:
        for cluster in _clusters(part):
            socket = cluster["transport_socket_matches"][0]["transport_socket"]
            common = socket["typed_config"]["common_tls_context"]
            names = common["combined_validation_context"]["default_validation_context"]
            names["match_subject_alt_names"] = [{"exact": IDENTITY + account}]

    return change


def test_a_stale_mark_of_an_endpoint_is_the_servers_fault(healthy: Altered) -> None:
    """Altered: ratings lost its sidecar, and its endpoint is still marked for mutual TLS."""

    def bare(pod: dict[str, Any]) -> None:
        pod["spec"]["initContainers"] = []
        pod["spec"]["containers"] = [
            one for one in pod["spec"]["containers"] if one["name"] != "istio-proxy"
        ]
        pod["metadata"]["annotations"] = {}

    healthy.each("pods", "ratings", bare)
    trace = follow_connection(healthy.facts(), CLIENT, RATINGS)
    assert (trace.verdict, trace.fault) == ("fails", "server")
    assert "WRONG_VERSION_NUMBER" in trace.client.log


def test_a_port_that_the_sidecar_leaves_out_is_bare(healthy: Altered) -> None:
    """Altered: ratings' sidecar does not take port 9080."""
    excluded = {"traffic.sidecar.istio.io/excludeInboundPorts": "9080"}
    healthy.each("pods", "ratings", lambda pod: pod["metadata"]["annotations"].update(excluded))
    facts = healthy.facts()
    assert follow_connection(facts, LEGACY, RATINGS).verdict == "works"
    assert follow_connection(facts, CLIENT, RATINGS).verdict == "fails"


def test_a_client_past_its_own_sidecar_speaks_plain_text(tmp_path: Path) -> None:
    """Altered: the client's sidecar leaves out port 9080, and ratings demands mutual TLS."""
    altered = Altered("mtls-strict-legacy-client", tmp_path)
    excluded = {"traffic.sidecar.istio.io/excludeOutboundPorts": "9080"}
    altered.each("pods", "client", lambda pod: pod["metadata"]["annotations"].update(excluded))
    trace = follow_connection(altered.facts(), CLIENT, RATINGS)
    assert (trace.verdict, trace.client.log) == ("fails", "")
    assert trace.server.flags == "NR"


def test_a_pod_called_by_its_address_gets_plain_text(tmp_path: Path) -> None:
    """Altered: the client has no cluster with ratings, so calls to its address are passed on."""
    altered = Altered("mtls-strict-legacy-client", tmp_path)

    def without(part: Any) -> None:
        part["dynamic_active_clusters"] = [
            entry
            for entry in part["dynamic_active_clusters"]
            if "ratings" not in entry["cluster"]["name"]
        ]

    hold(altered, "client", "ClustersConfigDump", without)
    trace = follow_connection(altered.facts(), CLIENT, RATINGS)
    assert trace.verdict == "fails"
    assert trace.steps[0].resource == "PassthroughCluster"


def test_a_server_that_holds_more_than_its_policies_ask_for_is_at_fault(tmp_path: Path) -> None:
    """Altered: the PeerAuthentication is gone; the server's proxy still demands mutual TLS."""
    altered = Altered("mtls-strict-legacy-client", tmp_path).remove(
        "peerauthentications", "default"
    )
    trace = follow_connection(altered.facts(), LEGACY, RATINGS)
    assert (trace.verdict, trace.fault) == ("fails", "server")


def test_an_end_whose_configuration_was_not_recorded_leaves_it_open(healthy: Altered) -> None:
    """Altered: ratings' proxy did not answer."""
    for pod in pods_of(healthy, "ratings"):
        healthy.silence("timed out", kind="http", port=15000, pod=pod)
    trace = follow_connection(healthy.facts(), CLIENT, RATINGS)
    assert (trace.verdict, trace.fault) == ("undecided", "unknown")
    assert "did not say what it holds" in trace.says


# --- Gateways -------------------------------------------------------------------------------------


def at_gateway(altered: Altered, pem: bytes, change: Callable[[Any], None] | None = None) -> Facts:
    """Let the gateway of ``gateway-secret-missing`` have its certificate."""
    (pod,) = [path.name for path in (altered.folder / "proxies" / "istio-system").iterdir()]

    def received(part: Any) -> None:
        (entry,) = [one for one in part.pop("dynamic_warming_secrets") if "bookinfo" in one["name"]]
        source = {"inline_bytes": base64.b64encode(pem).decode()}
        entry["secret"] = {"tls_certificate": {"certificate_chain": source}}
        part["dynamic_active_secrets"].append(entry)

    for section, one in (("SecretsConfigDump", received), ("ListenersConfigDump", change)):
        if one is not None:
            asked = in_dump(pod, section, one)
            altered.pages(asked.pop("change"), **asked)
    return altered.facts()


HOST = "bookinfo.example.com"


@pytest.mark.parametrize(
    ("pem", "verdict", "fault", "words"),
    [
        (NEW.leaf(HOST), "works", "none", "if the client trusts O=cluster.local"),
        (NEW.leaf("*.example.com"), "works", "none", "if the client trusts"),
        (NEW.leaf("*.example.org"), "fails", "server", "is for *.example.org, not for"),
        (NEW.leaf(HOST, ends=EARLIER), "fails", "server", "ended at 2026-11-23 01:00"),
    ],
)
def test_a_gateways_certificate_is_for_the_host_and_in_force(
    tmp_path: Path, pem: bytes, verdict: str, fault: str, words: str
) -> None:
    """Altered: the gateway has received a certificate."""
    facts = at_gateway(Altered("gateway-secret-missing", tmp_path), pem)
    trace = follow_connection(facts, "outside", f"{GATEWAY}:443", tls=True, server_name=HOST)
    assert (trace.verdict, trace.fault) == (verdict, fault)
    assert words in trace.says


def _listener(part: Any, port: int) -> Any:
    for entry in part["dynamic_listeners"]:
        listener = entry["active_state"]["listener"]
        if listener["address"]["socket_address"]["port_value"] == port:
            return listener
    raise AssertionError(port)


def test_a_gateway_that_passes_tls_on_does_not_judge_it(tmp_path: Path) -> None:
    """Altered: the gateway's server passes TLS through to a cluster."""

    def passing(part: Any) -> None:
        (chain,) = _listener(part, 8443)["filter_chains"]
        chain.pop("transport_socket")
        chain["filter_chain_match"]["transport_protocol"] = "tls"
        tcp = {"cluster": "outbound|443||shop.bookinfo.svc.cluster.local"}
        chain["filters"] = [{"name": "envoy.filters.network.tcp_proxy", "typed_config": tcp}]

    facts = at_gateway(Altered("gateway-secret-missing", tmp_path), NEW.leaf(HOST), passing)
    trace = follow_connection(facts, "outside", f"{GATEWAY}:443", tls=True, server_name=HOST)
    assert trace.verdict == "undecided"
    assert "passes TLS on as it is, to outbound|443||shop" in trace.steps[-2].says


def test_plain_text_to_a_tls_port_of_a_gateway_fails(tmp_path: Path) -> None:
    facts = at_gateway(Altered("gateway-secret-missing", tmp_path), NEW.leaf(HOST))
    trace = follow_connection(facts, "outside", f"{GATEWAY}:443")
    assert (trace.verdict, trace.fault, trace.server.flags) == ("fails", "client", "NR")


def test_a_gateway_for_mutual_tls_wants_a_certificate_of_the_client(tmp_path: Path) -> None:
    """Altered: the gateway's server demands a client's certificate."""

    def demanding(part: Any) -> None:
        (chain,) = _listener(part, 8443)["filter_chains"]
        chain["transport_socket"]["typed_config"]["require_client_certificate"] = True

    facts = at_gateway(Altered("gateway-secret-missing", tmp_path), NEW.leaf(HOST), demanding)
    trace = follow_connection(facts, "outside", f"{GATEWAY}:443", tls=True, server_name=HOST)
    assert (trace.verdict, trace.server.speaks) == ("works", "mutual TLS")
    assert "shows a certificate that the gateway trusts" in trace.says


# --- Hosts outside the mesh -----------------------------------------------------------------------


def test_an_address_that_nobody_knows_is_passed_on_and_left_open() -> None:
    trace = follow_connection(facts_of("healthy"), CLIENT, "192.0.2.7", 443)
    assert trace.verdict == "undecided"
    assert [step.resource for step in trace.steps] == ["PassthroughCluster", ""]


def test_an_address_that_nobody_knows_is_refused_where_only_known_hosts_are_let_out(
    healthy: Altered,
) -> None:
    """Altered: what no Service is known for goes to the black hole."""

    def closed(part: Any) -> None:
        for entry in part["dynamic_listeners"]:
            if entry["name"] == "virtualOutbound":
                text = json.dumps(entry).replace("PassthroughCluster", "BlackHoleCluster")
                entry.update(json.loads(text))

    hold(healthy, "client", "ListenersConfigDump", closed)
    trace = follow_connection(healthy.facts(), CLIENT, "192.0.2.7", 443)
    assert (trace.verdict, trace.fault) == ("fails", "client")


@pytest.mark.parametrize(
    ("context", "words"),
    [
        ({}, "it accepts any certificate"),
        ({"trusted_ca": {"filename": "/etc/ssl/certs/ca.crt"}}, "it trusts /etc/ssl/certs/ca.crt"),
    ],
)
def test_tls_to_a_host_outside_says_what_the_client_demands(
    healthy: Altered, context: dict[str, Any], words: str
) -> None:
    """Altered: ratings' cluster has an endpoint outside the cluster, to which TLS is spoken."""

    def outside(part: Any) -> None:
        for cluster in _clusters(part):
            cluster.pop("transport_socket_matches")
            kind = (
                "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
            )
            common = {"validation_context": context}
            cluster["transport_socket"] = {
                "name": "tls",
                "typed_config": {"@type": kind, "sni": "x.test", "common_tls_context": common},
            }

    hold(healthy, "client", "ClustersConfigDump", outside)
    healthy.pages(
        lambda page: page.update(json.loads(json.dumps(page).replace("10.244.0.9", "192.0.2.9"))),
        port=15000,
        path="/clusters?format=json",
        pod="client",
    )
    trace = follow_connection(healthy.facts(), CLIENT, RATINGS)
    assert trace.verdict == "undecided"
    assert trace.client.speaks == "TLS (SNI x.test)"
    assert words in trace.steps[-1].says


def test_a_client_may_be_called_by_its_bare_name_if_only_one_is() -> None:
    mesh = MESH.make(facts_of("healthy"))
    assert find_client(mesh, "details-v1") == find_client(mesh, "bookinfo/details-v1")
    with pytest.raises(UsageError, match="no pod detail"):
        find_client(mesh, "detail")
