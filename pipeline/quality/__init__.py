"""Quality of a dataset: audit, statistics, report, viewer, studies, and evidence."""
