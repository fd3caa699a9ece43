"""The mesh's settings (MeshConfig) followed up the ladder: ConfigMap, istiods, proxies.

istiod reads ``data.mesh`` of the ConfigMap ``istio``, or ``istio-REVISION``, as it changes. What
stands under ``defaultConfig`` is given to a proxy when its pod starts, and not again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from meshnb.sources import Manifests
from meshnb.tables import Facts
from meshnb.tables.base import Json, mapping
from meshnb.tables.mesh_settings import flat_settings
from meshnb.traces.mesh import Mesh, Pod, plain
from meshnb.traces.rungs.ladder import (
    BROKEN,
    NOT_NEEDED,
    NOT_REACHED,
    PASSED,
    RUNGS,
    UNDECIDED,
    ChangeTrace,
    Rung,
    Standing,
)
from meshnb.traces.rungs.visibility import istiods, listed

SETTINGS = "MeshConfig"
_OF_PROXIES = "defaultConfig."
_ANNOTATION = "proxy.istio.io/config"


@dataclass(frozen=True, slots=True)
class _Stored:
    """One ConfigMap with settings, as the table ``mesh_config_maps`` has it."""

    namespace: str
    name: str
    revision: str
    changed: datetime | None
    settings: Mapping[str, str]
    #: why its text cannot be read; empty when it can
    problem: str

    def __str__(self) -> str:
        return f"ConfigMap {self.namespace}/{self.name}"


def follow_settings(facts: Facts, mesh: Mesh) -> ChangeTrace:
    """Follow the mesh's settings from the ConfigMap to istiods and proxies."""
    stored = list(_stored(facts, mesh))
    held = _held(facts)
    rungs = [_is_stored(stored), _is_valid(stored), _selected(mesh)]
    if isinstance(facts.source, Manifests):
        rungs += [Rung(name, NOT_REACHED, "Manifests do not run.") for name in list(RUNGS)[3:]]
    else:
        rungs.append(_seen(stored, held, mesh))
        says = "Settings are not sent as such: istiod makes proxies' configuration with them."
        rungs += [Rung(name, NOT_NEEDED, says) for name in ("pushed", "accepted")]
        rungs.append(_active(facts, stored, held, mesh))
        rungs.append(Rung("used", NOT_NEEDED, "Requests do not name settings."))
    broken = next((rung for rung in rungs if rung.outcome == BROKEN), None)
    answer = (
        f"{SETTINGS} stops at the rung {broken.name!r}: {broken.says}"
        if broken is not None
        else f"{SETTINGS}: {next(rung for rung in rungs if rung.name == 'seen').says}"
    )
    return ChangeTrace(SETTINGS, tuple(rungs), broken, answer)


def _stored(facts: Facts, mesh: Mesh) -> Iterator[_Stored]:
    for row in facts["mesh_config_maps"].to_dict("records"):
        if not mesh.control_plane_namespaces or row["namespace"] in mesh.control_plane_namespaces:
            yield _Stored(
                namespace=str(row["namespace"]),
                name=str(row["config_map"]),
                revision=str(row["revision"]),
                changed=plain(row["changed"]),
                settings=row["settings"] or {},
                problem=str(plain(row["problem"]) or ""),
            )


def _held(facts: Facts) -> dict[str, dict[str, str]]:
    """Return the settings of each istiod that was asked."""
    table = facts["mesh_settings"]
    return {
        str(istiod): dict(zip(rows["setting"], rows["value"].fillna(""), strict=True))
        for istiod, rows in table.groupby("istiod")
        if not str(istiod).startswith("configmap/")
    }


def _is_stored(stored: list[_Stored]) -> Rung:
    if not stored:
        return Rung("stored", UNDECIDED, "No ConfigMap with the mesh's settings was recorded.")
    says = "; ".join(
        f"{one}" + (f", changed last at {one.changed:%Y-%m-%d %H:%M:%S}" if one.changed else "")
        for one in stored
    )
    return Rung("stored", PASSED, f"{says}.")


def _is_valid(stored: list[_Stored]) -> Rung:
    wrong = [f"{one}: {one.problem}" for one in stored if one.problem]
    if wrong:
        return Rung("valid", BROKEN, f"{'; '.join(wrong)}.")
    if not stored:
        return Rung("valid", UNDECIDED, "It was not recorded.")
    return Rung("valid", PASSED, "It is YAML.")


