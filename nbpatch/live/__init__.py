"""What stands behind a live widget: its controls as a value, one worker, and an answer to each question of a view."""
