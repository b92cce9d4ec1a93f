"""The `limn` command: arguments in, one call into the packages, a table or JSON out.

Everything heavy is imported inside the command that needs it, so that `limn --help` answers at once. Errors that Limn raises on purpose
become one line on stderr and the error's own exit code; progress goes to stderr, results to stdout.
"""

from cli.main import app, main, run

__all__ = ["app", "main", "run"]