def _selected(mesh: Mesh) -> Rung:
    number = sum(bool(pod.proxy) and pod.running for pod in mesh.pods)
    return Rung("selected", PASSED, f"It is for the whole mesh: {number} proxies.")


def _for(istiod: Pod, stored: list[_Stored]) -> _Stored | None:
    """Return the ConfigMap that an istiod reads: of its revision and its namespace."""
    revision = istiod.labels.get("istio.io/rev", "default")
    return next(
        (one for one in stored if (one.namespace, one.revision) == (istiod.namespace, revision)),
        None,
    )


def _seen(stored: list[_Stored], held: Mapping[str, Mapping[str, str]], mesh: Mesh) -> Rung:
    standings = []
    running = istiods(mesh)
    for pod in running:
        one = _for(pod, stored)
        if pod.pod not in held:
            says = "its page /debug/mesh was not recorded"
            standings.append(Standing(pod.pod, UNDECIDED, says))
        elif one is None or one.problem:
            says = "the ConfigMap that it reads was not recorded"
            standings.append(Standing(pod.pod, UNDECIDED, says))
        else:
            odd = _differences(one.settings, held[pod.pod])
            says = f"it has {listed(odd)}" if odd else f"it has what {one} says"
            standings.append(Standing(pod.pod, BROKEN if odd else PASSED, says))
    behind = [one for one in standings if one.outcome == BROKEN]
    if behind:
        says = "; ".join(f"{one.who}: {one.says}" for one in behind)
        return Rung("seen", BROKEN, f"{says}.", tuple(standings))
    if any(one.outcome == PASSED for one in standings):
        return Rung("seen", PASSED, "The istiods have it as it is stored.", tuple(standings))
    if not running and mesh.pods:
        return Rung("seen", BROKEN, "No istiod runs, so nobody reads it.")
    if len({tuple(sorted(settings.items())) for settings in held.values()}) > 1:
        return Rung("seen", BROKEN, "The istiods have different settings.", tuple(standings))
    says = "What is stored was not recorded, so it cannot be compared with what istiod has."
    return Rung("seen", UNDECIDED, says, tuple(standings))


def _differences(stored: Mapping[str, str], held: Mapping[str, str]) -> list[str]:
    """Return the settings that an istiod has otherwise; lists and inner objects are left out."""
    found = []
    for setting, value in stored.items():
        # A default that is written out need not be told by istiod, and lists may be merged.
        known = held.get(setting)
        if known is not None and not value.startswith(("[", "{")) and _text(known) != _text(value):
            found.append(f"{setting} {known} and not {value}")
    return found


def _text(value: str) -> str:
    return value.strip().strip('"').lower()


def _active(
    facts: Facts, stored: list[_Stored], held: Mapping[str, Mapping[str, str]], mesh: Mesh
) -> Rung:
    """Compare what proxies were started with, with what they would be started with now."""
    wanted: Mapping[str, str] = next(
        (one.settings for one in stored if one.settings), next(iter(held.values()), {})
    )
    own = {
        setting.removeprefix(_OF_PROXIES): value
        for setting, value in wanted.items()
        if setting.startswith(_OF_PROXIES) and not value.startswith(("[", "{"))
    }
    bootstrap = facts["bootstrap"]
    standings = []
    for proxy, metadata in zip(bootstrap["proxy"], bootstrap["metadata"], strict=True):
        pod = mesh.pod_of(str(proxy))
        if pod is None or pod.mesh != "sidecar" or _ANNOTATION in pod.annotations:
            continue
        started: Json = mapping(plain(metadata) or {}, "PROXY_CONFIG")
        flat: dict[str, Any] = dict(flat_settings(dict(started)))
        odd = [
            f"{name} {flat[name]} and not {value}"
            for name, value in own.items()
            if name in flat and _text(str(flat[name])) != _text(value)
        ]
        says = f"it was started with {listed(odd)}" if odd else "it was started with it"
        standings.append(Standing(str(proxy), BROKEN if odd else PASSED, says))
    late = [one for one in standings if one.outcome == BROKEN]
    if late:
        says = (
            f"{len(late)} of {len(standings)} proxies were started with an older defaultConfig and "
            f"take the new one when their pods are made anew: {late[0].who}: {late[0].says}."
        )
        return Rung("active", BROKEN, says, tuple(standings))
    if standings:
        says = f"{len(standings)} proxies were started with the defaultConfig as it is."
        return Rung("active", PASSED, says, tuple(standings))
    return Rung("active", UNDECIDED, "No proxy says what it was started with.")
