"""The guide for hosts outside the mesh that cannot be reached."""

from __future__ import annotations

from meshnb.guides.asking import first_ask
from meshnb.guides.base import Case, Chosen, Guide, Page, step
from meshnb.guides.excerpts import excerpt
from meshnb.guides.pictures import State
from meshnb.guides.seen import apart, mended, seen, symptom_of
from meshnb.guides.shared import gap_note
from meshnb.guides.tracing import request_page

_NAME = "external"
_MODE = "outboundTrafficPolicy.mode"
_MODES = {
    "ALLOW_ANY": "it is let through as it is",
    "REGISTRY_ONLY": "it is blocked: only registered hosts can be called",
    "": "nobody knows: the settings were not recorded",
}


@step("Who may leave", asked=("mesh_settings", "istio_config"))
def leaving(case: Case, chosen: Chosen) -> Page:
    """What does this mesh do with a call to a host that nobody registered?

    ServiceEntries register hosts. What is not registered is let through or blocked, as the mesh or
    a Sidecar says.
    """
    settings = case.facts["mesh_settings"]
    rows = settings[settings["setting"].str.startswith("outboundTrafficPolicy")]
    rows.attrs["table"] = "mesh_settings"
    config = case.facts["istio_config"]
    objects = config[config["kind"].isin(["ServiceEntry", "Sidecar"])]
    objects.attrs["table"] = "istio_config"
    mode = case.mesh.settings.get(_MODE, "")
    right = mode if mode in _MODES else ""
    own = [
        f"{item} says {item.spec['outboundTrafficPolicy'].get('mode', 'ALLOW_ANY')}"
        for item in case.mesh.of("Sidecar")
        if isinstance(item.spec.get("outboundTrafficPolicy"), dict)
    ]
    missing = gap_note(case, ("mesh_settings", "istio_config"))
    exceptions = f" Otherwise for some: {'; '.join(own)}." if own else ""
    answer = Page(
        f"A call to a host that nobody registered: {_MODES[right]}.",
        State.UNKNOWN if not right or missing else State.FINE,
        f"The mesh has {_MODE} {mode or 'unknown'}.{exceptions} {missing}".strip(),
        tuple(
            excerpt(caption, part)
            for caption, part in (
                ("mesh_settings: the policy for what leaves", rows),
                ("istio_config: hosts that are registered, and Sidecars", objects),
            )
            if len(part)
        ),
        command="kubectl -n istio-system get configmap istio -o yaml",
    )
    return first_ask(
        chosen.get("leaving"),
        "A call to a host that nobody registered:",
        _MODES,
        right,
        answer,
        "Think first: it is one setting of the mesh, and a Sidecar can say otherwise.",
        answer.tables[1:],
    )


@step("Followed", asked=("listeners", "routes", "clusters", "endpoints"))
def way(case: Case, chosen: Chosen) -> Page:
    """Which listener and cluster does the caller's proxy take for it?

    BlackHoleCluster blocks it, PassthroughCluster lets it go as it is; any other name comes from a
    ServiceEntry.
    """
    return request_page(case, symptom_of(case, _NAME, chosen))


EXTERNAL = Guide(
    name=_NAME,
    title="A host outside cannot be reached",
    about="Calls to hosts outside the mesh fail: are they registered, and spoken to as they wish?",
    steps=(
        seen(_NAME, "istio_config", "mesh_settings"),
        leaving,
        way,
        apart(
            _NAME,
            "istioctl proxy-config clusters {proxy}",
            *("clusters", "listeners", "istio_config", "endpoints"),
        ),
        mended(_NAME),
    ),
)
