"""Options, output, and exit codes that the commands share."""
