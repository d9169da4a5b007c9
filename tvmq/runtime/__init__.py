"""Running compiled networks: needs TVM's runtime, never its compiler."""
