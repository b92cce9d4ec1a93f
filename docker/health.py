"""Whether the page answers: exit code 0 when it does (a login page is an answer), 1 when not."""

import os
import sys
import urllib.error
import urllib.request


def healthy(port: int, timeout_s: float = 5.0) -> bool:
    """Whether the page on this port of this machine answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=timeout_s) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code == 401
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(0 if healthy(int(os.environ.get("LIMN_PORT", "7860"))) else 1)
