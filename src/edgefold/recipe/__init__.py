"""A recipe: a TOML file of a whole run, from a network over pruning and distillation to a bundle."""
