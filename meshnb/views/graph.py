"""The graph of the mesh as SVG, in layers from callers on the left to callees on the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from meshnb.guides.pictures import Edge, MeshGraph, Node, State
from meshnb.views.base import css, escape

#: Sizes in pixels of the drawing, before it is scaled to the room there is.
_WIDTH, _HEIGHT, _GAP_Y, _MARGIN = 168, 46, 26, 12
#: How far two layers are apart: more where a label has to stand between them.
_GAP, _LABELLED_GAP = 90, 168
#: How much room a line takes that passes between nodes.
_LANE = 14
#: So often the order within each layer is improved.
_SWEEPS = 8
#: No name is longer in a node; the whole one is in its title.
_NAME = 21

_Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class _Box:
    """Where a label lies, so that the next one can keep clear of it."""

    x: float
    y: float
    width: float
    height: float

    def meets(self, other: _Box) -> bool:
        return (
            abs(self.x - other.x) < (self.width + other.width) / 2
            and abs(self.y - other.y) < (self.height + other.height) / 2
        )


def graph(shown: MeshGraph) -> str:
    """Return the graph as SVG, followed by the same in words."""
    layout = _Layout(shown)
    edges = sorted(shown.edges, key=lambda edge: edge.state is not State.FINE)
    lines = "".join(_edge(edge, layout.route(edge)) for edge in edges)
    taken: list[_Box] = []
    labels = "".join(
        _label(edge, layout.route(edge), taken) for edge in edges if edge.state is not State.FINE
    )
    nodes = "".join(_node(node, *layout.corners[place]) for place, node in enumerate(shown.nodes))
    words = "".join(f"<li>{escape(line)}</li>" for line in shown.lines())
    right, bottom = layout.size
    return (
        f'<svg class="mnb-graph" viewBox="0 0 {right:.0f} {bottom:.0f}" width="{right:.0f}" '
        f'height="{bottom:.0f}" role="img" aria-label="{escape(_told(shown))}">'
        f"{lines}{nodes}{labels}</svg>"
        f'<details><summary>The same in words</summary><ul class="mnb-plain">{words}</ul></details>'
    )


def _told(shown: MeshGraph) -> str:
    broken = [edge for edge in shown.edges if edge.state is State.BROKEN]
    told = "; ".join(
        f"{shown.nodes[edge.source].name} to {shown.nodes[edge.target].name}: {edge.note}"
        for edge in broken
    )
    return f"{shown.title}. {f'Broken: {told}' if broken else 'No call is broken'}."


class _Layout:
    """Where each node lies, and along which points each edge runs.

    An edge that passes layers gets a place of its own in each of them, and runs between nodes.
    """

    def __init__(self, shown: MeshGraph) -> None:
        count = len(shown.nodes)
        layers = _layers(count, shown.edges)
        self._via: dict[Edge, list[int]] = {}
        hops: list[tuple[int, int]] = []
        for edge in shown.edges:
            start, end = layers[edge.source], layers[edge.target]
            between = range(start + 1, end) if end > start else range(start - 1, end, -1)
            self._via[edge] = [len(layers) + number for number in range(len(between))]
            layers.extend(between)
            stops = [edge.source, *self._via[edge], edge.target]
            hops += list(pairwise(stops))
        columns: dict[int, list[int]] = {}
        for node, layer in enumerate(layers):
            columns.setdefault(layer, []).append(node)
        _uncross(columns, hops)
        self._count = count
        self._corner: dict[int, _Point] = {}
        tallest = max((self._tall(column) for column in columns.values()), default=0.0)
        labelled = {
            # A label stands beside the target, on the side where its edge arrives.
            layers[edge.target] + (layers[edge.target] <= layers[edge.source])
            for edge in shown.edges
            if edge.state is not State.FINE
        }
        left = float(_MARGIN)
        for layer in sorted(columns):
            if layer:
                left += _WIDTH + (_LABELLED_GAP if layer in labelled else _GAP)
            top = _MARGIN + (tallest - self._tall(columns[layer])) / 2
            for node in columns[layer]:
                self._corner[node] = (left, top)
                top += self._high(node) + _GAP_Y
        self.corners = [self._corner[node] for node in range(count)]
        self.size = (left + _WIDTH + _MARGIN, 2 * _MARGIN + tallest + 14)
        self._spread(shown)

    def _high(self, node: int) -> float:
        return _HEIGHT if node < self._count else _LANE

    def _tall(self, column: Sequence[int]) -> float:
        return sum(self._high(node) + _GAP_Y for node in column) - _GAP_Y

    def _middle(self, node: int) -> float:
        return self._corner[node][1] + self._high(node) / 2

    def _spread(self, shown: MeshGraph) -> None:
        """Give the edges on one side of a node different heights, in the order they lead away."""
        self._at: dict[tuple[Edge, bool], float] = {}
        for node in range(self._count):
            for leaving in (True, False):
                mine = [
                    edge
                    for edge in shown.edges
                    if (edge.source if leaving else edge.target) == node
                ]
                mine.sort(
                    key=lambda edge: self._middle(
                        (
                            [*self._via[edge], edge.target]
                            if leaving
                            else [*self._via[edge][::-1], edge.source]
                        )[0]
                    )
                )
                room = _HEIGHT - 14
                for place, edge in enumerate(mine):
                    share = (place + 1) / (len(mine) + 1)
                    self._at[edge, leaving] = self._corner[node][1] + 7 + room * share

    def route(self, edge: Edge) -> list[_Point]:
        """Return the points that an edge runs along, from its source to its target."""
        start, end = self._corner[edge.source], self._corner[edge.target]
        forward = end[0] >= start[0]
        points = [(start[0] + (_WIDTH if forward else 0), self._at[edge, True])]
        for lane in self._via[edge]:
            x, y = self._corner[lane][0], self._middle(lane)
            points += [(x, y), (x + _WIDTH, y)] if forward else [(x + _WIDTH, y), (x, y)]
        # An edge within one layer, or back to an earlier one, arrives on the side it comes from.
        arrives = end[0] if forward and end[0] > start[0] else end[0] + _WIDTH
        return [*points, (arrives, self._at[edge, False])]


def _layers(count: int, edges: Sequence[Edge]) -> list[int]:
    """Return the layer of each node: one more than that of its furthest caller, rings cut open."""
    targets: dict[int, list[int]] = {node: [] for node in range(count)}
    for edge in edges:
        targets[edge.source].append(edge.target)
    called = {edge.target for edge in edges}
    layers = [0] * count
    finished: list[int] = []
    state = [0] * count  # 0 not seen, 1 on the way, 2 done
    back: set[tuple[int, int]] = set()
    for start in sorted(range(count), key=lambda node: node in called):
        stack = [(start, iter(targets[start]))] if not state[start] else []
        if stack:
            state[start] = 1
        while stack:
            node, following = stack[-1]
            target = next(following, None)
            if target is None:
                state[node] = 2
                finished.append(node)
                stack.pop()
            elif state[target] == 0:
                state[target] = 1
                stack.append((target, iter(targets[target])))
            elif state[target] == 1:
                back.add((node, target))
    for node in reversed(finished):
        for target in targets[node]:
            if (node, target) not in back:
                layers[target] = max(layers[target], layers[node] + 1)
    return layers


def _uncross(columns: Mapping[int, list[int]], hops: Sequence[tuple[int, int]]) -> None:
    """Order each column by where the neighbours of its nodes lie, to and fro."""
    neighbours: dict[int, list[int]] = {}
    for source, target in hops:
        neighbours.setdefault(source, []).append(target)
        neighbours.setdefault(target, []).append(source)
    order = sorted(columns)
    height = {
        node: (row + 0.5) / len(column)
        for column in columns.values()
        for row, node in enumerate(column)
    }
    for sweep in range(_SWEEPS):
        for layer in order if sweep % 2 else reversed(order):
            column = columns[layer]
            column.sort(
                key=lambda node: _mean([height[one] for one in neighbours.get(node, [node])])
            )
            for row, node in enumerate(column):
                height[node] = (row + 0.5) / len(column)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _node(node: Node, x: float, y: float) -> str:
    kind = " mnb-outside" if node.kind == "outside" else ""
    below = node.note or node.detail
    sign = "" if node.state is State.FINE else f"{node.state.sign} "
    small = " · ".join(part for part in (node.namespace, node.detail) if part)
    note = (
        f'<text class="mnb-small" x="{x + 2:.0f}" y="{y + _HEIGHT + 12:.0f}" '
        f'style="fill:var(--mnb-state);font-weight:600">{escape(_cut(node.note, 30))}</text>'
        if node.note
        else ""
    )
    return (
        f'<g class="{css(node.state) if node.state is not State.FINE else "mnb-node"}{kind}">'
        f"<title>{escape(f'{node.kind} {node.name} {node.namespace} {below}')}</title>"
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{_WIDTH}" height="{_HEIGHT}" rx="8"/>'
        f'<text class="mnb-title" x="{x + 10:.0f}" y="{y + 20:.0f}">'
        f"{escape(sign + _cut(node.name, _NAME))}</text>"
        f'<text class="mnb-small" x="{x + 10:.0f}" y="{y + 35:.0f}">'
        f"{escape(_cut(small, 26))}</text>{note}</g>"
    )


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _edge(edge: Edge, points: Sequence[_Point]) -> str:
    drawn = f"M{points[0][0]:.0f},{points[0][1]:.0f}"
    (before, _), (x, y) = points[-2:]
    tip = -9 if x > before else 9
    run = [*points[:-1], (x + tip, y)]
    for (x1, y1), (x2, y2) in pairwise(run):
        bend = max(abs(x2 - x1) / 2, 30 if y1 != y2 else 0)
        first = x1 + bend if x2 >= x1 else x1 - bend
        second = x2 - bend if x2 > x1 and tip < 0 else x2 + bend
        drawn += f" C{first:.0f},{y1:.0f} {second:.0f},{y2:.0f} {x2:.0f},{y2:.0f}"
    state = css(edge.state) if edge.state is not State.FINE else "mnb-edge"
    note = edge.note or f"{edge.count} calls, none failed"
    return (
        f'<g class="{state}"><title>{escape(note)}</title>'
        f'<path d="{drawn}"/><path class="mnb-head" d="M{x:.0f},{y:.0f} l{tip},-5 l0,10 z"/></g>'
    )


def _label(edge: Edge, points: Sequence[_Point], taken: list[_Box]) -> str:
    # The last stretch lies between two layers, where no node is in the way.
    (x1, y1), (x2, y2) = points[-2:]
    what = edge.note.partition(" (")[0] if edge.state is State.BROKEN else ""
    text = f"{edge.state.sign} {_cut(what, 10)} {edge.failed} of {edge.count}".replace("  ", " ")
    box = _Box((x1 + x2) / 2, (y1 + y2) / 2, 6.9 * len(text) + 12, 20)
    for number in range(1, 13):
        if not any(box.meets(other) for other in taken):
            break
        # Alternately below and above, further each time.
        box = _Box(box.x, box.y + 11 * number * (1 if number % 2 else -1), box.width, box.height)
    taken.append(box)
    return (
        f'<g class="mnb-label {css(edge.state)}"><title>{escape(edge.note)}</title>'
        f'<rect x="{box.x - box.width / 2:.0f}" y="{box.y - 10:.0f}" width="{box.width:.0f}" '
        f'height="20" rx="5"/><text x="{box.x:.0f}" y="{box.y + 4:.0f}" text-anchor="middle">'
        f"{escape(text)}</text></g>"
    )
