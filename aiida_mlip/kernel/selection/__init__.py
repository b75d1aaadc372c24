"""Choosing what to label next: environments out of pools of up to 1e7, in bounded memory."""
