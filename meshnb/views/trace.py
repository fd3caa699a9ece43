"""Traces to play with: choose a request, an object or two ends, and see how far it gets.

Each view draws one account, follows a chooser if it is given one, and can be told in words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import ipywidgets

from meshnb.errors import MeshnbError, UsageError
from meshnb.guides import choices
from meshnb.guides.accounts import (
    Account,
    logged,
    of_change,
    of_connection,
    of_request,
    told,
)
from meshnb.guides.base import Case, Option
from meshnb.guides.journeys import validity
from meshnb.guides.originals import Originals
from meshnb.traces.change import follow_change
from meshnb.traces.request import Request
from meshnb.views.account import card, ends
from meshnb.views.base import View, escape, styled
from meshnb.views.chooser import SourceChooser
from meshnb.views.work import failure

_NOTHING = "Nothing is open yet: choose a mesh above."
_WHOLE = {"description_width": "initial"}


class TraceView(View):
    """One account, and what can be chosen to get another one."""

    def __init__(self, of: Case | SourceChooser, controls: Iterable[Any]) -> None:
        """Take the controls; whoever has made them calls :meth:`begin`."""
        self.case: Case | None = None
        self.account: Account | None = None
        self._drawn = ""
        self._said = _NOTHING
        self._card = ipywidgets.HTML()
        super().__init__([*controls, self._card])
        self.add_class("mnb-view")
        if isinstance(of, SourceChooser):
            of.lead(self.begin)
        else:
            self.begin(of)

    def begin(self, case: Case | None) -> None:
        """Look at another case; at none, when nothing could be opened."""
        self.case = case
        self.account = None
        if case is None:
            self._drawn, self._said = f"<p>{_NOTHING}</p>", _NOTHING
            self._card.value = styled(self._drawn)
        else:
            self._begun(case)

    def html(self) -> str:
        """Return what became of it as HTML."""
        return self._drawn

    def text(self) -> str:
        """Return what became of it as text."""
        return self._said

    def _begun(self, case: Case) -> None:
        """Offer what there is in a case, and follow the first of it."""
        raise NotImplementedError

    def _show(self, follow: Callable[[], tuple[Account, str]]) -> None:
        """Follow something, and show it; what cannot be followed is a card that says why."""
        try:
            self.account, self._drawn = follow()
        except MeshnbError as error:
            self.account = None
            self._drawn, self._said = failure(error, "not followed"), f"✗ {error}"
        else:
            self._said = told(self.account)
        self._card.value = styled(f'<div role="status">{self._drawn}</div>')


class RequestView(TraceView):
    """Follows one request: a line of an access log, or one that is described in words."""

    def __init__(self, of: Case | SourceChooser, words: str = "") -> None:
        """Follow the request that the words describe; without any, one that failed."""
        self._wanted = words
        self._line = _dropdown("A request of the logs")
        self._words = _text(
            "or in words", "GET /path with header name: value from POD to HOST:PORT"
        )
        self._line.observe(self._on_line, names="value")
        self._words.observe(self._on_words, names="value")
        super().__init__(of, [self._line, self._words])

    def ask(self, words: str) -> None:
        """Follow the request that words describe."""
        self._words.value = words

    def _begun(self, case: Case) -> None:
        lines = choices.requests(case)
        wanted, self._wanted = self._wanted, ""
        if not lines and not wanted:
            wanted = choices.obvious_request(case)
        _offer(self._line, lines, None if wanted or not lines else lines[0].value, self._on_line)
        _set(self._words, wanted, self._on_words)
        if wanted:
            self._follow_words(wanted)
        elif lines:
            self._follow_line(int(lines[0].value))
        else:
            self._show(_no_pods)

    def _on_line(self, change: dict[str, Any]) -> None:
        if change["new"] is not None and self.case is not None:
            _set(self._words, "", self._on_words)
            self._follow_line(int(change["new"]))

    def _on_words(self, change: dict[str, Any]) -> None:
        if change["new"].strip() and self.case is not None:
            _offer(self._line, None, None, self._on_line)
            self._follow_words(change["new"])

    def _follow_words(self, words: str) -> None:
        case = self.case
        if case is not None:
            self._show(lambda: _followed(case, Request.parse(case.facts, words), ""))

    def _follow_line(self, row: int) -> None:
        case = self.case
        if case is not None:
            said = f"<p>{escape(logged(case.facts, row))}</p>"
            self._show(lambda: _followed(case, Request.of_line(case.facts, row), said))


def _followed(case: Case, request: Request, said: str) -> tuple[Account, str]:
    account = of_request(case.follower.follow(request))
    originals = Originals(case.facts, case.mesh, case.follower.configs)
    return account, card(account, originals, beside=said)


class ChangeView(TraceView):
    """Follows one object up the ladder, from being stored to being used."""

    def __init__(self, of: Case | SourceChooser, subject: str = "") -> None:
        """Follow the object ``Kind/namespace/name``; without one, that which is blamed."""
        self._wanted = subject
        self._object = _dropdown("Object")
        self._name = _text("or by name", "Kind/namespace/name, also of one that is gone")
        self._object.observe(self._on_object, names="value")
        self._name.observe(self._on_name, names="value")
        super().__init__(of, [self._object, self._name])

    def ask(self, subject: str) -> None:
        """Follow the object ``Kind/namespace/name``."""
        self._name.value = subject

    def _begun(self, case: Case) -> None:
        wanted, self._wanted = self._wanted, ""
        every = choices.objects(case)
        first = wanted or every[0].value
        listed = first in {option.value for option in every}
        _offer(self._object, every, first if listed else None, self._on_object)
        _set(self._name, "" if listed else first, self._on_name)
        self._follow(first)

    def _on_object(self, change: dict[str, Any]) -> None:
        if change["new"] is not None:
            _set(self._name, "", self._on_name)
            self._follow(change["new"])

    def _on_name(self, change: dict[str, Any]) -> None:
        if change["new"].strip():
            _offer(self._object, None, None, self._on_object)
            self._follow(change["new"].strip())

    def _follow(self, value: str) -> None:
        case = self.case
        if case is None:
            return
        asked = choices.subject(case, value)

        def follow() -> tuple[Account, str]:
            account = of_change(
                follow_change(case.facts, *asked, mesh=case.mesh, complaints=case.complaints)
            )
            return account, card(account, Originals(case.facts, case.mesh, case.follower.configs))

        self._show(follow)


class ConnectionView(TraceView):
    """Follows one connection, and shows both of its ends."""

    def __init__(self, of: Case | SourceChooser, client: str = "", server: str = "") -> None:
        """Follow a connection from a pod to ``service.namespace:port``; else one that fails."""
        self._wanted = (client, server)
        self._client = _dropdown("Client")
        self._server = _dropdown("Server")
        self._typed = _text("or another server", "host:port, a pod, or an address with a port")
        for control in (self._client, self._server, self._typed):
            control.observe(self._on_end, names="value")
        super().__init__(of, [self._client, self._server, self._typed])

    def ask(self, client: str, server: str) -> None:
        """Follow the connection from a client to a server's port."""
        if self.case is not None:
            self._choose(client, server)

    def _begun(self, case: Case) -> None:
        wanted, self._wanted = self._wanted, ("", "")
        _offer(self._client, choices.clients(case), None, self._on_end)
        _offer(self._server, choices.servers(case), None, self._on_end)
        client, server = wanted if all(wanted) else choices.obvious_ends(case)
        self._choose(client, server)

    def _choose(self, client: str, server: str) -> None:
        """Set the controls to both ends, and follow the connection between them."""
        known = {value for _, value in self._client.options}
        _offer(self._client, None, client if client in known else None, self._on_end)
        offered = {value for _, value in self._server.options}
        short = server.replace(".svc.cluster.local", "")
        server = short if short in offered else server
        _offer(self._server, None, server if server in offered else None, self._on_end)
        _set(self._typed, "" if server in offered else server, self._on_end)
        if client:
            self._follow(client, server)
        else:
            self._show(_no_pods)

    def _on_end(self, change: dict[str, Any]) -> None:
        if self.case is None:
            return
        if change["owner"] is self._server and change["new"] is not None:
            _set(self._typed, "", self._on_end)
        elif change["owner"] is self._typed and change["new"].strip():
            _offer(self._server, None, None, self._on_end)
        server = self._typed.value.strip() or self._server.value
        if self._client.value is not None and server:
            self._follow(self._client.value, server)

    def _follow(self, client: str, server: str) -> None:
        case = self.case
        if case is None:
            return

        def follow() -> tuple[Account, str]:
            trace = case.connections.follow(client, server)
            account = of_connection(trace)
            originals = Originals(case.facts, case.mesh, case.follower.configs)
            beside = ends(trace, validity(trace, case.facts.now))
            return account, card(account, originals, beside=beside)

        self._show(follow)


