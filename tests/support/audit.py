"""Ask for known vulnerabilities of the installed packages: `python -m tests.support.audit`, as `make check` does.

Exit code 1 if there are some. Without a network, or if the service does not answer in time, it says so and goes on.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SECONDS = 60
COMMAND = ("-m", "pip_audit", "--local", "--skip-editable", "--progress-spinner", "off", "--timeout", "5")


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        words = [sys.executable, *COMMAND, "--format", "json", "--output", str(out)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
            said = done.stderr
        except subprocess.TimeoutExpired:
            said = f"no answer in {SECONDS} s"
        content = out.read_text(encoding="utf-8") if out.exists() else ""
    code, message = verdict(content, said)
    print(message)
    return code


def verdict(content: str, said: str) -> tuple[int, str]:
    """Exit code and message. content: what pip-audit reports, '' if it could not ask. said: its messages."""
    if not content:
        last = next((line for line in reversed(said.splitlines()) if line.strip()), "no report")
        return 0, f"pip-audit: not asked, its service cannot be reached ({last.strip()[:120]})"
    packages: list[dict[str, Any]] = json.loads(content)["dependencies"]
    found = [
        f"{one['name']} {one['version']}: {known['id']}, mended in {', '.join(known['fix_versions']) or 'no version'}"
        for one in packages
        for known in one.get("vulns", [])
    ]
    if found:
        return 1, "\n".join(found)
    unknown = sum("vulns" not in one for one in packages)
    if unknown == len(packages):
        return 0, f"pip-audit: its service knows none of {unknown} packages, so nothing was checked"
    return 0, f"pip-audit: {len(packages) - unknown} packages without known vulnerabilities, {unknown} not checked"


if __name__ == "__main__":
    sys.exit(main())
