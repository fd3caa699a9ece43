"""Which part of a table to show: the columns that say most, and the rows that matter first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from meshnb.checks import Evidence
from meshnb.guides.base import Excerpt

#: So many rows are read; the rest is counted.
MOST = 12

#: The columns that say most about a row, for tables with more of them than fit on a screen.
_COLUMNS = {
    "access_log": "proxy start_time method path authority response_code response_flags details"
    " upstream_failure connection_details upstream_host cluster route_name",
    "certificates": "proxy resource_name status not_before not_after expires_in_s problem",
    "clusters": "proxy cluster type tls protocol destination_rule state error max_connections",
    "containers": "namespace pod container ready state reason restarts last_reason last_exit_code"
    " ports readiness_port",
    "endpoints": "proxy cluster endpoint pod status outlier_check requests requests_failed"
    " connections_failed",
    "events": "namespace kind name type reason message count last_seen",
    "injection": "namespace pod injected wanted opted_out_by reason",
    "istio_config": "kind namespace name changed generation messages",
    "istiod_log": "istiod time level scope message",
    "istiod_ports": "istiod port protocol serves answers how error",
    "listeners": "proxy listener match destination state tls filters error refused_at",
    "namespaces": "namespace injection revision ambient labels created changed",
    "pods": "namespace pod mesh phase ready not_ready_reason restarts workload created",
    "proxies": "proxy kind state ready ready_error istiod connected_at discovery_address"
    " istio_version silent_because",
    "proxy_log": "proxy time level scope message",
    "proxy_status": "proxy istiod xds sync age_s stale_s error",
    "rbac_rules": "proxy action effect authorization_policy rule permissions principals condition",
    "routes": "proxy name domains match clusters weights virtual_service action status fault",
    "secrets": "namespace secret type keys not_after problem",
    "service_endpoints": "namespace service port address target_port pod ready",
    "services": "namespace service port port_name protocol target_port selector",
    "webhooks": "configuration webhook purpose revision service_exists failure_policy",
    "workloads": "namespace kind workload replicas_wanted replicas_ready changed problem",
}
TELLING: Mapping[str, tuple[str, ...]] = {
    table: tuple(names.split()) for table, names in _COLUMNS.items()
}


def excerpt(
    caption: str,
    rows: pd.DataFrame,
    *,
    of: int | None = None,
    columns: Iterable[str] | None = None,
    most: int = MOST,
    folded: bool = False,
) -> Excerpt:
    """Return the first rows of a frame with its telling columns, those without any value left out.

    ``of`` is how many rows there are altogether, when the frame is a part already.
    """
    if columns is None:
        columns = TELLING.get(str(rows.attrs.get("table", "")), tuple(rows.columns))
    shown = rows.head(most)
    full = [name for name in columns if not len(shown) or shown[name].map(_says_something).any()]
    return Excerpt(caption, shown[full], len(rows) if of is None else of, folded)


def varied(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows, the first of each proxy before all others: more of the same says less."""
    if "proxy" not in rows:
        return rows
    repeated = rows["proxy"].duplicated()
    ordered = pd.concat([rows[~repeated], rows[repeated]])
    ordered.attrs.update(rows.attrs)
    return ordered


def proof(evidence: Evidence) -> Excerpt:
    """Return the rows that prove a finding, under their table and where they came from."""
    sources = evidence.questions
    more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
    whence = f", from {sources[0]}{more}" if sources else ""
    rows = evidence.rows.copy()
    rows.attrs["table"] = evidence.table
    return excerpt(f"{evidence.table}{whence}", varied(rows))


def _says_something(value: object) -> bool:
    if isinstance(value, (tuple, list, dict, str)):
        return bool(value)
    return not pd.isna(value)  # type: ignore[call-overload]
