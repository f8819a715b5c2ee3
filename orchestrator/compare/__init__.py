"""Finished runs side by side: read (``collect``), checked and put into tables (``tables``), and written."""
