"""One file for each framework or tool that asynctag meets."""