def _no_pods() -> tuple[Account, str]:
    raise UsageError(
        "No pod was recorded, so nobody can send anything.",
        next_step="Follow a change instead, or open a recording of a mesh that runs.",
    )


# --- Controls ------------------------------------------------------------------------------------


def _dropdown(label: str) -> ipywidgets.Dropdown:
    return ipywidgets.Dropdown(
        description=label,
        options=[],
        style=_WHOLE,
        layout=ipywidgets.Layout(width="auto", max_width="900px"),
    )


def _text(label: str, example: str) -> ipywidgets.Text:
    return ipywidgets.Text(
        description=label,
        placeholder=example,
        continuous_update=False,
        style=_WHOLE,
        layout=ipywidgets.Layout(width="auto", max_width="900px"),
    )


def _offer(
    control: ipywidgets.Dropdown,
    options: tuple[Option, ...] | None,
    value: str | None,
    heard: Callable[[dict[str, Any]], None],
) -> None:
    """Set what a list offers, and what is chosen of it, without anybody hearing of it."""
    control.unobserve(heard, names="value")
    if options is not None:
        control.value = None
        control.options = [(option.label, option.value) for option in options]
    control.value = value
    control.observe(heard, names="value")


def _set(control: ipywidgets.Text, value: str, heard: Callable[[dict[str, Any]], None]) -> None:
    control.unobserve(heard, names="value")
    control.value = value
    control.observe(heard, names="value")
