"""One artifact, run in its real runtime, in a process of its own.

`session` is what others call; `worker` is the script that meets the runtime; `protocol` is what the two say to each other;
`container` reads the parts of a model file that need no runtime.
"""

from edgefold.runtime.session import Description, describe, execute, run

__all__ = ["Description", "describe", "execute", "run"]
