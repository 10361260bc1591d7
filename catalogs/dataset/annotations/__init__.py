"""Submissions, assignments, leases, and ratings that annotators leave in a dataset."""
