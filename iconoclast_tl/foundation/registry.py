"""Registries: parts by name, those of this package and those that users bring.

A decorator (`itl.estimator("mine")`) registers a user's part when its module is imported; `foundation.plugins` imports
such modules for the command line. An installed distribution may name the part as an entry point, in the group of the
registry: then its name is known from the distribution's metadata, and its code is imported when the part is first asked
for, so that a broken distribution is in nobody's way who does not use it.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import ref

from iconoclast_tl.foundation.errors import UserError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")
NAME: Final = re.compile(r"\w[\w.+-]*")
"""No commas, colons or spaces: names stand in lists on the command line."""
_NOT_THEIRS: Final = ("<frozen", str(Path(__file__).parents[1]) + os.sep, str(Path(os.__file__).parent) + os.sep)
"""How the paths of files begin that no user has written: of this package, and of Python itself."""
MEND: Final = "pass the plugin that registers it by --plugin FILE_OR_MODULE"


@dataclass(frozen=True)
class Origin:
    """Where a user's part was defined."""

    module: str
    name: str
    """The qualified name of the function or class; empty for a value."""
    plugin: str | None
    """The plugin that was being loaded (`foundation.plugins`), if any."""


class UnknownPartError(UserError):
    """A name that no part has."""

    def __init__(self, kind: str, name: str, names: str, place: str = "") -> None:
        """names: those that there are, as one line. place: which setting names it."""
        super().__init__(f"there is no {kind} {name!r}{place}", want=f"one of {names}", mend=MEND)
        self.kind, self.name = kind, name


_LOADING: ContextVar[str | None] = ContextVar("_LOADING", default=None)
_ALL: Final[list[ref[Registry[Any]]]] = []


@contextmanager
def loading(plugin: str) -> Iterator[None]:
    """Whatever is registered meanwhile comes from this plugin."""
    token = _LOADING.set(plugin)
    try:
        yield
    finally:
        _LOADING.reset(token)


