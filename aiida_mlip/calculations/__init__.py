"""AiiDA calculation jobs and calculation functions: thin wrappers that write input files and call the kernel."""
