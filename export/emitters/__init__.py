"""One emitter per file format: a lowered program in, one file that a phone can load out."""

from edgefold.export.emitters.base import EmitOptions, Emitter, get_emitter

__all__ = ["EmitOptions", "Emitter", "get_emitter"]
