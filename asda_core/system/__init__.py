"""What any program needs of the system: files, locks, processes, threads, memory, command lines."""
