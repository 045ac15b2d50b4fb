"""General system utilities: files, locks, processes, threads, memory, command lines."""
