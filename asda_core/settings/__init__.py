"""Parts of the configs: strict YAML, checks of values, changes by a command line, `compat: released`."""
