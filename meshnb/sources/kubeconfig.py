"""How a cluster is reached: the kubeconfig file, or the service account of the pod this runs in.

The ``kubernetes`` package reads the configuration and gets the credentials: tokens, client
certificates, exec plugins, OIDC. What goes wrong becomes a sentence with a next step; what a plugin
prints is never repeated, because it may hold a token.
"""

from __future__ import annotations

import logging
import os
import shutil
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass_environment  # type: ignore[attr-defined]

from meshnb.errors import SourceError, UsageError, nearest

#: The name of the one context that a pod has in its own cluster.
IN_CLUSTER = "in-cluster"


@dataclass(frozen=True, slots=True)
class Context:
    """One entry of a kubeconfig: a cluster, a user and a namespace under one name."""

    name: str
    cluster: str
    #: the namespace that commands use when none is given; empty when the entry has none
    namespace: str
    current: bool


@dataclass(slots=True)
class Access:
    """Where an API server is, and how this process proves who it is."""

    context: Context
    server: str
    tls: ssl.SSLContext | None
    #: the name that the server's certificate must have, when it is not the host of ``server``
    tls_name: str | None
    proxy: str | None
    proxy_headers: Mapping[str, str] | None
    _token: Callable[[], str | None]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def authorization(self) -> str | None:
        """Return the value of the header ``Authorization``, renewed when it has expired.

        May run an exec plugin, so it may take its time. Raises SourceError when that fails.
        """
        with self._lock, _complaints() as said:
            try:
                token = self._token()
            except Exception:  # noqa: BLE001  OIDC and gcp raise what their libraries raise
                raise _plugin_failed(self.context.name) from None
        if said:
            raise _plugin_failed(self.context.name)
        return token


def contexts() -> tuple[Context, ...]:
    """Return the contexts of the kubeconfig, the current one first; empty when there is none.

    Nothing is contacted. Raises SourceError when the file cannot be read.
    """
    document = _document()
    if document is None:
        return (Context(IN_CLUSTER, "", "", current=True),) if _in_cluster() else ()
    return _contexts(document)


def load_access(context: str | None = None) -> Access:
    """Return how to reach the cluster of a context, by default the current one.

    Raises UsageError for an unknown context, and SourceError when there is no configuration or its
    credentials cannot be had.
    """
    document = _document()
    if document is None:
        if _in_cluster() and context in (None, IN_CLUSTER):
            return _service_account()
        raise SourceError(
            f"There is no kubeconfig: {' or '.join(map(str, _paths()))} does not exist.",
            next_step="Set KUBECONFIG to the file that your cluster's administrator gave you.",
        )
    known = {one.name: one for one in _contexts(document)}
    if context is None:
        context = str(document.get("current-context") or "")
        if not context:
            raise SourceError(
                "The kubeconfig has no current context.",
                next_step=f"Name one, such as cluster:CONTEXT. {nearest('', known)}",
            )
    if context not in known:
        raise UsageError(
            f"The kubeconfig has no context {context!r}.", next_step=nearest(context, known)
        )
    _look_for_plugin(document, known[context])
    return _from_kubeconfig(known[context], _entry(document, "cluster", known[context].cluster))


def _paths() -> tuple[Path, ...]:
    named = os.environ.get("KUBECONFIG", "")
    found = tuple(Path(part).expanduser() for part in named.split(os.pathsep) if part)
    return found or (Path("~/.kube/config").expanduser(),)


def _in_cluster() -> bool:
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def _document() -> Mapping[str, Any] | None:
    """Return the kubeconfig, of several files one; None when no file exists."""
    paths = _paths()
    if not any(path.is_file() for path in paths):
        return None
    from kubernetes.config.kube_config import KubeConfigMerger  # noqa: PLC0415  a lazy guest

    try:
        merged = KubeConfigMerger(os.pathsep.join(map(str, paths))).config
    except Exception as error:  # noqa: BLE001  the package has no one base class, and YAML has its own
        raise _unreadable(error) from None
    document = _plain(merged)
    if not isinstance(document, dict):
        raise _unreadable("it holds no configuration")
    return document


