"""From what stands on the command line (a model's name, paths of data) to a network with its data."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgefold.errors import UsageError

if TYPE_CHECKING:
    from edgefold.network import Network
    from edgefold.preprocess import Preprocessing


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which model, as the command line says it."""

    name: str
    arg: list[str] | None = None
    weights: Path | None = None
    trust: bool = False
    preprocess: list[str] | None = None
    qat: Path | None = None

    @property
    def short_name(self) -> str:
        """The name that outputs get: without folders, suffixes and the characters that file names cannot have."""
        from edgefold.report.table import slug

        last = self.name.rpartition(":")[2]
        return slug(Path(last).stem if "." in last or "/" in last else last)

    def load(
        self, calibration: str | None = None, evaluation: str | None = None, bundled: Preprocessing | None = None
    ) -> Network:
        """The network, with data given on the command line in the place of the data that comes with it.

        Args:
            calibration: where it is, or ``random``.
            evaluation: where it is.
            bundled: the preprocessing that a bundle of the network declares, which is then that of all data.

        Raises:
            InputError: there is no such model, or data that cannot be read or does not fit it.
        """
        from edgefold.batch import as_tensors
        from edgefold.preprocess import declared
        from edgefold.recipe.data import with_data
        from edgefold.shipping import named_network
        from edgefold.trained import load_trained

        network = named_network(self.name, kwargs=arguments(self.arg or []), weights=self.weights, trust=self.trust)
        for note in network.notes:
            print(note, file=sys.stderr, flush=True)
        if self.qat is not None:
            network = replace(network, trained=load_trained(self.qat))
        example = as_tensors(network.example_inputs)
        own = network.preprocessing
        if bundled is not None:
            network = replace(network, preprocessing=bundled)
        if self.preprocess:
            if example[0].ndim != 4:
                shape = tuple(example[0].shape)
                raise UsageError(f"--preprocess is for images, and '{self.name}' takes an input of shape {shape}; leave it out")
            channels, height, width = example[0].shape[1:]
            network = replace(network, preprocessing=declared(self.preprocess, network.preprocessing, (channels, height, width)))
            if bundled is not None and network.preprocessing != bundled:
                raise UsageError(
                    f"--preprocess {' '.join(self.preprocess)} is not what the bundle declares ({bundled.text}), which is what "
                    "an app does; leave it out"
                )
        network = _without_other_values(network, own)
        return with_data(network, calibration, evaluation)


def _without_other_values(network: Network, own: Preprocessing | None) -> Network:
    """Without the data that comes with the network, where that is prepared in another way (``own``) than is declared."""
    declared = network.preprocessing
    brought = [name for name in ("calibration", "evaluation") if getattr(network, name) is not None]
    if own is None or declared is None or own.same_values(declared) or not brought:
        return network
    note = (
        f"The {' and '.join(brought)} data that the model brings is left out: it is prepared with {own.text}, "
        f"and {declared.text} is declared."
    )
    return replace(network, calibration=None, calibration_source="", evaluation=None, notes=(*network.notes, note))


def arguments(pairs: list[str]) -> dict[str, Any]:
    """``["width=32", "conv=dual"]`` -> ``{"width": 32, "conv": "dual"}``: values are JSON, or else words.

    One of them may be a JSON object of several, such as ``{"width": 32}``; what comes later wins.

    Raises:
        UsageError: a pair without ``=`` or with an empty key, or an object that is no JSON.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        if pair.lstrip().startswith("{"):
            found |= _json_object(pair)
            continue
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UsageError(
                f"""argument '{pair}' is neither KEY=VALUE nor a JSON object; write e.g. width=32 or '{{"width": 32}}'"""
            )
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return found


def _json_object(text: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(text)  # what starts with a brace is an object or nothing
    except ValueError as error:
        raise UsageError(f"""arguments '{text}' are no JSON object ({error}); write e.g. '{{"width": 32}}'""") from error
    return found
