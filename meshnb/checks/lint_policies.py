"""Checks of policies as they are written: authorization and tokens. Codes MNB1450 to MNB1499."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.checks.base import Finding, and_list, counted
from meshnb.checks.lint import Say, hint, labelled, lint
from meshnb.tables import Facts
from meshnb.tables.base import dig, items, mapping
from meshnb.traces.objects import Object, Objects, ambient_pod, texts

_GATEWAY_NAME = "gateway.networking.k8s.io/gateway-name"


def _targeted(policy: Object) -> bool:
    """Whether a policy names what it is for, instead of selecting pods."""
    return bool(items(policy.spec, "targetRefs")) or dig(policy.spec, "targetRef") is not None


@lint("MNB1451", "IST0127")
def policy_without_pods(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every AuthorizationPolicy is for pods of the mesh that exist.

    In the root namespace it is for those of all namespaces. `istioctl analyze` overlooks that a
    policy with targetRefs is for a gateway, waypoint or Service, and then calls it useless in a
    namespace without pods; here it is left alone.
    """
    say = Say(objects, facts)
    if not objects.pods_known:
        return
    inside = [pod for pod in objects.selected({}) if ambient_pod(pod) or objects.in_mesh(pod)]
    for policy in objects.of("AuthorizationPolicy"):
        chosen = dig(policy.spec, "selector") is not None
        everywhere = policy.namespace == objects.root_namespace
        if _targeted(policy) or (everywhere and not chosen):
            continue
        labels = mapping(policy.spec, "selector", "matchLabels")
        if any(
            (everywhere or pod.namespace == policy.namespace)
            and labels.items() <= pod.labels.items()
            for pod in inside
        ):
            continue
        outside = objects.selected(labels, None if everywhere else policy.namespace)
        where = "the mesh" if everywhere else f"namespace {policy.namespace}"
        more = (
            f"; {counted(len(outside), 'pod')} there, but without a proxy of the mesh"
            if outside
            else ""
        )
        said = f" with {labelled(labels)}" if labels else ""
        yield from say(
            policy,
            f"{policy} is for pods{said}, and {where} has none in the mesh{more}",
            fix="Correct the labels",
            path="spec.selector.matchLabels" if chosen else "spec",
            key=(),
            lines=False,
            same_as="IST0127",
        )


@lint("MNB1452", "IST0101")
def namespace_unknown(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every namespace that an AuthorizationPolicy speaks of exists.

    A rule for callers from a namespace that does not exist allows nobody, or denies nobody.
    """
    say = Say(objects, facts)
    names = [namespace.name for namespace in objects.of("Namespace")]
    if not names:
        return
    for policy in objects.of("AuthorizationPolicy"):
        for number, rule in enumerate(items(policy.spec, "rules")):
            for position, caller in enumerate(items(rule, "from")):
                for which in ("namespaces", "notNamespaces"):
                    for index, name in enumerate(texts(caller, "source", which)):
                        if any(_matches(name, known) for known in names):
                            continue
                        yield from say(
                            policy,
                            f"{policy} speaks of callers from namespace {name}, which does not "
                            f"exist.{hint(name, names)}",
                            fix="Correct the name",
                            path=f"spec.rules[{number}].from[{position}].source.{which}[{index}]",
                            key=(name,),
                            same_as="IST0101",
                        )


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("*"):
        return name.endswith(pattern[1:])
    if pattern.endswith("*"):
        return name.startswith(pattern[:-1])
    return pattern.lower() == name.lower()


@lint("MNB1453", "IST0166")
def selector_at_gateway(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every policy for a gateway of the Gateway API names it in targetRefs.

    A waypoint takes no policy by labels. Gateways at the edge do, as long as
    ENABLE_SELECTOR_BASED_K8S_GATEWAY_POLICY is not switched off, although `istioctl analyze` says
    that they do not.
    """
    say = Say(objects, facts)
    gateways = [pod for pod in objects.of("Pod") if _GATEWAY_NAME in pod.labels]
    for kind in ("AuthorizationPolicy", "RequestAuthentication", "Telemetry", "WasmPlugin"):
        for policy in objects.of(kind):
            labels = mapping(policy.spec, "selector", "matchLabels")
            if _targeted(policy) or dig(policy.spec, "selector") is None:
                continue
            for pod in gateways:
                if pod.namespace == policy.namespace and labels.items() <= pod.labels.items():
                    name = pod.labels[_GATEWAY_NAME]
                    yield from say(
                        policy,
                        f"{policy} selects {pod} of Gateway {pod.namespace}/{name} by labels: a "
                        "waypoint ignores it, and a gateway may",
                        fix=f"Name the Gateway {name} in targetRefs instead",
                        path="spec.selector",
                        key=(name,),
                        lines=False,
                        same_as="IST0166",
                        related=[pod],
                    )


@lint("MNB1454", "IST0175")
def key_sets_from_anywhere(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Where tokens are checked, istiod may not fetch keys from every address.

    A RequestAuthentication names a URL that istiod fetches. Who may write one can have istiod call
    addresses inside the cluster, unless BLOCKED_CIDRS_IN_JWKS_URIS says which not.
    """
    say = Say(objects, facts)
    policies = objects.of("RequestAuthentication")
    for deployment in objects.of("Deployment") if policies else ():
        if deployment.labels.get("app") != "istiod" or any(
            dig(variable, "name") == "BLOCKED_CIDRS_IN_JWKS_URIS" and dig(variable, "value")
            for container in items(deployment.spec, "template", "spec", "containers")
            for variable in items(container, "env")
        ):
            continue
        yield from say(
            deployment,
            f"{deployment} fetches keys from any address that a RequestAuthentication names; "
            f"there is {and_list(map(str, policies))}",
            fix="Set BLOCKED_CIDRS_IN_JWKS_URIS",
            path="spec.template.spec.containers",
            key=(),
            lines=False,
            same_as="IST0175",
            related=policies,
        )