def _plain(node: Any) -> Any:
    """Return a configuration without the package's nodes, which remember their file."""
    value = getattr(node, "value", node)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _unreadable(why: object) -> SourceError:
    return SourceError(
        f"The kubeconfig {os.pathsep.join(map(str, _paths()))} cannot be read: {_short(why)}.",
        next_step="Check it with `kubectl config view`.",
    )


def _short(why: object) -> str:
    return " ".join(str(why).split())[:200].rstrip(".")


def _entry(document: Mapping[str, Any], kind: str, name: str) -> Mapping[str, Any]:
    """Return the cluster, user or context of a name; empty when it is not there."""
    for one in document.get(f"{kind}s") or ():
        if isinstance(one, dict) and one.get("name") == name:
            found = one.get(kind)
            return found if isinstance(found, dict) else {}
    return {}


def _contexts(document: Mapping[str, Any]) -> tuple[Context, ...]:
    current = document.get("current-context")
    found = [
        Context(
            str(one["name"]),
            str(_entry(document, "context", one["name"]).get("cluster") or ""),
            str(_entry(document, "context", one["name"]).get("namespace") or ""),
            current=one["name"] == current,
        )
        for one in document.get("contexts") or ()
        if isinstance(one, dict) and one.get("name")
    ]
    return tuple(sorted(found, key=lambda one: not one.current))


def _look_for_plugin(document: Mapping[str, Any], context: Context) -> None:
    """Raise SourceError when the user's exec plugin is not installed."""
    user = _entry(document, "context", context.name).get("user")
    plugin = _entry(document, "user", str(user)).get("exec")
    if not isinstance(plugin, dict) or not plugin.get("command"):
        return
    command = str(plugin["command"])
    # A relative path is taken from the folder of the kubeconfig, a bare name from PATH.
    places = [command] if os.sep not in command else [path.parent / command for path in _paths()]
    if not any(shutil.which(place) for place in places):
        hint = _short(plugin.get("installHint") or "")
        raise SourceError(
            f"Context {context.name!r} gets its credentials from the program {command!r}, which is "
            "not installed.",
            next_step=hint + "." if hint else f"Install {command}, or add its folder to PATH.",
        )


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """Collect what the ``kubernetes`` package logs as an error, instead of printing it.

    It logs that a plugin failed, and goes on without credentials.
    """
    said: list[str] = []

    def listen(record: logging.LogRecord) -> bool:
        ours = record.pathname.replace(os.sep, "/").endswith("kubernetes/config/kube_config.py")
        if ours:
            said.append(record.getMessage())
        return not ours

    # Without any handler, logging.error would set one up for the whole process.
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)
    root.addFilter(listen)
    try:
        yield said
    finally:
        root.removeFilter(listen)
        root.removeHandler(silent)


def _plugin_failed(context: str) -> SourceError:
    return SourceError(
        f"The program that gets the credentials of context {context!r} failed.",
        next_step=f"Run `kubectl --context {context} get namespaces` to see what it says; mostly a "
        "new login is wanted.",
    )


def plugin_hangs(context: str, seconds: float) -> SourceError:
    """Return what to say of a plugin that has not given credentials in time."""
    return SourceError(
        f"The program that gets the credentials of context {context!r} did not end within "
        f"{seconds:g} s.",
        next_step=f"Run `kubectl --context {context} get namespaces` to see what it waits for.",
    )


