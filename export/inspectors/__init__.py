"""What a runtime makes of a file, op by op: one reader per format, and the figures that they have in common."""
