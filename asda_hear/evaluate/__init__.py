"""HEAR evaluation: building tasks, running the unmodified heareval, reading its scores."""
