"""Pulls as users ask for them: which parameters, as what, into what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from stepd.arrays import DTYPE_OF
from stepd.buffers import Array, Buffers, Picture
from stepd.definitions import DTYPE_NAMES, DType
from stepd.errors import DtypeMismatch, InvalidArgument, ShapeMismatch
from stepd.parameters import ParameterTable
from stepd.settings import refuse, shown
from stepd.transfer import Plan
from stepd.views import Seen, ViewPicture

# Pictures kept for the next pull of the same parts; a loop asks for one or two.
PICTURES_KEPT: Final = 8


class Wanted:
    """One pull: a picture, and where it goes.

    Attributes:
        picture: what is wanted.
        regions: where the streams write.
    """

    def __init__(self, picture: Picture, regions: list[Array], finish: Callable[[], dict[str, Array]]) -> None:
        self.picture = picture
        self.regions = regions
        self._finish = finish

    def arrays(self) -> dict[str, Array]:
        """The parameters by name; after the pull."""
        return self._finish()


class Reading:
    """The pulls of one worker or one reader of a run."""

    def __init__(self, known: Callable[[], tuple[Plan, ParameterTable]], buffers: Buffers | None) -> None:
        """
        Args:
            known: gives the run's layout and its parameters, of which there may be more later.
            buffers: to lend results from; None gives each result memory of its own.
        """
        self._known = known
        self._plan, self._table = known()
        self._buffers = buffers
        self._pictures: dict[tuple[tuple[int, ...] | None, DType | None, bool], Picture] = {}
        self._view: ViewPicture | None = None

    def _picture(self, ids: tuple[int, ...] | None, dtype: DType | None, *, separate: bool) -> Picture:
        # Not functools' cache: of a method, it would keep our buffers until the garbage collector comes.
        key = (ids, dtype, separate)
        if key not in self._pictures:
            if len(self._pictures) == PICTURES_KEPT:
                del self._pictures[next(iter(self._pictures))]
            self._pictures[key] = Picture(self._plan, ids, dtype, separate=separate)
        return self._pictures[key]

    def want(
        self,
        *,
        names: Iterable[str] | None = None,
        dtype: Any = None,
        out: Mapping[str, Array] | None = None,
    ) -> Wanted:
        """Check what a user asks for and make room for it."""
        self._follow()
        kind = None if dtype is None else _dtype(dtype)
        if names is None and out is not None:
            names = out.keys()
        ids = None if names is None else self._ids(names)
        if out is None:
            return self._lend(self._picture(ids, kind, separate=False))
        return self._give(self._picture(ids, kind, separate=True), kind, out)

    def view(self) -> Wanted:
        """Make room for all parameters, as views where that can be."""
        self._follow()
        if self._view is None:
            self._view = ViewPicture(self._plan)
        picture, buffer = self._view, self._take(self._view.bytes)
        picture.seen.clear()
        return Wanted(picture, picture.regions_in(buffer), lambda: picture.arrays_in(buffer))

    @property
    def seen(self) -> list[Seen]:
        """What of shards' memory the latest result shows."""
        return list(self._view.seen.values()) if self._view else []

    def _follow(self) -> None:
        plan, self._table = self._known()
        if plan is not self._plan:
            self._plan, self._view = plan, None
            self._pictures.clear()

    def _take(self, size: int) -> Array:
        return np.empty(size, np.uint8) if self._buffers is None else self._buffers.take(size)

    def _ids(self, names: Iterable[str]) -> tuple[int, ...]:
        if isinstance(names, str | bytes) or not isinstance(names, Iterable):
            refuse("pull", "names", names, "a sequence of names of parameters")
        return tuple(sorted({self._table.id_of(name) for name in names}))

    def _lend(self, picture: Picture) -> Wanted:
        buffer = self._take(picture.bytes)
        arrays: dict[str, Array] = {}

        def finish() -> dict[str, Array]:
            # Asked for while the streams run, and again when they are done.
            if not arrays:
                arrays.update(picture.arrays_in(buffer))
            return arrays

        return Wanted(picture, picture.regions_in(buffer), finish)

    def _give(self, picture: Picture, kind: DType | None, out: Mapping[str, Array]) -> Wanted:
        given: list[Array] = []
        for id_ in picture.ids:
            spec = self._table.specs[id_]
            array = out.get(spec.name)
            if array is None:
                raise InvalidArgument(f"pull: out has no array for parameter {spec.name!r}", parameter=spec.name)
            _check_out(spec.name, array, spec.shape, kind or spec.dtype)
            given.append(array)
        # What cannot be written flat where it lies lands beside it, and is copied when all is there.
        regions = [a.reshape(-1) if a.flags.c_contiguous else np.empty(a.size, a.dtype) for a in given]

        def finish() -> dict[str, Array]:
            for array, region in zip(given, regions, strict=True):
                if not array.flags.c_contiguous:
                    array[...] = region.reshape(array.shape)
            return {self._table.specs[id_].name: array for id_, array in zip(picture.ids, given, strict=True)}

        return Wanted(picture, regions, finish)


def _dtype(dtype: Any) -> DType:
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = None
    found = None if kind is None else DTYPE_OF.get(kind.type)
    if found is None:
        raise DtypeMismatch(
            f"pull: dtype must be one of {DTYPE_NAMES}, got {shown(dtype)}", expected=DTYPE_NAMES, given=shown(dtype)
        )
    return found


def _check_out(name: str, array: object, shape: Sequence[int], dtype: DType) -> None:
    thing = f"pull: out[{name!r}]"
    if not isinstance(array, np.ndarray):
        refuse(thing, "type", type(array).__name__, "numpy.ndarray")
    if array.shape != tuple(shape):
        raise ShapeMismatch(
            f"{thing}: shape must be {tuple(shape)}, got {array.shape}",
            parameter=name,
            expected=tuple(shape),
            given=array.shape,
        )
    if array.dtype != dtype:
        raise DtypeMismatch(
            f"{thing}: dtype must be {dtype}, got {array.dtype}",
            parameter=name,
            expected=str(dtype),
            given=str(array.dtype),
        )
    if not array.flags.writeable:
        raise InvalidArgument(f"{thing}: the array must be writeable, and is not", parameter=name)
