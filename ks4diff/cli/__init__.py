"""Arguments, exit codes, logging set-up; the only place that prints."""