class Registry(Mapping[str, T]):
    """Parts of one kind by name. Built-in ones come first; the rest follow in order of their names."""

    def __init__(
        self, kind: str, group: str, parts: Mapping[str, T], adapt: Callable[[str, Any], T] | None = None
    ) -> None:
        """kind: what a part is called in messages. group: of entry points, whose objects `adapt` makes parts of.

        adapt: (name, object) → part; raises `UserError` for an object that is none. Left out: objects are parts.
        """
        self.kind, self.group, self._adapt = kind, group, adapt
        self._parts: dict[str, T] = dict(parts)
        self._origins: dict[str, Origin] = {}
        self._entries: dict[str, EntryPoint] | None = None
        _ALL.append(ref(self))

    def __getitem__(self, name: str) -> T:
        """The part; that of an entry point is imported now. KeyError for an unknown name; see `require`."""
        if name not in self._parts:
            self._load(name)
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        """The names; no entry point is imported for them."""
        built_in = [name for name in self._parts if name not in self._origins]
        yield from built_in
        yield from sorted((self._origins.keys() | self._found().keys()) - set(built_in))

    def __bool__(self) -> bool:
        """Whether there is any; told by the built-in ones where there are some."""
        return bool(self._parts) or bool(self._found())

    def __len__(self) -> int:
        """How many names there are."""
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        """Whether there is such a name; no entry point is imported for it."""
        return name in self._parts or name in self._found()

    @property
    def origins(self) -> Mapping[str, Origin]:
        """Of the users' parts that are registered, where each was defined."""
        return dict(self._origins)

    def listed(self) -> str:
        """All names in one line, sorted, for messages."""
        return ", ".join(sorted(self)) or "none that is registered"

    def require(self, name: str) -> T:
        """The part; `UserError` that lists the names where there is none."""
        if name not in self:
            raise UnknownPartError(self.kind, name, self.listed())
        return self[name]

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that registers what it decorates, as it stands."""

        def decorate(part: T) -> T:
            self.add(name, part, part)
            return part

        return decorate

    def add(self, name: str, part: T, source: Any = None, module: str | None = None) -> None:
        """Register a user's part. source: the function or class it is made of; or `module`, where it was written.

        The same function or class may be registered again, as when a notebook's cell is run twice; the later counts.
        Raises `UserError` for a name that another part has, or that is no name.
        """
        if not NAME.fullmatch(name):
            raise UserError(
                f"{name!r} is no name of a{_n(self.kind)} {self.kind}", want="letters, digits and the signs . _ + -"
            )
        plugin = _LOADING.get()
        home = module or getattr(source, "__module__", None) or plugin or "__main__"
        origin = Origin(str(home), str(getattr(source, "__qualname__", "")), plugin)
        if name in self._parts:
            before = self._origins.get(name)
            if before is None or (before.module, before.name) != (origin.module, origin.name):
                place = "this package" if before is None else f"{before.module}.{before.name}".rstrip(".")
                raise UserError(f"the {self.kind} name {name!r} is taken", got=f"one by {place}", mend="choose another")
        self._parts[name], self._origins[name] = part, origin

    def _found(self) -> dict[str, EntryPoint]:
        """The entry points of the group by name, from the metadata of what is installed; looked for once."""
        if self._entries is None:
            from importlib import invalidate_caches
            from importlib.metadata import entry_points

            invalidate_caches()  # what was installed since, as in a notebook
            found: dict[str, EntryPoint] = {}
            for entry in entry_points(group=self.group):
                built_in = entry.name in self._parts and entry.name not in self._origins
                if built_in or (entry.name in found and found[entry.name].value != entry.value):
                    other = "this package" if built_in else distribution_of(found[entry.name])
                    raise UserError(
                        f"the {self.kind} name {entry.name!r} is taken",
                        got=f"one by {other} and one by {distribution_of(entry)}",
                        mend=f"uninstall {distribution_of(entry)}, or rename its entry point",
                    )
                found[entry.name] = entry
            self._entries = found
        return self._entries

    def _load(self, name: str) -> None:
        entry = self._found().get(name)
        if entry is None:
            return
        distribution = distribution_of(entry)
        with loading(entry.module):
            try:
                found = entry.load()
            except UserError:
                raise
            except Exception as error:
                raise UserError(
                    f"the {self.kind} {name} of {distribution} cannot be imported",
                    got=described(error),
                    mend=f"mend or uninstall {distribution}",
                ) from error
            if name not in self._parts:  # its decorator has not registered it
                part = found if self._adapt is None else self._adapt(name, found)
                self.add(name, part, found, module=entry.module)


def registries() -> Iterator[Registry[Any]]:
    """Every registry that was made, by kind.

    An iterator, not a list: type checkers at run time look into an item of a list, which would look for entry points.
    """
    found = [registry for one in _ALL if (registry := one()) is not None]
    yield from sorted(found, key=lambda registry: registry.kind)


def distribution_of(entry: EntryPoint) -> str:
    """Name and version of what an entry point was installed with."""
    return "a distribution without a name" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"


def described(error: BaseException) -> str:
    """An error of a user's code in one line: its kind, its message, and the line of the innermost file of theirs.

    Files of installed packages are passed over, so that an error that torch raises is told by the line that called it.
    """
    line, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "site-packages" not in file and not file.startswith(_NOT_THEIRS):
            line = f" ({Path(file).name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {error}{line}"


def called(what: str, function: Callable[..., T], *given: Any) -> T:
    """What a user's function returns; `UserError` that names `what` it is where it raises an error.

    Where memory runs out, that error goes through: whoever can take less at a time then does.
    """
    try:
        return function(*given)
    except UserError:
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch is not imported here
            raise
        raise UserError(f"{what} raises an error", got=described(error), mend="mend it, or use another") from error


def source_digest(part: Any) -> str:
    """SHA-256 of the file that a function or class stands in, or of itself where that is a notebook or a script.

    The whole file, since what a part does depends on its neighbours too.
    """
    part = inspect.unwrap(part)
    module = sys.modules.get(getattr(part, "__module__", ""))
    file = getattr(module, "__file__", None)
    if file is not None and module is not None and module.__name__ != "__main__" and Path(file).is_file():
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    try:
        text = inspect.getsource(part)
    except (OSError, TypeError):  # typed at a prompt: its instructions are all that there is
        code = getattr(part, "__code__", None)
        text = repr((code.co_code.hex(), code.co_consts, code.co_names)) if code else getattr(part, "__qualname__", "")
    return hashlib.sha256(text.encode()).hexdigest()


def _n(word: str) -> str:
    return "n" if word[0] in "aeiou" else ""
