"""Shows what a run found: as a table, as a self-contained HTML page."""
