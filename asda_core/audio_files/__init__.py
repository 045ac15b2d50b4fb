"""Where audio is: folders, manifests, members of tar shards, streams, and the options of packs."""
