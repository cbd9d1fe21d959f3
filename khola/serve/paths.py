"""Which operation a method and a path name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from starlette.routing import compile_path

from khola.errors import NotFound, WrongMethod
from khola.serve.operation import Operation

Methods = dict[str, Operation]


class Paths:
    """All addresses of a server. Paths without parameters are looked up; the others are tried in the order of their operations."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self.operations = tuple(operations)
        found: dict[str, Methods] = defaultdict(dict)
        for operation in self.operations:
            if found[operation.path].setdefault(operation.method, operation) is not operation:
                raise ValueError(f"{operation.method} {operation.path} is offered twice")
        self._plain = {path: methods for path, methods in found.items() if "{" not in path}
        self._patterns: list[tuple[re.Pattern[str], Methods]] = [
            (compile_path(path)[0], methods) for path, methods in found.items() if "{" in path
        ]

    def find(self, method: str, path: str) -> tuple[Operation, dict[str, Any]]:
        """The operation, and the values of its path's parameters.

        Raises:
            NotFound: no address is like this.
            WrongMethod: the address cannot be asked by this method; its fact `allow` says by which it can.
        """
        methods, values = self._methods(path)
        if not methods:
            raise NotFound("there is nothing at {path}", hint="/openapi.json lists what there is", path=path[:200])
        operation = methods.get(method) or (methods.get("GET") if method == "HEAD" else None)
        if operation is None:
            allow = ", ".join(sorted({*methods, *(["HEAD"] if "GET" in methods else [])}))
            raise WrongMethod("{path} cannot be asked by {method}; expected {allow}", path=path[:200], method=method[:20], allow=allow)
        return operation, values

    def _methods(self, path: str) -> tuple[Methods, dict[str, Any]]:
        if methods := self._plain.get(path):
            return methods, {}
        for pattern, methods in self._patterns:
            if found := pattern.match(path):
                return methods, found.groupdict()
        return {}, {}
