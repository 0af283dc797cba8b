"""What flows between the stages: frozen dataclasses, flags and errors; no computation."""
