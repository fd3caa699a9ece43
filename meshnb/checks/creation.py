"""Checks of pods that Kubernetes could not make. Codes MNB170 to MNB199.

What refused a pod stands in the text of the event FailedCreate: whether a webhook did not answer or
said no, or the API server itself forbids what the pod has become by injection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd

from meshnb.checks.base import (
    Cause,
    Evidence,
    Finding,
    Severity,
    Subject,
    and_list,
    check,
    edit,
    ids,
    restart,
    rows_of,
    symptom_rows,
)
from meshnb.symptoms import Symptom, Symptoms
from meshnb.tables import Facts
from meshnb.tables.selectors import selects
from meshnb.traces.mesh import Mesh, ServicePort, plain

#: How the API server says that a webhook did not answer, and why.
_CALL = re.compile(
    r'failed calling webhook "([^"]+)": (?:failed to call webhook: )?(.*)', re.DOTALL
)
#: How it says that one answered no.
_DENIED = re.compile(r'admission webhook "([^"]+)" denied the request: ?(.*)', re.DOTALL)
_POLICY = re.compile(r"ValidatingAdmissionPolicy '([^']+)'.* denied request: ?(.*)", re.DOTALL)
_POD_SECURITY = re.compile(r'violates PodSecurity "([^"]+)": ?(.*)', re.DOTALL)
_QUOTA = re.compile(r"(?:exceeded|failed) quota: ([^,:\s]+)[,:] ?(.*)", re.DOTALL)
_LIMIT = re.compile(
    r"\b((?:maximum|minimum|memory max|cpu max)\b.* per (?:Container|Pod)\b.*)", re.DOTALL
)
#: What a call ends with that got no answer: packets are dropped, or nobody listens.
_NO_ANSWER = (
    "context deadline exceeded",
    "i/o timeout",
    "Client.Timeout",
    "connection refused",
    "no route to host",
    "connection reset",
    "EOF",
)


def _refused(symptoms: Symptoms) -> Iterator[Symptom]:
    for symptom in symptoms:
        if symptom.table == "events" and symptom.kind == "pod":
            yield symptom


def _owner(symptom: Symptom, events: pd.DataFrame, rollouts: pd.DataFrame) -> Subject:
    """Return the workload whose pods could not be made, from the object that was to make them."""
    row = events.loc[symptom.rows[0]]
    kind, namespace, name = str(row["kind"]), str(row["namespace"]), str(row["name"])
    own = rollouts[(rollouts["namespace"] == namespace) & (rollouts["replica_set"] == name)]
    if kind == "ReplicaSet" and len(own):
        return Subject(str(own["workload_kind"].iloc[0]), namespace, str(own["workload"].iloc[0]))
    return Subject(kind, namespace, name)


def _ready_istiod(mesh: Mesh) -> bool:
    return any(pod.mesh == "istiod" and pod.ready for pod in mesh.pods)


def _called(webhooks: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the rows of Istio's webhooks with a name, without those that never apply."""
    rows = rows_of(webhooks, webhook=name)
    return rows[(rows["deactivated"] != True).fillna(True).astype(bool)]  # noqa: E712  NA is not True


def _configuration(row: Mapping[Any, Any]) -> Subject:
    kind = "Mutating" if row["kind"] == "mutating" else "Validating"
    return Subject(f"{kind}WebhookConfiguration", "", str(row["configuration"]))


