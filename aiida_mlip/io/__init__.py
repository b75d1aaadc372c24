"""Bytes to kernel objects and back: shards, extxyz, configurations, worker messages. No AiiDA."""
