"""The model card of a bundle: one short page of Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgefold.report.content import Shipment, Variant
from edgefold.report.table import markdown, rows
from edgefold.report.verdict import verdict
from edgefold.runtime.worker_x86 import is_for_vnni

if TYPE_CHECKING:
    from edgefold.bundle.writer import Contract


def model_card(shipment: Shipment, contract: Contract) -> str:
    """The card of a shipment."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("edgefold.bundle", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # the output is Markdown, not HTML
    )
    made = [variant for variant in shipment.variants if variant.artifact is not None]
    artifact = made[0].artifact if made else None
    return environment.get_template("model_card.md.j2").render(
        shipment=shipment,
        contract=contract,
        inputs=() if artifact is None else artifact.inputs,
        outputs=() if artifact is None else artifact.outputs,
        example=made[-1].name if made else "",
        table=markdown(rows(shipment)),
        verdict=verdict(shipment),
        for_vnni=[variant.name for variant in made if _is_for_vnni(variant)],
    )


def _is_for_vnni(variant: Variant) -> bool:
    """Whether sums in the file may saturate on x86 CPUs without VNNI."""
    assert variant.artifact is not None
    return is_for_vnni(variant.artifact.path)
