"""Behind `asda_core.checkpoint`: where weights lie, how they are stored, what made them, what begins with them."""
