"""A real kube-apiserver with a recording in it, and a node whose pods answer from it.

etcd, kube-apiserver and a node (``main.go``, with the kubelet's own server and streaming) run as
processes. The objects of the recording are put straight into etcd, so that they keep their uids,
times and states. Each pod has a loopback address of its own, where its open ports listen and answer
as recorded; a port that is closed is refused by the kernel. Linux only, for these addresses.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from meshnb.sources import LogQuestion, Source
from meshnb.sources.base import only
from meshnb.sources.serve.recorded import Collection, Recorded
from tests.kubernetes.authority import ADMIN, Authority, User
from tests.kubernetes.sockets import Sockets

_HOST = "127.0.0.1"
#: Where etcd keeps resources that are not kept under their own name (pkg/registry in Kubernetes).
_KEPT_AS = {
    ("", "nodes"): "minions",
    ("", "services"): "services/specs",
    ("", "endpoints"): "services/endpoints",
    ("", "replicationcontrollers"): "controllers",
    ("networking.k8s.io", "ingresses"): "ingress",
}
#: Objects that the API server makes by itself, or that only make noise here.
_OWN = frozenset({"leases", "servicecidrs", "ipaddresses", "customresourcedefinitions"})
_START_S = 60.0


@dataclass
class Kubernetes:
    """The cluster while it runs."""

    url: str
    folder: Path
    authority: Authority
    sockets: Sockets
    processes: dict[str, subprocess.Popen[bytes]]
    restart_node: Callable[[], None]
    etcd: str

    def kubeconfig(
        self,
        user: User | str | Mapping[str, Any] = ADMIN,
        *,
        namespace: str = "",
        **cluster: Any,
    ) -> Path:
        """Write a kubeconfig for a user, a token, or a user entry as it stands there."""
        if isinstance(user, User):
            user = user.token
        entry = {"token": user} if isinstance(user, str) else dict(user)
        context = {"cluster": "real", "user": "user", "namespace": namespace}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "real",
                    "cluster": {
                        "server": self.url,
                        "certificate-authority": str(self.authority.folder / "ca.pem"),
                        **cluster,
                    },
                }
            ],
            "users": [{"name": "user", "user": entry}],
            "contexts": [{"name": "real", "context": context}],
            "current-context": "real",
        }
        path = self.folder / f"kubeconfig-{abs(hash(json.dumps(content)))}"
        path.write_text(json.dumps(content))
        return path

    def ask(
        self, method: str, path: str, body: object = None, *, user: User = ADMIN, kind: str = "json"
    ) -> Any:
        """Send one request to the API server; raises urllib.error.HTTPError."""
        return _ask(
            self.url + path,
            method,
            body,
            authority=self.authority,
            headers={"Authorization": f"Bearer {user.token}"},
            kind=f"application/{kind}",
        )

    def allow(self, user: User, roles: list[dict[str, Any]]) -> None:
        """Create roles as they were printed, and bind a user to each."""
        for role in roles:
            kind, namespace = role["kind"], role["metadata"].get("namespace")
            base = "/apis/rbac.authorization.k8s.io/v1"
            place = f"{base}/namespaces/{namespace}" if namespace else base
            plural = kind.lower() + "s"
            name = f"{user.name}-{role['metadata']['name']}"
            binding = {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": f"{kind}Binding",
                "metadata": {"name": name},
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": kind,
                    "name": name,
                },
                "subjects": [
                    {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user.name}
                ],
            }
            self.ask("POST", f"{place}/{plural}", {**role, "metadata": {"name": name}})
            self.ask("POST", f"{place}/{plural.removesuffix('s')}bindings", binding)

    def put(self, resource: tuple[str, str], item: Mapping[str, Any]) -> None:
        """Put an object into etcd."""
        _put(self.etcd, _key(*resource, item), item)

    def remove(self, resource: tuple[str, str], item: Mapping[str, Any]) -> None:
        """Take an object out of etcd."""
        _etcd(self.etcd, "deleterange", key=_key(*resource, item))


def _ask(
    url: str,
    method: str,
    body: object = None,
    *,
    authority: Authority | None = None,
    headers: Mapping[str, str] | None = None,
    kind: str = "application/json",
) -> Any:
    context = None
    if authority is not None:
        context = ssl.create_default_context(cafile=authority.folder / "ca.pem")
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(  # noqa: S310  a server of this test
        url, content, {"Content-Type": kind, **(headers or {})}, method=method
    )
    with urllib.request.urlopen(request, context=context, timeout=30) as response:  # noqa: S310
        answer = response.read()
    return json.loads(answer) if answer[:1] in (b"{", b"[") else answer.decode()


def _etcd(url: str, verb: str, **fields: bytes) -> Any:
    coded = {name: base64.b64encode(value).decode() for name, value in fields.items()}
    return _ask(f"{url}/v3/kv/{verb}", "POST", coded)


def _put(url: str, key: bytes, item: Mapping[str, Any]) -> None:
    _etcd(url, "put", key=key, value=json.dumps(item).encode())


def _key(group: str, resource: str, item: Mapping[str, Any]) -> bytes:
    ours = "." not in group or group.endswith(".k8s.io")
    custom = not ours or group.startswith("gateway.networking.")
    place = f"{group}/{resource}" if custom else _KEPT_AS.get((group, resource), resource)
    metadata = item["metadata"]
    return "/".join(
        ["/registry", place, *filter(None, [metadata.get("namespace")]), metadata["name"]]
    ).encode()


def is_custom(group: str) -> bool:
    """Whether a group comes with definitions, and is none of Kubernetes' own."""
    return _key(group, "x", {"metadata": {"name": "y"}}) != b"/registry/x/y" and "." in group


