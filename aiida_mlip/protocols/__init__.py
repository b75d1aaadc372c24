"""Protocols: YAML files and the validated models that read them. An unknown key is an error that names the nearest."""
