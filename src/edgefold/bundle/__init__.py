"""One directory, and a zip of it, with everything an app needs: artifacts, manifest, model card, results."""
