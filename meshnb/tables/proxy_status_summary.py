"""The table ``proxy_status_summary``: what each proxy subscribes to, and how it stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshnb.sources.ages import age_text
from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Row, Table, records
from meshnb.tables.proxy_status import PROXY_STATUS

#: istioctl's columns of the old form, in its order: by the URLs of the types.
_TYPES = ("CDS", "ECDS", "EDS", "LDS", "RDS", "SDS", "PCDS", "NDS", "WADS", "WDS")
_AGED = ("SYNCED", "STALE", "ERROR")

PROXY_STATUS_SUMMARY = Table(
    name="proxy_status_summary",
    grain="one row per proxy and istiod",
    asks=PROXY_STATUS.asks,
    istioctl="istioctl proxy-status, and with -v 1 for the types one by one",
    columns={
        "proxy": Column("string", "the proxy as pod.namespace", key=True),
        "name": Column("string", "the same, under istioctl's heading"),
        "cluster": Column("string", "Kubernetes cluster of the proxy"),
        "istiod": Column("string", "the istiod pod that it is connected to", key=True),
        "version": Column("string", "version of the proxy"),
        "subscribed_types": Column(
            "string", "how many kinds of configuration it asks for, and which: 2 (CDS,LDS)"
        ),
        **{
            kind.lower(): Column(
                "string", f"{kind}: how it stands and since when, as of the recording, or IGNORED"
            )
            for kind in _TYPES
        },
        "worst": Column("string", "the worst of them: ERROR, STALE, NOT SENT or SYNCED"),
        "error": Column("string", "why the proxy refused something"),
    },
)

_FROM_BAD_TO_GOOD = ("ERROR", "STALE", "NOT SENT", "SYNCED")


@PROXY_STATUS_SUMMARY.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
    proxies: dict[tuple[str, str], list[Mapping[Any, Any]]] = {}
    for row in records(facts["proxy_status"]):
        proxies.setdefault((str(row["proxy"]), str(row["istiod"])), []).append(row)
    for (proxy, istiod), rows in sorted(proxies.items()):
        asked = [row for row in rows if row["sync"] != "IGNORED"]
        kinds = [str(row["xds"]) for row in asked]
        states = {str(row["sync"]) for row in asked}
        yield (
            facts.question(str(rows[0]["question"])),
            {
                "proxy": proxy,
                "name": proxy,
                "cluster": rows[0]["cluster_id"],
                "istiod": istiod,
                "version": rows[0]["istio_version"],
                "subscribed_types": f"{len(kinds)} ({','.join(kinds)})",
                **{kind.lower(): "IGNORED" for kind in _TYPES},
                **{str(row["xds"]).lower(): _state(row) for row in asked if row["xds"] in _TYPES},
                "worst": next((state for state in _FROM_BAD_TO_GOOD if state in states), None),
                "error": next((row["error"] for row in asked if row["error"]), None),
            },
        )


def _state(row: Mapping[Any, Any]) -> str:
    sync, age = str(row["sync"]), row["age_s"]
    return sync if sync not in _AGED or age is None else f"{sync} ({age_text(age)})"
