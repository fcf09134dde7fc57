"""Strings that try to be more than a name."""

from __future__ import annotations

import random


def hostile(count: int) -> list[str]:
    """Strings with everything that shells, ssh, adb and tar could read as more than a name."""
    rng = random.Random(0)
    parts = [
        *"-;'\"\\\n\t *?~!#|<>[]@:/a0=\r{}&",
        "-oProxyCommand=touch /tmp/x",
        "--",
        "$(id)",
        "`id`",
        "%h",
        "&&",
        "\x1b[31m",
        "é",
    ]
    parts += ["\u202e", "{a,b}", "..", "board", "EOF", "%n"]
    return ["".join(rng.choices(parts, k=rng.randint(1, 6))) for _ in range(count)]
