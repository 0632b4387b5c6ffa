"""Registries of named objects; each object registers itself where it is defined."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, TypeVar

T = TypeVar("T")
Decorated = TypeVar("Decorated")


class Registry(MutableMapping[str, T]):
    """Objects of one kind by name, sorted by their declared place, then by name.

    If a package is given, the first read imports all its modules except those with a leading underscore. Until then
    nothing is imported.

    Args:
        kind: Kind of object, for messages.
        package: Package whose modules register the objects; ``None`` if the module that owns the registry does.
        entry: Maps what :meth:`register` decorates to its name and object; by default a function's name and the
            function.
    """

    def __init__(
        self,
        kind: str,
        package: str | None = None,
        *,
        entry: Callable[[Any], tuple[str, T]] = lambda thing: (thing.__name__, thing),
    ) -> None:
        self._kind, self._package, self._entry = kind, package, entry
        self._things: dict[str, T] = {}
        self._places: dict[str, float] = {}

    def add(self, name: str, thing: T, *, place: float = math.inf) -> None:
        """Register an object.

        Args:
            name: Its key.
            thing: The object.
            place: Position in the order shown to users; last by default.

        Raises:
            ValueError: if the name is taken.
        """
        if name in self._things:
            raise ValueError(f"{self._kind} = {name!r} is registered twice; give one of them another name.")
        self._things[name], self._places[name] = thing, place

    def register(self, *, place: float = math.inf) -> Callable[[Decorated], Decorated]:
        """Decorator that registers a class or a function.

        Args:
            place: Position in the order shown to users; last by default.

        Raises:
            ValueError: if the name is taken.
        """

        def decorate(decorated: Decorated) -> Decorated:
            self.add(*self._entry(decorated), place=place)
            return decorated

        return decorate

    def _load(self) -> dict[str, T]:
        if self._package is not None:
            package, self._package = self._package, None  # modules that read the registry must not load it again
            try:
                for module in pkgutil.iter_modules(importlib.import_module(package).__path__, package + "."):
                    if not module.name.rpartition(".")[2].startswith("_"):
                        importlib.import_module(module.name)
            except BaseException:
                self._package = package
                raise
        return self._things

    def __getitem__(self, name: str) -> T:
        return self._load()[name]

    def __setitem__(self, name: str, thing: T) -> None:
        self._load()[name] = thing

    def __delitem__(self, name: str) -> None:
        del self._load()[name]
        self._places.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._load(), key=lambda name: (self._places.get(name, math.inf), name)))

    def __len__(self) -> int:
        return len(self._load())
