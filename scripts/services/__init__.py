"""Services for the tests, each a context manager: started in a folder, on ports of its own; gone when it is left."""
