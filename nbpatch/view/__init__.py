"""Views of results: figures, widgets, pages. They read results only; never torch, never a model."""
