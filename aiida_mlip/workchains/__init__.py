"""The workflows: they decide what runs next, they compute nothing and create no data."""
