"""What the kubelet says in place of an answer, and the API server where it cannot reach one.

The words are those of Kubernetes 1.36, of the kubelet and of containerd.
"""

from __future__ import annotations

import re

from meshnb.sources.base import Body

#: A log that cannot be read is one line in the place of the log, after status 200.
_NO_LOG = re.compile(
    rb"(?:unable to retrieve container logs for |failed to try resolving symlinks in path |"
    rb"failed to open log file )[^\n]*\n?"
)
_LONGEST = 2000
#: How the API server begins when no connection to the kubelet of a node can be made.
_NOT_DIALLED = "error dialing backend: "
#: What comes with status 500 where a pod's sandbox is not there yet, or is gone: the kubelet's
#: answer to the upgrade, whose reason containerd swallowed (Kubernetes 1.36 with containerd 2.2).
_NO_SANDBOX = "406: Not Acceptable"


def no_log(body: Body) -> str:
    """Return why there is no log, where that stands in its place; empty where there is one."""
    if len(body) > _LONGEST:
        return ""
    text = bytes(body)
    return text.decode("utf-8", "replace").strip() if _NO_LOG.fullmatch(text) else ""


def not_forwarded(status: int, said: str) -> str:
    """Return in words why the API server did not open the way to a port of a pod."""
    if said.startswith(_NOT_DIALLED):
        why = said.removeprefix(_NOT_DIALLED)
        return f"the API server cannot reach the kubelet of the pod's node: {why}"
    answered = f"the API server answered with status {status}: {said}"
    if status == 500 and said.startswith(_NO_SANDBOX):
        return f"the pod does not run yet, or not any more: {answered}"
    return answered


def too_late(seconds: float) -> str:
    """Return in words that neither the API server nor a kubelet opened the way in time."""
    return (
        f"the way to the pod was not opened within {seconds:g} s: the kubelet of its node does not "
        "answer the API server"
    )
