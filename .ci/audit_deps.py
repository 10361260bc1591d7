"""Check the packages of this Python environment for known vulnerabilities in the OSV database, with pip-audit.

    python .ci/audit_deps.py path/of/pip-audit

Exit code 0: no known vulnerabilities. 1: some. 2: the database did not answer.
"""

import json
import subprocess
import sys
import sysconfig


def main(tool: str) -> int:
    """Run pip-audit and report its answer."""
    packages = sysconfig.get_path("purelib")
    command = [tool, "--path", packages, "--skip-editable", "--vulnerability-service", "osv", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        answer = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        print("\n".join(done.stderr.strip().splitlines()[-1:]), file=sys.stderr)  # the last line of a traceback
        print("audit-deps: no answer from the advisory database, so nothing is known: try where it can be reached")
        return 2
    return report(answer)


def report(dependencies: list[dict]) -> int:
    """Print each vulnerability and each skipped package; return the exit code."""
    skipped = [entry for entry in dependencies if "skip_reason" in entry]
    found = [(entry, flaw) for entry in dependencies for flaw in entry.get("vulns", [])]
    for entry in skipped:
        print(f"{entry['name']}: not audited: {entry['skip_reason']}")
    for entry, flaw in found:
        fixed = ", ".join(flaw["fix_versions"]) or "no version yet"
        print(f"{entry['name']} {entry['version']}: {', '.join([flaw['id'], *flaw['aliases']])}; fixed in {fixed}")
    print(f"audit-deps: {len(dependencies) - len(skipped)} packages audited, {len(found)} known vulnerabilities")
    return 1 if found else 0 if len(skipped) < len(dependencies) else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
