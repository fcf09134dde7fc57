"""One directory, and a zip of it, with everything an app needs: artifacts, manifest, model card, results.

`write_bundle` makes one out of a `Shipment` and a `Contract`; `load_bundle` opens one. Both are imported from their modules
(`edgefold.bundle.writer`, `edgefold.bundle.reader`), so that this package costs nothing to import.
"""