def _from_kubeconfig(context: Context, cluster: Mapping[str, Any]) -> Access:
    from kubernetes.client import Configuration  # noqa: PLC0415  a lazy guest
    from kubernetes.config import load_kube_config  # noqa: PLC0415

    settings = Configuration()
    paths = os.pathsep.join(map(str, _paths()))
    # Keys and certificates that stand in the kubeconfig itself become files, for OpenSSL to read.
    with _private_folder() as folder, _complaints() as said:
        try:
            load_kube_config(
                paths, context.name, settings, persist_config=False, temp_file_path=folder
            )
        except Exception as error:  # noqa: BLE001  OIDC and gcp raise what their libraries raise
            if said:
                raise _plugin_failed(context.name) from None
            raise SourceError(
                f"Context {context.name!r} of the kubeconfig cannot be used: {_short(error)}.",
                next_step=f"Check it with `kubectl --context {context.name} get namespaces`.",
            ) from None
        if said:
            raise _plugin_failed(context.name)
        return _access(context, settings, cluster)


@contextmanager
def _private_folder() -> Iterator[str]:
    """Return a folder for keys that is gone after the block, and forgotten by the package too."""
    from kubernetes.config import kube_config  # noqa: PLC0415  a lazy guest

    with tempfile.TemporaryDirectory(prefix="meshnb-") as folder:
        try:
            yield folder
        finally:
            # It would take the files for there still, when the same keys are loaded again.
            written: dict[str, str] = kube_config._temp_files  # noqa: SLF001
            for content in [key for key, path in written.items() if path.startswith(folder)]:
                del written[content]


def _service_account() -> Access:
    from kubernetes.client import Configuration  # noqa: PLC0415  a lazy guest
    from kubernetes.config import ConfigException, load_incluster_config  # noqa: PLC0415

    settings = Configuration()
    try:
        load_incluster_config(settings)
    except ConfigException as error:
        raise SourceError(
            f"This pod has no service account to use: {_short(error)}.",
            next_step="Set automountServiceAccountToken, or KUBECONFIG.",
        ) from None
    return _access(Context(IN_CLUSTER, "", _own_namespace(), current=True), settings, {})


def _own_namespace() -> str:
    file = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def _access(context: Context, settings: Any, cluster: Mapping[str, Any]) -> Access:
    server = str(settings.host).rstrip("/")
    proxy = _proxy(server, cluster)
    if proxy and urlsplit(proxy).scheme not in ("http", "https"):
        raise SourceError(
            f"Context {context.name!r} wants a proxy of the kind "
            f"{urlsplit(proxy).scheme or 'unknown'}, which is not supported.",
            next_step="Use an http:// or https:// proxy.",
        )
    return Access(
        context,
        server,
        _tls(context, settings) if server.startswith("https:") else None,
        str(cluster.get("tls-server-name") or "") or None,
        proxy,
        settings.proxy_headers,
        lambda: _token(settings),
    )


def _proxy(server: str, cluster: Mapping[str, Any]) -> str | None:
    """Return the proxy that the kubeconfig or the environment names; not all versions tell."""
    named = cluster.get("proxy-url")
    if named:
        return str(named)
    found = getproxies()
    if proxy_bypass_environment(urlsplit(server).netloc, {"no": found.get("no", "")}):
        return None
    return found.get(urlsplit(server).scheme)


def _token(settings: Any) -> str | None:
    """Return the value of the header; versions of the package before 34 keep it elsewhere."""
    for name in ("BearerToken", "authorization"):
        if token := settings.get_api_key_with_prefix(name):
            return str(token)
    return None


def _tls(context: Context, settings: Any) -> ssl.SSLContext:
    try:
        tls = ssl.create_default_context(cafile=settings.ssl_ca_cert)
        if getattr(settings, "disable_strict_ssl_verification", False):
            tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if not settings.verify_ssl:
            tls.check_hostname = False
            tls.verify_mode = ssl.CERT_NONE
        if settings.cert_file:
            tls.load_cert_chain(settings.cert_file, settings.key_file)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise SourceError(
            f"The certificates of context {context.name!r} cannot be used: {_short(error)}.",
            next_step="Get a new kubeconfig from your cluster's administrator.",
        ) from None
    return tls
