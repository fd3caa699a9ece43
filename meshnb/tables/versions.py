"""The table ``versions``: which version each istiod and each proxy is of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import msgspec

from meshnb.sources.base import HttpQuestion, Question
from meshnb.tables.base import Column, Facts, Got, Row, Table, dig, records
from meshnb.tables.istiod_ports import istiod_pods

_VERSION = Got(15014, "/version", text=True)

VERSIONS = Table(
    name="versions",
    grain="one row per istiod pod, and one per proxy and the istiod that it is connected to",
    istioctl="istioctl version -o json",
    columns={
        "plane": Column("string", "control or data"),
        "id": Column("string", "the istiod pod, or the proxy as pod.namespace", key=True),
        "proxy": Column("string", "the proxy as pod.namespace; NA for an istiod"),
        "istiod": Column("string", "the istiod pod itself, or that of the proxy", key=True),
        "component": Column("string", "of an istiod: its label istio, pilot"),
        "type": Column("string", "of a proxy: sidecar, gateway, waypoint or ztunnel"),
        "istio_version": Column("string", "version of Istio; NA where it is not told"),
        "revision": Column("string", "of an istiod: its revision, by its label istio.io/rev"),
        "git_revision": Column("string", "of an istiod: revision of its sources"),
        "golang_version": Column("string", "of an istiod: version of Go, where it tells"),
        "status": Column("string", "of an istiod: state of its sources, Clean or Modified"),
        "tag": Column("string", "of an istiod: tag of its sources"),
    },
)

_TAG = re.compile(r'(?:^|,)tag="([^"]*)"')
#: What syncz calls a proxy, in istioctl's words, where they differ.
_TYPES = {"router": "gateway"}


@VERSIONS.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
    """Read the control plane's versions, then those of the proxies, from what istiod says of them.

    The version of istioctl itself is left out: there is none here.
    """
    yield from _control_plane(facts)
    for row in records(facts["proxy_status"].drop_duplicates(["proxy", "istiod"])):
        kind = row["proxy_type"]
        yield (
            facts.question(str(row["question"])),
            {
                "plane": "data",
                "id": row["proxy"],
                "proxy": row["proxy"],
                "istiod": row["istiod"],
                "type": _TYPES.get(str(kind), kind),
                "istio_version": row["istio_version"] or None,
            },
        )


def _control_plane(facts: Facts) -> Iterator[tuple[Question, Row]]:
    told = {
        (question.namespace, question.pod): (question, _told(text))
        for question, text in facts.documents(_VERSION)
        if isinstance(question, HttpQuestion)
    }
    metrics = facts["istiod_metrics"]
    builds = metrics[metrics["metric"] == "istio_build"]
    pods = facts["pods"]
    for (namespace, pod), listed_by in istiod_pods(facts).items():
        own = pods[(pods["namespace"] == namespace) & (pods["pod"] == pod)]
        labels = {} if own.empty else own.iloc[0]["labels"]
        question, version = told.get((namespace, pod), (listed_by, {}))
        if not version:
            counted = builds[(builds["istiod"] == pod) & (builds["namespace"] == namespace)]
            version = _built(str(label) for label in counted["labels"])
        yield (
            question,
            {
                "plane": "control",
                "id": pod,
                "istiod": pod,
                "component": labels.get("istio"),
                "revision": labels.get("istio.io/rev"),
                **version,
            },
        )


def _told(text: str) -> Row:
    """Read istiod's page of its version, such as ``1.30.3-9f6ee0c-Clean``, or JSON."""
    try:
        build = dig(msgspec.json.decode(text), "clientVersion")
    except msgspec.DecodeError:
        build = None
    if dig(build, "version"):
        return {
            "istio_version": dig(build, "version"),
            "git_revision": dig(build, "revision"),
            "golang_version": dig(build, "golang_version") or None,
            "status": dig(build, "status"),
            "tag": dig(build, "tag"),
        }
    parts = text.strip().split("-")
    if len(parts) < 3:
        return {"istio_version": text.strip()} if text.strip() else {}
    *version, revision, status = parts
    if revision == "dirty" and len(version) > 1:
        revision = f"{version.pop()}-dirty"
    return {
        "istio_version": "-".join(version),
        "git_revision": revision,
        "status": status,
        "tag": "-".join(version),
    }


def _built(labels: Iterable[str]) -> Row:
    """Read the version from the labels of istiod's metric ``istio_build``."""
    for text in labels:
        found = _TAG.search(text)
        if found:
            return {"istio_version": found[1], "tag": found[1]}
    return {}
