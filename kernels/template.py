"""Fill C++ and CUDA templates.

A template file is C++ with `$name` placeholders and has sections, each opened by a line `// [section] what it is`. A
placeholder stands for a text, or for a list of texts: a line that mentions lists is written once per entry (several
lists on one line advance together), so it disappears when they are empty. A comma left before `)` is dropped. With
x = ["x0", "x1"] and s = [],

    step(
        loom_load($x[l]),
        ${s}_[l],
    );

becomes `step(loom_load(x0[l]), loom_load(x1[l]));` on several lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from string import Template

Value = str | list[str]


def fill(file: Path, section: str, values: Mapping[str, Value]) -> str:
    """One section of a template file with its placeholders replaced.

    Raises:
        KeyError: a placeholder has no value.
        ValueError: lists on one line differ in length.
    """
    lines = [copy for line in _sections(file)[section] for copy in _copies(line, values)]
    return re.sub(r",\s*\)", ")", "\n".join(lines))


@lru_cache(maxsize=16)
def _sections(file: Path) -> dict[str, list[Template]]:
    """Lines of every section. What stands above the first one is about the file and is left out."""
    found: dict[str, list[Template]] = {}
    for line in file.read_text().splitlines():
        opening = re.match(r"// \[(\w+)\]", line)
        if opening:
            found[opening[1]] = []
        elif found:
            next(reversed(found.values())).append(Template(line))
    return found


def _copies(line: Template, values: Mapping[str, Value]) -> Iterator[str]:
    indent = line.template[: len(line.template) - len(line.template.lstrip())]
    texts: dict[str, str] = {}
    lists: dict[str, list[str]] = {}
    for name in line.get_identifiers():
        value = values[name]
        if isinstance(value, str):
            texts[name] = value.strip("\n").replace("\n", "\n" + indent)
        else:
            lists[name] = value
    rows = zip(*lists.values(), strict=True) if lists else [()]
    for row in rows:
        copy = line.substitute(texts, **dict(zip(lists, row, strict=True)))
        if copy.strip() or not line.template.strip():
            yield copy.rstrip()
