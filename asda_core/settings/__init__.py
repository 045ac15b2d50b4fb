"""Parts of the configs: strict YAML, checks of values, `compat: released`."""
