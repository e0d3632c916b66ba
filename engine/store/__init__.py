"""What lies on disk: folders, headers, run folders, atomic writes. Imports neither torch nor Qt."""
