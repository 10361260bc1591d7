"""Processes that contend for an object: forks of a server without threads, which has imported what they need."""

import multiprocessing

PROCESSES = multiprocessing.get_context("forkserver")
"""A fork of pytest's process may find a lock of its allocator taken by a thread, or an S3 client's memory shared.

The server has the environment of its start, so a process takes this process's as an argument.
"""

PROCESSES.set_forkserver_preload(
    [
        "tests.end_to_end.test_two_writers",
        "tests.infra.storage.test_storage",
        # Imported late: each process of a race on S3 would import them again.
        "aiobotocore.httpsession",
        "aiobotocore.parsers",
        "s3fs",
    ]
)
