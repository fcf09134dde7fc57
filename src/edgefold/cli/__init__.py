"""The command line. Each command is a thin wrapper around one function of the public API."""
