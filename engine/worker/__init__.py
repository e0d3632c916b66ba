"""The child process: JSON lines in, JSON lines and run folders out. Started as ``python -m engine.worker``."""
