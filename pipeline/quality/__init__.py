"""Everything that inspects a dataset: audit, statistics, report, viewer, studies, and evidence."""
