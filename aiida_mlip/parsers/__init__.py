"""Parsers: attach what exists, then return the most specific exit code; they never raise."""
