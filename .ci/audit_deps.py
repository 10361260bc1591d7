"""Asks the OSV database for known vulnerabilities of the packages beside this Python, through pip-audit.

    python .ci/audit_deps.py path/of/pip-audit

Exit code 0: none is known. 1: some are. 2: nobody answered, so that nothing is known.
"""

import json
import subprocess
import sys
import sysconfig


def main(tool: str) -> int:
    """Runs pip-audit and tells its answer."""
    packages = sysconfig.get_path("purelib")
    command = [tool, "--path", packages, "--skip-editable", "--vulnerability-service", "osv", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        answer = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        print("\n".join(done.stderr.strip().splitlines()[-1:]), file=sys.stderr)  # the last line of a traceback
        print("audit-deps: the advisory database gave no answer, so nothing is known: try where it can be reached")
        return 2
    return tell(answer)


def tell(dependencies: list[dict]) -> int:
    """Prints each vulnerability and each package that was passed over; the exit code."""
    passed_over = [entry for entry in dependencies if "skip_reason" in entry]
    found = [(entry, flaw) for entry in dependencies for flaw in entry.get("vulns", [])]
    for entry in passed_over:
        print(f"{entry['name']}: not audited: {entry['skip_reason']}")
    for entry, flaw in found:
        mended = ", ".join(flaw["fix_versions"]) or "no version yet"
        print(f"{entry['name']} {entry['version']}: {', '.join([flaw['id'], *flaw['aliases']])}; mended in {mended}")
    print(f"audit-deps: {len(dependencies) - len(passed_over)} packages audited, {len(found)} known vulnerabilities")
    return 1 if found else 0 if len(passed_over) < len(dependencies) else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
