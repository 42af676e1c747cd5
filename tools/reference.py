#!/usr/bin/env python
"""Print docs/REFERENCE.md: every config key of ours, from crnas_d2/keys.py.

python tools/reference.py > docs/REFERENCE.md
"""

from __future__ import annotations

from collections.abc import Iterator

from crnas_d2.keys import RESUME_ALWAYS, RESUME_UNTIL_SCORED, SECTIONS

HEAD = """\
# Every key

Our keys beside [Detectron2's own](https://detectron2.readthedocs.io/en/latest/modules/config.html),
which all work as usual. Made by `python tools/reference.py > docs/REFERENCE.md` from
[crnas_d2/keys.py](../crnas_d2/keys.py). A value is given on the command line as `KEY VALUE`, or in a
config:

```yaml
SEARCH:
  FINALISTS:
    NUM: 4
```

`--resume` of a search takes no other value than before, unless a key says so below."""


def lines() -> Iterator[str]:
    yield HEAD
    for title, keys in SECTIONS.items():
        yield f"\n## {title}"
        for name, key in keys.items():
            yield f"\n**{name}** = `{key.default!r}`  \n{key.meaning}"
            if key.check:
                yield f"Allowed: {key.check.allowed}."
            if name in RESUME_ALWAYS:
                yield "`--resume` may change it."
            if name in RESUME_UNTIL_SCORED:
                yield "`--resume` may change it until a candidate is scored."
    theirs = sorted({*RESUME_ALWAYS} - {name for keys in SECTIONS.values() for name in keys})
    yield f"\n`--resume` may also change these of Detectron2: {', '.join(theirs)}."


if __name__ == "__main__":
    print("\n".join(lines()))
