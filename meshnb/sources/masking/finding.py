"""Finds what is somebody's name in the answers of a mesh, before any of them is written.

In objects the fields say what a name is. Elsewhere its shape does: hosts, SPIFFE names, clusters of
Envoy, e-mail addresses. Fields are those of Kubernetes, of Istio and of the Gateway API, and those
in which istiod and ztunnel print the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import yaml

from meshnb.sources.base import (
    HttpQuestion,
    ListQuestion,
    LogQuestion,
    ProbeQuestion,
    Question,
)
from meshnb.sources.masking.names import Names
from meshnb.sources.masking.vocabulary import TOP_LEVELS, is_public


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Fields with a name, or several.
_NAMES = _words(
    "name namespace namespaces notNamespaces generateName serviceAccount serviceAccountName "
    "serviceAccounts notServiceAccounts nodeName node subset secretName credentialName "
    "credentialNames claimName volumeName principals notPrincipals requestPrincipals "
    "notRequestPrincipals audiences network networkName networks clusterId clusterID clusterName "
    "cluster cluster_id trustDomain trustDomainAliases trust_domain sectionName holderIdentity "
    "user username groups workload workloadName workload_name canonicalName canonical_name "
    "instance claims remoteClusters container image imageID revision storageClassName "
    "priorityClassName subdomain accountName identity identities source_workload waypoint gateway "
    "networkGateway authority uri prefixRewrite rewrite paths notPaths exact prefix regex suffix "
    "value values notValues set add fromHeaders httpHeaderName httpCookie httpQueryParameterName "
    "key headers ingressGatewaySelector providers provider"
)
#: Fields with hosts, or with what has one in it.
_HOSTS = _words(
    "host hosts hostname hostnames externalName gateways exportTo sniHosts serverName sni "
    "subjectAltNames subject_alt_names fqdn issuer jwksUri address addresses domain dnsNames "
    "service ingressService domains url"
)
#: Maps whose values are names, and whose keys are where they are of somebody's domain.
_LABELS = _words("labels matchLabels selector nodeSelector annotations LABELS ANNOTATIONS")
#: Maps whose keys are names: of headers, and of files in ConfigMaps.
_KEYED = _words("headers withoutHeaders queryParams set add data binaryData stringData")
#: Kinds whose names are those of a product.
_UNREAD_LISTS = frozenset({"customresourcedefinitions", "certificatesigningrequests"})
_CONTROLLERS = ("pod-template-hash", "controller-revision-hash", "pod-template-generation")
_ONE = re.compile(r"[\w.:/@*+~-]{1,253}", re.ASCII)
_RUN = re.compile(r"[A-Za-z0-9_.-]+")
_CLUSTER = re.compile(
    r"\b(?:out|in)bound(?:\||_\.)\d*(?:\||_\.)([\w.-]*?)(?:\||_\._?\.?)([\w.*-]+)", re.ASCII
)
_SPIFFE = re.compile(r"spiffe://([\w.-]+)((?:/[\w.-]+)*)", re.ASCII)
_DOMAIN = re.compile(r"@([\w-]+(?:\.[\w-]+)+)", re.ASCII)
_USER = re.compile(r"[\w.+%-]{1,64}\Z", re.ASCII)
_KUBERNETES = re.compile(r"/namespaces/([\w.-]+)/[\w.-]+/([\w.-]+)", re.ASCII)
#: What ends like a name of DNS, and is as likely a file, or two words without a blank.
_SHORTEST = 6
_FILES = _words("app dev is info it in at be to no so py sh rs")


_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def find(names: Names, question: Question, body: bytes) -> None:
    """Add the names in an answer, and in its question."""
    match question:
        case ListQuestion(_, resource):
            if resource not in _UNREAD_LISTS:
                _in_objects(names, body)
        case HttpQuestion(namespace, pod, port) | ProbeQuestion(namespace, pod, port):
            _of_pod(names, namespace, pod)
            if port != 15000 or b'"ztunnel' in body[:4096] or b'"workloads"' in body:
                _in_objects(names, body)
            elif b'"node"' in body:
                _in_bootstrap(names, body)
        case LogQuestion(namespace, pod, container):
            _of_pod(names, namespace, pod)
            names.add(container, defined=True)
    find_shapes(names, body.decode("utf-8", "replace"))


def _of_pod(names: Names, namespace: str, pod: str) -> None:
    names.add(namespace, defined=True)
    names.add(pod, defined=True)


def find_shapes(names: Names, text: str) -> None:
    """Add what looks like a name whatever stands around it."""
    if "bound" in text:
        for subset, host in set(_CLUSTER.findall(text)):
            names.add(subset)
            names.add_host(host)
    if "spiffe://" in text:
        for domain, path in set(_SPIFFE.findall(text)):
            names.add_host(domain)
            names.add(path)
    for match in _DOMAIN.finditer(text):
        user = _USER.search(text, max(0, match.start() - 64), match.start())
        if user is not None and not is_public(match[1]):
            names.add(user[0])
            names.add_host(match[1])
    if "/namespaces/" in text:
        for namespace, name in set(_KUBERNETES.findall(text)):
            names.add(namespace)
            names.add(name)
    for run in set(_RUN.findall(text)):
        if "." in run:
            _dotted(names, run.strip("._-"))


def _dotted(names: Names, run: str) -> None:
    lower = run.lower()
    last = lower.rpartition(".")[2]
    if ".svc" in lower and re.search(r"\.svc(?:\.|$)", lower):
        for label in lower.partition(".svc")[0].split(".")[-2:]:
            names.add(label.rpartition("_")[2])
        names.add_host(lower.partition(".svc")[2])
    elif last in TOP_LEVELS - _FILES and "_" not in lower and len(lower) > _SHORTEST:
        names.add_host(lower)


def _in_objects(names: Names, body: bytes) -> None:
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError, ValueError):
        return
    try:
        _Walk(names).value(document)
    except RecursionError:
        return


def _in_bootstrap(names: Names, body: bytes) -> None:
    """Add what a proxy says of itself: its labels, its workload, its cluster."""
    try:
        dump = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        for part in msgspec.json.decode(dump.get("configs", b"[]"), type=list[msgspec.Raw]):
            if b"BootstrapConfigDump" in bytes(part)[:200]:
                node = msgspec.json.decode(part)["bootstrap"]["node"]
                names.add(str(node.get("cluster", "")))
                names.add(str(node.get("id", "")))
                _Walk(names).value(node["metadata"])
    except (msgspec.DecodeError, UnicodeError, ValueError, TypeError, KeyError, AttributeError):
        return


class _Walk:
    """Goes through one document."""

    def __init__(self, names: Names) -> None:
        self._names = names

    def value(self, value: Any) -> None:
        """Add the names in a value."""
        if isinstance(value, dict):
            self._object(value)
        elif isinstance(value, list):
            for item in value:
                self.value(item)

    def _object(self, fields: Mapping[str, Any]) -> None:
        metadata = fields.get("metadata")
        if isinstance(metadata, dict):
            self._metadata(metadata)
        settings = fields.get("data")
        if isinstance(settings, dict):
            self._settings(settings)
        for field, value in fields.items():
            if field in _LABELS and isinstance(value, dict):
                self._labels(value)
            elif field == "metadata" and isinstance(value, dict):
                self._rest(value)
            elif field == "env" and isinstance(value, list):
                continue  # names of variables are settings
            else:
                self._field(field, value)

    def _settings(self, settings: Mapping[str, Any]) -> None:
        """Add the names in the settings of a mesh, which are YAML in a ConfigMap."""
        for field in ("mesh", "meshNetworks"):
            if isinstance(settings.get(field), str):
                try:
                    self.value(yaml.load(settings[field], Loader=_Loader))  # noqa: S506  a safe one
                except (yaml.YAMLError, ValueError):
                    continue

    def _field(self, field: str, value: Any) -> None:
        if field in _KEYED and isinstance(value, dict):
            for key in value:
                self._names.add(str(key), whole=False)
        if field in _HOSTS:
            for text in _texts(value):
                self._host(text)
        elif field in _NAMES or field.isupper():
            for text in _texts(value):
                self._name(text, whole=False)
        elif "." in field or "/" in field:
            self._key(field)
        self.value(value)

    def _rest(self, metadata: Mapping[str, Any]) -> None:
        self.value({k: v for k, v in metadata.items() if k not in ("name", "generateName")})

    def _metadata(self, metadata: Mapping[str, Any]) -> None:
        name, stem = metadata.get("name"), metadata.get("generateName")
        labels = metadata.get("labels")
        if isinstance(labels, dict):
            for label in _CONTROLLERS:
                self._names.add_random(*re.split(r"[^A-Za-z0-9]", str(labels.get(label, ""))))
        if not isinstance(name, str):
            return
        if isinstance(stem, str) and stem and name.startswith(stem):
            self._names.add_random(*re.split(r"[^A-Za-z0-9]", name[len(stem) :]))
        if isinstance(metadata.get("namespace", ""), str):
            self._names.add(str(metadata.get("namespace", "")), defined=True)
        if not is_public(name):
            self._names.add(name, defined=True)

    def _labels(self, labels: Mapping[str, Any]) -> None:
        for key, value in labels.items():
            self._key(str(key))
            if isinstance(value, dict):
                self._labels(value)
            elif isinstance(value, str) and _ONE.fullmatch(value) and key not in _CONTROLLERS:
                self._name(value, whole=True)

    def _key(self, key: str) -> None:
        domain, slash, name = key.partition("/")
        if slash and "." in domain and not is_public(domain):
            self._names.add_host(domain)
            self._names.add(name, whole=False)

    def _host(self, text: str) -> None:
        for part in re.split(r"[^\w.*-]+", text):
            self._names.add_host(part) if "." in part else self._names.add(part)

    def _name(self, text: str, *, whole: bool) -> None:
        if not is_public(text):
            self._names.add(text, whole=whole)


def _texts(value: Any) -> Iterable[str]:
    """Yield the text, the texts of a list, or those of a map."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        yield from (item for item in value if isinstance(item, str))
    elif isinstance(value, dict):
        yield from (item for item in value.values() if isinstance(item, str))
