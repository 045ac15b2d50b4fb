"""What stands behind configs: strict YAML, checks of values, changes by a command line, `compat: released`."""
