"""A student as files that ship: written, opened again by their own runtimes, and compared."""