def _definition(collections: list[Collection]) -> dict[str, Any]:
    """Return a definition of a kind that takes any object, in each version that was listed."""
    first = collections[0]
    kind = first.kind
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{first.resource}.{first.group}",
            # Kubernetes keeps groups of its own for those who asked.
            "annotations": {
                "api-approved.kubernetes.io": "https://github.com/kubernetes/enhancements"
            },
        },
        "spec": {
            "group": first.group,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "names": {
                "kind": kind.name,
                "plural": first.resource,
                "singular": kind.singular,
                "listKind": f"{kind.name}List",
            },
            "versions": [
                {
                    "name": one.api_version.partition("/")[2],
                    "served": True,
                    "storage": place == 0,
                    "schema": {"openAPIV3Schema": anything},
                    "subresources": {"status": {}},
                }
                for place, one in enumerate(collections)
            ],
        },
    }


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind((_HOST, 0))
        port: int = taken.getsockname()[1]
        return port


def _wait(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            what()
        except (OSError, urllib.error.URLError, AssertionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


@contextmanager
def running(
    source: Source, binaries: Path, folder: Path, users: tuple[User, ...] = ()
) -> Iterator[Kubernetes]:
    """Run a cluster that holds a recording; ``binaries`` has etcd, kube-apiserver and node."""
    authority = Authority(folder / "pki")
    server = authority.sign("server", User("kube-apiserver"))
    authority.sign("node", User("node"))
    authority.sign("kubelet-client", ADMIN)
    etcd_port, peer_port, port, node_port = (_free_port() for _ in range(4))
    etcd, url = f"http://{_HOST}:{etcd_port}", f"https://{_HOST}:{port}"
    (folder / "tokens.csv").write_text(
        "".join(
            f'{user.token},{user.name},{user.name},"{",".join(user.groups)}"\n'
            for user in (ADMIN, *users)
        )
    )
    processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(name: str, *arguments: str) -> None:
        with (folder / f"{name}.log").open("ab") as log:
            processes[name] = subprocess.Popen(
                [binaries / name, *arguments],
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**os.environ, "KUBE_FEATURES": ""},
            )

    def start_node() -> None:
        start("node", f"--folder={folder}", f"--address={_HOST}:{node_port}")
        _wait(lambda: socket.create_connection((_HOST, node_port), 1).close())

    with ExitStack() as stack:

        @stack.callback
        def _end() -> None:
            for process in reversed(processes.values()):
                process.kill()
                process.wait()

        start(
            "etcd",
            f"--data-dir={folder / 'etcd'}",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls=http://{_HOST}:{peer_port}",
            f"--initial-advertise-peer-urls=http://{_HOST}:{peer_port}",
            f"--initial-cluster=default=http://{_HOST}:{peer_port}",
            "--log-level=error",
            "--unsafe-no-fsync",
        )
        _wait(lambda: _ask(f"{etcd}/health", "GET"))
        sockets = stack.enter_context(Sockets(source))
        (folder / "addresses.json").write_text(json.dumps(sockets.addresses))
        recorded = sockets.replay.recorded
        collections = [one for one in recorded.collections() if one.resource not in _OWN]
        _load(etcd, [one for one in collections if not is_custom(one.group)], node_port)
        _write_logs(recorded, folder)
        start(
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            f"--secure-port={port}",
            f"--bind-address={_HOST}",
            f"--tls-cert-file={server}",
            f"--tls-private-key-file={server}",
            f"--client-ca-file={authority.folder / 'ca.pem'}",
            f"--token-auth-file={folder / 'tokens.csv'}",
            f"--service-account-key-file={server}",
            f"--service-account-signing-key-file={server}",
            f"--service-account-issuer={url}",
            "--authorization-mode=RBAC",
            f"--kubelet-client-certificate={authority.folder / 'kubelet-client.pem'}",
            f"--kubelet-client-key={authority.folder / 'kubelet-client.pem'}",
            "--kubelet-preferred-address-types=InternalIP",
            "--disable-admission-plugins=ServiceAccount",
            "--endpoint-reconciler-type=none",
            "--service-cluster-ip-range=10.96.0.0/12",
            "--allow-privileged=true",
        )
        cluster = Kubernetes(url, folder, authority, sockets, processes, start_node, etcd)
        _wait(lambda: cluster.ask("GET", "/readyz"))
        cluster.kubeconfig().rename(folder / "kubeconfig")
        start_node()
        _define(cluster, [one for one in collections if is_custom(one.group)])
        yield cluster


def _load(etcd: str, collections: list[Collection], node_port: int) -> None:
    for collection in collections:
        for item in collection.items:
            whole = collection.whole(item)
            if collection.resource == "nodes":
                whole = {**whole, "status": {**whole.get("status", {}), **_reached_at(node_port)}}
            elif collection.resource == "secrets":
                whole = {**whole, "data": _coded(whole.get("data") or {})}
            _put(etcd, _key(collection.group, collection.resource, whole), whole)


def _coded(values: Mapping[str, str]) -> dict[str, str]:
    """Return the values of a Secret as the API server wants them, also those taken out."""
    return {
        name: value
        if re.fullmatch(r"(?:[\w+/]{4})*(?:[\w+/]{2}==|[\w+/]{3}=)?", value)
        else base64.b64encode(value.encode()).decode()
        for name, value in values.items()
    }


def _reached_at(port: int) -> dict[str, Any]:
    return {
        "addresses": [{"type": "InternalIP", "address": _HOST}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }


def _define(cluster: Kubernetes, collections: list[Collection]) -> None:
    """Define the kinds that the recorded cluster knew, and put their objects into it."""
    kinds: dict[tuple[str, str], list[Collection]] = {}
    for collection in collections:
        kinds.setdefault((collection.group, collection.resource), []).append(collection)
    base = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    for found in kinds.values():
        cluster.ask("POST", base, _definition(found))
    for found in kinds.values():
        path = f"/apis/{found[0].api_version}/{found[0].resource}"
        _wait(partial(cluster.ask, "GET", path))
        for item in found[0].items:
            whole = found[0].whole(item)
            cluster.put((found[0].group, found[0].resource), whole)


def _write_logs(recorded: Recorded, folder: Path) -> None:
    """Write the recorded logs as a container runtime does: time, stream, tag and line."""
    for question in recorded.source.questions():
        if not isinstance(question, LogQuestion):
            continue
        answer = only(recorded.source, question)
        if answer.error is not None:
            continue
        suffix = ".previous.log" if question.previous else ".log"
        file = folder / "logs" / question.namespace / question.pod / (question.container + suffix)
        file.parent.mkdir(parents=True, exist_ok=True)
        stamp = answer.taken_at.strftime("%Y-%m-%dT%H:%M:%S.%f000Z").encode()
        lines = answer.content.splitlines(keepends=True)
        with file.open("wb") as log:
            for line in lines:
                whole = b"F" if line.endswith(b"\n") else b"P"
                log.write(stamp + b" stdout " + whole + b" " + line.rstrip(b"\n") + b"\n")
