"""Published methods, one file each: plan, engine, result."""
