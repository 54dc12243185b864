"""``cxr serve``: a model behind HTTP, for a page and for programs, that keeps its limits whatever is sent to it."""
