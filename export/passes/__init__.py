"""Graph rewrites, one a file: functions (graph) -> (graph, modified), run in explicit lists by `infra.run_passes`."""
