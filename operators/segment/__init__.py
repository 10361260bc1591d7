"""The segment stage of a build, which generates the masks of a prepared image."""
