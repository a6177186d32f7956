"""Write the versions installed here, for everything this project needs, to constraints.txt.

Run it in an environment in which `make test lint bench` has passed:

    python tools/make_constraints.py > constraints.txt
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def declared() -> list[Requirement]:
    """Return every requirement that pyproject.toml declares: to build, run, test and measure."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    texts = [*project["build-system"]["requires"], *project["project"]["dependencies"], "pip"]
    for extra in project["project"]["optional-dependencies"].values():
        texts += extra
    for group in project["dependency-groups"].values():
        texts += [entry for entry in group if isinstance(entry, str)]
    found = [Requirement(text) for text in texts]
    ours = canonicalize_name(project["project"]["name"])
    return [req for req in found if canonicalize_name(req.name) != ours]


def closure(requirements: Iterable[Requirement]) -> dict[str, str]:
    """Return name → installed version of the requirements and of all that they need."""
    versions: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = list(requirements)
    while todo:
        req = todo.pop()
        key = (canonicalize_name(req.name), frozenset(req.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            dist = distribution(req.name)
        except PackageNotFoundError:
            print(f"not installed here, left out: {req}", file=sys.stderr)
            continue
        versions[key[0]] = dist.version.split("+")[0]  # 2.13.0+cpu is how one build of 2.13.0 names itself
        for text in dist.requires or ():
            child = Requirement(text)
            extras = req.extras or {""}
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(child)
    return versions


def main() -> None:
    """Print the constraints."""
    print("# Tested versions of everything this project needs; made by tools/make_constraints.py.")
    for name, version in sorted(closure(declared()).items()):
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
