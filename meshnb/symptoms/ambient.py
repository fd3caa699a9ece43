"""Symptoms in the logs of ztunnel: connections between ambient pods that failed."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.symptoms.base import Symptom, weight_of
from meshnb.tables import Facts
from meshnb.traces.failures import Failures
from meshnb.traces.mesh import Mesh, plain


def ambient(facts: Facts, mesh: Mesh, failures: Failures) -> Iterator[Symptom]:
    """Yield one symptom per server workload and reason for which ztunnel ended connections.

    A failure is logged at both ends; only the server's end says why, so the client's line is left
    out where the server's is there.
    """
    log = facts["ztunnel_access_log"]
    failed = log[log["error"].notna()]
    inbound = failed[failed["direction"] == "inbound"]
    told = set(zip(inbound["source_pod"], inbound["destination_pod"], strict=True))
    pods = {(pod.namespace, pod.pod): pod for pod in mesh.pods}
    groups: dict[tuple[str, str, str, str, str], list[int]] = {}
    for index, row in zip(failed.index.tolist(), failed.to_dict("records"), strict=True):
        server = (plain(row["destination_namespace"]) or "", plain(row["destination_pod"]) or "")
        outbound = plain(row["direction"]) == "outbound"
        if outbound and (row["source_pod"], row["destination_pod"]) in told:
            continue
        pod = pods.get(server)
        workload = pod.workload if pod is not None else server[1]
        side = "client" if outbound else "server"
        # Of a server outside the mesh ztunnel knows no pod; then its name or address tells it.
        named = plain(row["destination_service"]) or plain(row["destination_address"]) or ""
        place = f"{server[0]}/{workload}" if workload else named
        key = (side, place, server[0], workload, str(row["error"]))
        groups.setdefault(key, []).append(index)
    for (side, place, namespace, workload, error), members in groups.items():
        rows = failed.loc[members]
        times = [time.to_pydatetime() for time in rows["time"].dropna()]
        host = plain(rows["destination_service"].iloc[0]) or ""
        clients = tuple(dict.fromkeys(rows["source_pod"].dropna()))
        yield Symptom(
            kind="connection",
            message=f"connections from {', '.join(clients) or 'outside the mesh'} to "
            f"{place or 'an unknown destination'} ended by ztunnel: {error}",
            count=len(members),
            table="ztunnel_access_log",
            rows=tuple(members),
            first_seen=min(times, default=None),
            last_seen=max(times, default=None),
            weight=weight_of(times, facts.now),
            side=side,
            details=error,
            host=host,
            workload=(namespace, workload),
            callers=clients,
        )
