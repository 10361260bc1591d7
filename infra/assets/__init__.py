"""Weight files by name and SHA-256, downloaded or read from installed packages."""
