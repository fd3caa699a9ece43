"""What each proxy of a source holds."""

from __future__ import annotations

from collections.abc import Mapping

from meshnb.errors import UsageError, nearest
from meshnb.sources.base import HttpQuestion
from meshnb.tables import Facts
from meshnb.tables.envoy import CONFIG_DUMP, proxy_of
from meshnb.traces.comparison.cleaning import is_about
from meshnb.traces.comparison.dump_reader import DumpReader
from meshnb.traces.comparison.groups import Group
from meshnb.traces.comparison.resources import Key, Resource
from meshnb.traces.mesh import Mesh, Pod


class Held:
    """What each proxy of a source holds, read once."""

    def __init__(self, facts: Facts, mesh: Mesh) -> None:
        self.facts = facts
        self.mesh = mesh
        self.pods = {pod.proxy: pod for pod in mesh.pods if pod.proxy}
        self._questions: dict[str, HttpQuestion] = {}
        for question in facts.source.questions():
            if CONFIG_DUMP.matches(question) and isinstance(question, HttpQuestion):
                known = self._questions.get(proxy_of(question))
                # Only with this parameter does Envoy give the endpoints.
                if known is None or "include_eds" in question.path:
                    self._questions[proxy_of(question)] = question
        self.dumps = DumpReader()
        self._held: dict[str, Mapping[Key, Resource] | None] = {}

    def pod(self, proxy: str) -> Pod:
        """Return the pod of a proxy. Raises UsageError for one that the source does not have."""
        if proxy not in self.pods:
            raise UsageError(f"There is no proxy {proxy!r}.", next_step=nearest(proxy, self.pods))
        return self.pods[proxy]

    def of(self, proxy: str) -> Mapping[Key, Resource] | None:
        """Return the resources of a proxy; None when it gave no config dump."""
        if proxy not in self._held:
            question = self._questions.get(proxy)
            address = self.pod(proxy).address
            self._held[proxy] = (
                None if question is None else self.dumps.resources(self.facts, question, address)
            )
        return self._held[proxy]

    def part(self, proxy: str, group: Group) -> Mapping[Key, Resource] | None:
        """Return those of a proxy's resources that a group shares."""
        held = self.of(proxy)
        if held is None:
            return None
        return {
            key: resource
            for key, resource in held.items()
            if (group.outbound if resource.outbound else group.inbound)
        }

    def silence(self, proxy: str) -> str:
        """Say why a proxy's resources are not known."""
        proxies = self.facts["proxies"]
        why = proxies.loc[proxies["proxy"] == proxy, "silent_because"].dropna().tolist()
        return f"{proxy} did not say what it holds" + (f": {why[0]}" if why else "")

    def left_out(self, proxy: str, key: Key) -> bool:
        """Whether a resource is about a proxy's own address.

        Behind a headless Service, istiod makes a listener for each pod but for the pod itself.
        """
        return is_about(key[1], self.pod(proxy).address)
