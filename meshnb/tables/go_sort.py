"""Sorting as Go's ``sort.Slice`` does it since 1.19: for orders that are none, such as istioctl's.

Where a comparison contradicts itself, the result is that of the algorithm: a quicksort that defeats
patterns (https://arxiv.org/abs/2106.05123), with an insertion sort for up to twelve elements. It
has no chance in it, so that a list is always sorted in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

_T = TypeVar("_T")
#: Up to so many elements are sorted by insertion.
_FEW = 12
#: From so many on, a pivot is chosen among nine, and elements that are nearly sorted are shifted.
_MANY = 50
#: All comparisons of a choice among nine turned out the wrong way round.
_ALL_SWAPPED = 12
#: So many pairs at the wrong place are mended before sorting begins in earnest.
_MENDED = 5
_WORD = (1 << 64) - 1


def go_sorted(elements: Iterable[_T], less: Callable[[_T, _T], bool]) -> list[_T]:
    """Return the elements in the order in which Go's ``sort.Slice`` leaves them."""
    sorting = _Sorting(list(elements), less)
    count = len(sorting.elements)
    sorting.sort(0, count, count.bit_length())
    return sorting.elements


class _Sorting(Generic[_T]):
    """A list while it is sorted; ``first`` and ``end`` bound the part that is meant."""

    def __init__(self, elements: list[_T], less: Callable[[_T, _T], bool]) -> None:
        self.elements = elements
        self._compare = less

    def _less(self, one: int, other: int) -> bool:
        return self._compare(self.elements[one], self.elements[other])

    def _swap(self, one: int, other: int) -> None:
        held = self.elements
        held[one], held[other] = held[other], held[one]

    def sort(self, first: int, end: int, limit: int) -> None:
        """Sort a part; after ``limit`` bad pivots by a heap."""
        balanced = divided = True
        while end - first > _FEW:
            length = end - first
            if limit == 0:
                self._heap(first, end)
                return
            if not balanced:
                self._scatter(first, end)
                limit -= 1
            pivot, swaps = self._pivot(first, end)
            if swaps == _ALL_SWAPPED:
                self.elements[first:end] = self.elements[first:end][::-1]
                pivot = (end - 1) - (pivot - first)
            rising = swaps in (0, _ALL_SWAPPED)
            if balanced and divided and rising and self._mend(first, end):
                return
            if first > 0 and not self._less(first - 1, pivot):
                first = self._part_equal(first, end, pivot)
                continue
            middle, divided = self._part(first, end, pivot)
            left, right = middle - first, end - middle
            balanced = min(left, right) >= length // 8
            if left < right:
                self.sort(first, middle, limit)
                first = middle + 1
            else:
                self.sort(middle + 1, end, limit)
                end = middle
        self._insert(first, end)

    def _insert(self, first: int, end: int) -> None:
        for position in range(first + 1, end):
            place = position
            while place > first and self._less(place, place - 1):
                self._swap(place, place - 1)
                place -= 1

    def _pivot(self, first: int, end: int) -> tuple[int, int]:
        """Return the place of the pivot, and how many comparisons were the wrong way round."""
        quarter = (end - first) // 4
        places = [first + quarter * part for part in (1, 2, 3)]
        swaps = 0
        if end - first >= _MANY:
            for number, place in enumerate(places):
                places[number], more = self._median(place - 1, place, place + 1)
                swaps += more
        pivot, more = self._median(*places)
        return pivot, swaps + more

    def _median(self, one: int, two: int, three: int) -> tuple[int, int]:
        swaps = 0
        places = [one, two, three]
        for left in (0, 1, 0):
            if self._less(places[left + 1], places[left]):
                places[left], places[left + 1] = places[left + 1], places[left]
                swaps += 1
        return places[1], swaps

    def _mend(self, first: int, end: int) -> bool:
        """Put a few elements in their places; return whether all are sorted then."""
        place = first + 1
        for _ in range(_MENDED):
            while place < end and not self._less(place, place - 1):
                place += 1
            if place == end:
                return True
            if end - first < _MANY:
                return False
            self._swap(place, place - 1)
            if place - first >= 2:
                self._shift(range(place - 1, 0, -1))
            if end - place >= 2:
                self._shift(range(place + 1, end))
        return False

    def _shift(self, places: Iterable[int]) -> None:
        for place in places:
            if not self._less(place, place - 1):
                return
            self._swap(place, place - 1)

    def _part(self, first: int, end: int, pivot: int) -> tuple[int, bool]:
        """Divide by a pivot; return its place, and whether all were on their side already."""
        self._swap(first, pivot)
        low, high, already = first + 1, end - 1, True
        while True:
            while low <= high and self._less(low, first):
                low += 1
            while low <= high and not self._less(high, first):
                high -= 1
            if low > high:
                break
            already = False
            self._swap(low, high)
            low, high = low + 1, high - 1
        self._swap(high, first)
        return high, already

    def _part_equal(self, first: int, end: int, pivot: int) -> int:
        """Put what equals the pivot in front; return the place behind it."""
        self._swap(first, pivot)
        low, high = first + 1, end - 1
        while True:
            while low <= high and not self._less(first, low):
                low += 1
            while low <= high and self._less(first, high):
                high -= 1
            if low > high:
                return low
            self._swap(low, high)
            low, high = low + 1, high - 1

    def _scatter(self, first: int, end: int) -> None:
        """Swap three elements in the middle with some that a xorshift of the length chooses."""
        length = end - first
        number = length
        middle = first + length // 4 * 2
        for place in range(middle - 1, middle + 2):
            number ^= number << 13 & _WORD
            number ^= number >> 7
            number ^= number << 17 & _WORD
            other = number & ((1 << length.bit_length()) - 1)
            self._swap(place, first + (other - length if other >= length else other))

    def _heap(self, first: int, end: int) -> None:
        count = end - first
        for root in range((count - 1) // 2, -1, -1):
            self._sink(root, count, first)
        for last in range(count - 1, -1, -1):
            self._swap(first, first + last)
            self._sink(0, last, first)

    def _sink(self, root: int, count: int, first: int) -> None:
        while (child := 2 * root + 1) < count:
            if child + 1 < count and self._less(first + child, first + child + 1):
                child += 1
            if not self._less(first + root, first + child):
                return
            self._swap(first + root, first + child)
            root = child