@check("MNB170", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def webhook_trusts_another_authority(
    symptoms: Symptoms,
    webhooks: pd.DataFrame,
    istiod_ports: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every webhook of Istio trusts the authority that signed istiod's certificate.

    The API server verifies what istiod shows on 15017 with the webhook's caBundle. When that is
    another authority's, each call fails with x509: no pod is injected, and with the failure policy
    Fail none is made.
    """
    shown = istiod_ports[(istiod_ports["port"] == 15017) & istiod_ports["chain_keys"].map(bool)]
    by_configuration: dict[Subject, list[int]] = {}
    for index, row in zip(webhooks.index.tolist(), webhooks.to_dict("records"), strict=True):
        if plain(row["deactivated"]) is True or plain(row["service"]) is None:
            continue
        keys = {
            str(key)
            for every, namespace in zip(shown["chain_keys"], shown["namespace"], strict=True)
            for key in every
            if namespace == row["service_namespace"]
        }
        trusted = set(row["ca_keys"] or ())
        # Without any key in either, nothing can be compared; an empty bundle trusts nobody.
        empty = plain(row["ca_subject"]) is None
        if keys and not keys & trusted and (trusted or empty):
            by_configuration.setdefault(_configuration(row), []).append(index)
    for symptom in _refused(symptoms):
        found = _CALL.search(symptom.details)
        if found and "x509" in found[2] and not _outdated(found[2]):
            called = _called(webhooks, found[1])
            for index, row in zip(called.index.tolist(), called.to_dict("records"), strict=True):
                blamed = by_configuration.setdefault(_configuration(row), [])
                if index not in blamed:
                    blamed.append(index)
    for subject, members in by_configuration.items():
        rows = webhooks.loc[sorted(members)]
        names = set(rows["webhook"])
        seen = [
            s
            for s in _refused(symptoms)
            if (found := _CALL.search(s.details)) and found[1] in names and "x509" in found[2]
        ]
        trusts = and_list(rows["ca_subject"].dropna()) or "nobody"
        first = rows.iloc[0]
        yield Finding(
            subject,
            f"{subject} trusts {trusts} by its caBundle, and that did not sign the certificate "
            f"that {first['service_namespace']}/{first['service']} shows on 15017: the API server "
            f"refuses to call it (failure policy {first['failure_policy']}).",
            "Let istiod write its caBundle again, and keep other tools from writing it: "
            f"`kubectl -n {first['service_namespace']} rollout restart deployment "
            f"{first['service']}`.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(webhooks, rows.index),
                Evidence.of(istiod_ports, shown.index),
            ),
            explains=ids(seen),
        )


def _outdated(reason: str) -> bool:
    return "has expired" in reason or "not yet valid" in reason


@check("MNB171", Severity.ERROR, cause=Cause.DATA_PLANE)
def webhook_out_of_reach(
    mesh: Mesh,
    symptoms: Symptoms,
    webhooks: pd.DataFrame,
    network_policies: pd.DataFrame,
    service_endpoints: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every webhook of a ready istiod can be reached by the API server.

    It calls them on 15017 from the network of the control plane. A firewall, a NetworkPolicy, a
    proxy setting of the API server or a pod network that it has no route to makes the calls time
    out, although istiod is well.
    """
    for symptom in _refused(symptoms):
        found = _CALL.search(symptom.details)
        if not found or not any(words in found[2] for words in _NO_ANSWER):
            continue
        called = _called(webhooks, found[1])
        if not len(called) or not _ready_istiod(mesh):
            continue
        row = called.iloc[0]
        namespace, name = str(row["service_namespace"]), str(row["service"])
        ports = [p for p in mesh.services if (p.namespace, p.service) == (namespace, name)]
        if not ports and mesh.services and not facts.gaps("services"):
            continue  # there is no such Service: that says the check for it
        servers = mesh.selected(ports[0]) if ports else []
        if ports and not any(pod.ready for pod in servers):
            continue  # nobody is behind the Service: that says the check for it
        walls = network_policies[
            [
                space == namespace
                and "Ingress" in types
                and any(selects(selector, pod.labels) for pod in servers)
                for space, selector, types in zip(
                    network_policies["namespace"],
                    network_policies["selector"],
                    network_policies["types"],
                    strict=True,
                )
            ]
        ]
        reason = found[2].rpartition(": ")[2].strip().rstrip(".")
        if len(walls):
            wall = walls.sort_values("created").iloc[-1]
            subject = Subject("NetworkPolicy", str(wall["namespace"]), str(wall["policy"]))
            why = f"; {subject} selects the pods of istiod"
        else:
            subject, why = Subject("Service", namespace, name), ""
        astray = next(
            (p for p in ports if p.port == plain(row["service_port"]) and _elsewhere(p)), None
        )
        if astray is not None:
            subject, why = (
                Subject("Service", namespace, name),
                f", because its port {astray.port} leads to {astray.target_port}, not to 15017",
            )
        yield Finding(
            subject,
            f"The API server cannot reach the webhook {found[1]} at Service {namespace}/{name} "
            f"({reason}), although istiod is ready{why}: pods cannot be made.",
            "Let the API server through to 15017 of istiod, in firewalls and NetworkPolicies: "
            f"`kubectl -n {namespace} get networkpolicies,endpointslices`.",
            evidence=(
                *symptom_rows(facts, [symptom]),
                Evidence.of(webhooks, called.index),
                Evidence.of(rows_of(service_endpoints, namespace=namespace, service=name)),
                Evidence.of(network_policies, walls.index),
            ),
            related=(Subject("Service", namespace, name),) if len(walls) else (),
            explains=ids([symptom]),
            cause=Cause.CONTROL_PLANE_CONFIG if astray is not None else None,
        )


def _elsewhere(port: ServicePort) -> bool:
    return port.target_port.isdigit() and port.target_port != "15017"


@check("MNB172", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def injector_refuses_pod(
    symptoms: Symptoms,
    webhooks: pd.DataFrame,
    events: pd.DataFrame,
    rollouts: pd.DataFrame,
    istiod_log: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every pod is accepted by the injector.

    It refuses a pod whose annotations it cannot read, that asks for a template it does not have, or
    that wants a port of Istio's own. The text of the event names which.
    """
    for symptom in _refused(symptoms):
        found = _DENIED.search(symptom.details)
        if not found or not found[1].endswith("istio.io"):
            continue
        subject = _owner(symptom, events, rollouts)
        logged = istiod_log[
            istiod_log["level"].isin(["error", "warn"]).astype(bool)
            & istiod_log["message"].str.contains("injection failed", case=False).fillna(False)
        ]
        yield Finding(
            subject,
            f"The injector refuses the pods of {subject}: {found[2].strip().rstrip('.')}.",
            f"Correct the annotation or label that it names in the pod template: {edit(subject)}.",
            evidence=(
                *symptom_rows(facts, [symptom]),
                Evidence.of(webhooks, rows_of(webhooks, webhook=found[1]).index),
                Evidence.of(istiod_log, logged.tail(3).index),
            ),
            explains=ids([symptom]),
        )


@check("MNB173", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def admission_policy_refuses_pod(
    symptoms: Symptoms, events: pd.DataFrame, rollouts: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No other admission policy refuses what is to run in the mesh.

    OPA Gatekeeper, Kyverno and ValidatingAdmissionPolicies judge a pod as it is after injection:
    the sidecar's own containers can break a rule that the application keeps.
    """
    for symptom in _refused(symptoms):
        found = _DENIED.search(symptom.details)
        if found and found[1].endswith("istio.io"):
            continue
        policy = _POLICY.search(symptom.details)
        if not found and not policy:
            continue
        subject = _owner(symptom, events, rollouts)
        said = policy or found
        assert said is not None
        by = f"ValidatingAdmissionPolicy {said[1]}" if policy else f"the webhook {said[1]}"
        about = " The containers of Istio are named in it." if "istio-" in said[2] else ""
        yield Finding(
            subject,
            f"Pods of {subject} are refused by {by}: {said[2].strip().rstrip('.')}.{about}",
            f"Let the pod template keep that rule, or exempt it from the rule: {edit(subject)}.",
            evidence=symptom_rows(facts, [symptom]),
            explains=ids([symptom]),
        )


def _by_pod_security(symptom: Symptom, owner: Subject) -> tuple[Subject, str, str] | None:
    found = _POD_SECURITY.search(symptom.details)
    if not found:
        return None
    containers = set(
        re.findall(r'"([\w-]+)"', " ".join(re.findall(r"containers? [^)]*", found[2])))
    )
    if containers and not any(name.startswith("istio-") for name in containers):
        return owner, f"its own containers break Pod Security {found[1]}: {found[2]}", edit(owner)
    namespace = Subject("Namespace", "", symptom.workload[0])
    why = (
        f"{namespace} enforces Pod Security {found[1]}, which injected containers break: {found[2]}"
    )
    enforced = "pod-security.kubernetes.io/enforce=privileged"
    how = (
        f"`kubectl label namespace {namespace.name} {enforced} --overwrite`, or use the CNI plugin"
    )
    return namespace, why, how


def _by_quota(symptom: Symptom, owner: Subject) -> tuple[Subject, str, str] | None:
    found = _QUOTA.search(symptom.details)
    if not found:
        return None
    quota = Subject("ResourceQuota", symptom.workload[0], found[1])
    return quota, f"{quota} leaves no room for them: {found[2]}", edit(quota)


def _by_limit(symptom: Symptom, owner: Subject) -> tuple[Subject, str, str] | None:
    found = _LIMIT.search(symptom.details)
    if not found:
        return None
    # The text does not name the LimitRange; a namespace usually has one.
    namespace = symptom.workload[0]
    subject = Subject("LimitRange", namespace, "")
    return subject, f"a LimitRange of {namespace} forbids it: {found[1]}", ""


_BY: tuple[Callable[[Symptom, Subject], tuple[Subject, str, str] | None], ...] = (
    _by_pod_security,
    _by_quota,
    _by_limit,
)


@check("MNB174", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def namespace_refuses_injected_pod(
    symptoms: Symptoms,
    events: pd.DataFrame,
    rollouts: pd.DataFrame,
    namespaces: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every namespace of the mesh has room for the injected containers, and allows them.

    istio-init needs NET_ADMIN and NET_RAW, which Pod Security forbids in its levels baseline and
    restricted, and a sidecar counts against quotas and limits like any container.
    """
    for symptom in _refused(symptoms):
        if _DENIED.search(symptom.details):
            continue
        owner = _owner(symptom, events, rollouts)
        for judge in _BY:
            verdict = judge(symptom, owner)
            if verdict is None:
                continue
            subject, why, how = verdict
            if subject.kind == "LimitRange":
                names = rows_of(facts["limit_ranges"], namespace=subject.namespace)[
                    "limit_range"
                ].tolist()
                subject = (
                    Subject("LimitRange", subject.namespace, str(names[0])) if names else owner
                )
                how = edit(subject)
            yield Finding(
                subject,
                f"Pods of {owner} cannot be made: {why.strip().rstrip('.')}.",
                f"Allow them, or change what they need: {how}.",
                evidence=(
                    *symptom_rows(facts, [symptom]),
                    Evidence.of(rows_of(namespaces, namespace=symptom.workload[0])),
                ),
                related=(owner,) if owner != subject else (),
                explains=ids([symptom]),
            )
            break


@check("MNB175", Severity.ERROR, cause=Cause.DATA_PLANE)
def pod_refused(
    mesh: Mesh, symptoms: Symptoms, events: pd.DataFrame, rollouts: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Kubernetes makes every pod that a workload asks for.

    Whatever the reason, the event FailedCreate says it in the API server's words.
    """
    for symptom in _refused(symptoms):
        if _CALL.search(symptom.details) and not _ready_istiod(mesh):
            continue  # the webhook is down with istiod
        subject = _owner(symptom, events, rollouts)
        yield Finding(
            subject,
            f"Pods of {subject} cannot be made: {symptom.details.strip().rstrip('.')}.",
            f"Mend what the message names, then let it try again: {restart(subject)}.",
            evidence=symptom_rows(facts, [symptom]),
            explains=ids([symptom]),
            certainty=0.4,
        )
