"""``python -m ks4diff``: the same as the ``ks4diff`` command."""

from ks4diff.cli.main import main

main()
